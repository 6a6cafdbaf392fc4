"""The host loop: rounds, checkpoints, progress."""

import functools
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

import jaxprune as jp
from jaxprune import rounds
from train import checkpoint, data, models, progress, results, timeline, workdirs
from train import config as config_lib
from train import step as step_lib
from train.errors import BadInput, Diverged, Interrupted
from train.step import TrainState
from train.timeline import Segment


class Run(NamedTuple):
    """What stays the same over a run."""

    config: ml_collections.ConfigDict
    workdir: Path
    timeline: list[Segment]
    trainer: step_lib.Trainer
    dataset: data.Dataset
    store: ocp.CheckpointManager
    display: progress.Display
    interrupted: Callable[[], int | None]


def run(
    config: ml_collections.ConfigDict,
    workdir: Path,
    interrupted: Callable[[], int | None] = lambda: None,
) -> None:
    """Trains, prunes and retrains as a config says; goes on where a stopped run was.

    Args:
      config: as in `configs/`.
      workdir: for checkpoints and results.
      interrupted: tells which signal asked to stop, if any; see `interrupt.requested`.

    Raises:
      BadInput: a config, a dataset or a workdir that cannot be used; nothing was changed.
      Diverged: a loss that is not finite.
      Interrupted: SIGTERM or Ctrl-C; the run was saved.
    """
    config_lib.check(config, jax.device_count())
    workdirs.check(workdir, config)
    trainer, dataset = prepare(config)
    segments = lay_out(config)
    with (
        workdirs.claim(workdir, config),
        checkpoint.open_store(workdir / 'checkpoints', kept(config, segments)) as store,
    ):
        done = store.latest_step() or 0
        with progress.display(segments[-1].end, done) as display:
            whole = Run(config, workdir, segments, trainer, dataset, store, display, interrupted)
            rows = train_all(whole, done)
            write_artifacts(whole, rows)
            display.say(f'done: {workdir}/report.html')


def prepare(config: ml_collections.ConfigDict) -> tuple[step_lib.Trainer, data.Dataset]:
    """Loads the data onto the devices and makes the functions that train on them."""
    try:
        dataset = load(config)
        if len(dataset.train.labels) < config.train.batch_size:
            raise ValueError(
                f'config.train.batch_size is {config.train.batch_size}, more than the '
                f'{len(dataset.train.labels)} training examples'
            )
        model = models.build(config.model.name, num_classes=dataset.num_classes)
        trainer = step_lib.make_trainer(config, model, dataset, step_lib.make_mesh())
        check_counts(config, jax.eval_shape(trainer.init, jax.random.key(0)))
    except ValueError as error:
        raise BadInput(str(error)) from error
    return trainer, step_lib.resident(dataset, trainer.sharding)


def load(config: ml_collections.ConfigDict) -> data.Dataset:
    """Loads the data set of a config."""
    try:
        return data.load(
            config.data.name,
            directory=config.data.directory or None,
            validation_examples=config.data.validation_examples,
            seed=config.seed,
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f'the data set {config.data.name!r} cannot be prepared or read in '
            f'{config.data.directory or "the default folder of TFDS"}: {error}'
        ) from error


def check_counts(config: ml_collections.ConfigDict, point: jp.Point) -> None:
    """Raises `ValueError` unless each level keeps some weights, and fewer than the one before."""
    sizes = [mask.size for mask in jax.tree.leaves(jp.get_masks(point.opt_state))]
    if config.prune.allocation == 'global_top':
        sizes = [sum(sizes)]
    for size in sizes:
        before = size
        for level, density in enumerate(config_lib.density_plan(config), 1):
            if not 0 < round(density * size) < before:
                raise ValueError(
                    f'config.prune: level {level} has density {density:.3g}, which keeps '
                    f'{round(density * size)} of {size} weights, the level before {before}'
                )
            before = round(density * size)


def lay_out(config: ml_collections.ConfigDict) -> list[Segment]:
    """Lays out the segments of a config."""
    return timeline.segments(
        replicates=config.replicates,
        techniques=config.retrain.techniques,
        plan=config_lib.density_plan(config),
        train_steps=config.train.steps,
        retrain_steps=config_lib.retrain_steps(config),
    )


def kept(config: ml_collections.ConfigDict, segments: Sequence[Segment]) -> set[int]:
    """Lists the steps of the whole run whose checkpoints stay: ends, and rewind points."""
    rewinds = {rewind_step(config, segment) for segment in segments if segment.level == 0}
    return {segment.end for segment in segments} | rewinds


def rewind_step(config: ml_collections.ConfigDict, dense: Segment) -> int:
    """Finds where weight rewinding returns to, in steps of the whole run."""
    return dense.start + config.train.steps - config_lib.retrain_steps(config)


def train_all(run: Run, done: int) -> list[dict[str, Any]]:
    """Trains every segment that is not finished, from `done` steps of the whole run.

    Args:
      run: what stays the same.
      done: step of the latest checkpoint, 0 where there is none.

    Returns:
      The rows of `results.csv`.
    """
    rows = checkpoint.restore_rows(run.store, done) if done else []
    results.write_rows(run.workdir, rows)
    if done == run.timeline[-1].end:
        run.display.say(f'{run.workdir} holds this run, finished: its results are written again')
    elif done:
        run.display.say(f'resuming {run.workdir} after {done} steps')
    for segment in run.timeline[timeline.locate(run.timeline, done) :]:
        began = time.monotonic()
        inside = segment.start < done < segment.end
        state = restore(run, done) if inside else begin(run, segment)
        state = train(run, segment, state, rows)
        rows.append(evaluate(run, segment, state.point))
        checkpoint.save(run.store, segment.end, state, rows)
        results.write_rows(run.workdir, rows)
        results.append_timing(run.workdir, segment, time.monotonic() - began)
        run.display.say(f'{results.line(rows[-1])}  {run.display.time_left()}')
    run.store.wait_until_finished()
    return rows


def begin(run: Run, segment: Segment) -> TrainState:
    """Makes the state that a segment starts from: drawn anew, or pruned and rewound."""
    if segment.source is None:
        point = draw(run, segment.replicate)
    else:
        point = rounds.begin(
            restore(run, segment.source).point,
            segment.density,
            technique(run, segment),
            prune=functools.partial(prune, config=run.config, key=segment_key(run, segment)),
        )
    state = TrainState(point, jnp.int32(0), segment_key(run, segment))
    return jax.device_put(state, run.trainer.sharding)


def technique(run: Run, segment: Segment) -> rounds.Retrain:
    """Makes the retraining technique of a segment; each retrains for as many steps."""
    steps = run.config.train.steps
    if segment.technique in run.trainer.starts:
        return rounds.lr_rewind(run.trainer.starts[segment.technique])
    if segment.technique == 'lr_rewind':
        return rounds.lr_rewind(steps - config_lib.retrain_steps(run.config))
    dense = next(s for s in run.timeline if s.level == 0 and s.replicate == segment.replicate)
    position = rewind_step(run.config, dense)
    if position == dense.start:
        return rounds.weight_rewind(draw(run, segment.replicate))
    return rounds.weight_rewind(restore(run, position).point)


def prune(
    point: jp.Point, density: float, *, config: ml_collections.ConfigDict, key: jax.Array
) -> jp.tree.Masks:
    """Chooses the masks of a round, by the score and the allocation of the config."""
    present = jp.get_masks(point.opt_state)
    where = jp.tree.covered_by(present)
    if config.prune.score == 'random':
        scores = jp.scores.random(point.params, key, where=where)
    else:
        scores = jp.scores.magnitude(point.params, where=where)
    select = jp.masks.leaf_top if config.prune.allocation == 'leaf_top' else jp.masks.global_top
    return select(scores, density, present)


def train(
    run: Run, segment: Segment, state: TrainState, rows: Sequence[dict[str, Any]]
) -> TrainState:
    """Trains to the end of a segment, with checkpoints, and stops where a signal asks to.

    Args:
      run: what stays the same.
      segment: what is trained.
      state: its start, or where it was left; donated.
      rows: of the segments before, for the checkpoints.

    Returns:
      The state at the end.

    Raises:
      Diverged: a loss that is not finite.
      Interrupted: a signal asked to stop.
    """
    step, every = int(state.step), run.config.checkpoint.every_steps
    rewind = rewind_step(run.config, segment) if segment.level == 0 else None
    while step < segment.steps:
        if number := run.interrupted():
            stop(run, segment.start + step, state, rows, number)
        state, losses = run.trainer.train(state, run.dataset.train)
        before, step = step, int(state.step)
        check_finite(np.asarray(losses), segment, before, run.store.latest_step())
        position = segment.start + step
        run.display.advance(position, f'{segment}  {step}/{segment.steps}', float(losses[-1]))
        due = step // every > before // every or position == rewind
        if due and step < segment.steps:
            checkpoint.save(run.store, position, state, rows)
    return state


def stop(
    run: Run, position: int, state: TrainState, rows: Sequence[dict[str, Any]], number: int
) -> None:
    """Saves a run that was asked to stop, and raises."""
    if position > 0 and position not in run.store.all_steps():
        checkpoint.save(run.store, position, state, rows)
    run.store.wait_until_finished()
    saved = f'saved in {run.workdir}: ' if position else ''
    raise Interrupted(
        f'stopped by {signal.Signals(number).name} after {position} of {run.timeline[-1].end} '
        f'steps, {saved}the same command goes on from there',
        number,
    )


def check_finite(losses: np.ndarray, segment: Segment, before: int, latest: int | None) -> None:
    """Raises `Diverged` at the first loss that is not finite."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        saved = 'none was saved yet' if latest is None else f'it is at step {latest} of the run'
        raise Diverged(
            f'the loss became {losses[bad[0]]} at step {before + int(bad[0]) + 1} of '
            f'{segment.steps} of {segment}: lower config.optimizer.learning_rate. '
            f'The last good checkpoint stays ({saved})'
        )


def evaluate(run: Run, segment: Segment, point: jp.Point) -> dict[str, Any]:
    """Measures a finished training; the test part is reported, never chosen by."""

    def accuracy(part: data.Split) -> float:
        return int(run.trainer.correct(point, part).sum()) / len(part.labels)

    return results.row(
        segment,
        point,
        train_steps=run.config.train.steps + segment.level * config_lib.retrain_steps(run.config),
        val_accuracy=accuracy(run.dataset.validation),
        test_accuracy=accuracy(run.dataset.test),
    )


def write_artifacts(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the models and the report of a finished run, from its checkpoints."""
    layers = {}
    last = {(s.replicate, s.technique): s for s in run.timeline}
    for row, segment in zip(rows, run.timeline, strict=True):
        if segment != last[segment.replicate, segment.technique]:
            continue
        point = restore(run, segment.end).point
        path = run.workdir / 'models' / f'replicate_{segment.replicate}'
        about = {'model': run.config.model.name, 'num_classes': run.dataset.num_classes, **row}
        about |= step_lib.normalization(run.config, run.dataset.train)
        results.write_model(path / f'{segment.technique}.safetensors', point, about)
        if segment.replicate == 0 and segment.level > 0:
            masks = jp.get_masks(point.opt_state)
            layers[segment.technique] = jp.report.records(point.params, masks)
    results.write_report(run.workdir, rows, layers, config_lib.to_json(run.config))


def draw(run: Run, replicate: int) -> jp.Point:
    """Draws the initial point of a replicate."""
    return run.trainer.init(jax.random.fold_in(replicate_key(run.config, replicate), 0))


def segment_key(run: Run, segment: Segment) -> jax.Array:
    """Makes the key of a segment: fresh at each level, shared by the techniques."""
    return jax.random.fold_in(replicate_key(run.config, segment.replicate), 1 + segment.level)


def replicate_key(config: ml_collections.ConfigDict, replicate: int) -> jax.Array:
    """Makes the key of a replicate."""
    return jax.random.fold_in(jax.random.key(config.seed), replicate)


def restore(run: Run, position: int) -> TrainState:
    """Restores the state that was saved at a step of the whole run."""
    key = jax.random.key(0)
    like = jax.eval_shape(lambda: TrainState(run.trainer.init(key), jnp.int32(0), key))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=run.trainer.sharding), like
    )
    return checkpoint.restore(run.store, position, like)
