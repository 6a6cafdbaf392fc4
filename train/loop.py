"""The host loop: rounds, checkpoints, progress."""

import contextlib
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
from train import (
    checkpoint,
    data,
    input_pipeline,
    layout,
    networks,
    processes,
    progress,
    report,
    results,
    techniques,
    timeline,
    workdirs,
)
from train import config as config_lib
from train import keys as keys_lib
from train import trainer as trainer_lib
from train.errors import BadInput, Broken, Diverged, Interrupted
from train.input_pipeline import InputPipeline
from train.networks import Networks
from train.timeline import Segment
from train.trainer import Measured, TrainState

Tables = dict[str, list[Any]]
"""The rows of the tables of a run so far: `rows` of `results.csv`, `layers` of `layers.csv`."""


class Run(NamedTuple):
    """What stays the same over a run."""

    config: ml_collections.ConfigDict
    workdir: Path
    timeline: list[Segment]
    networks: Networks
    pipeline: InputPipeline
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
      Broken: data or checkpoints cannot be read or written any more; what was saved is kept.
      Interrupted: SIGTERM or Ctrl-C; the run was saved.
    """
    processes.check_devices()
    processes.check_same('config', lambda: config_lib.to_json(config))
    with processes.together():
        config_lib.check(config, jax.device_count())
        workdirs.check(workdir, config)
    segments = lay_out(config)
    with processes.together():
        networks, pipeline = prepare(config)
    with (
        workdirs.claim(workdir, config),
        checkpoint.open_store(workdir / 'checkpoints', kept(config, segments)) as store,
    ):
        results.write_about(workdir, config, networks.total, pipeline)
        done, damaged = checkpoint.newest_whole(store, needed(config, workdir, segments))
        with progress.display(segments[-1].end, done) as display:
            for wrong in damaged:
                display.say(f'{wrong}: going on from step {done} of the run')
            whole = Run(config, workdir, segments, networks, pipeline, store, display, interrupted)
            try:
                rows = train_all(whole, done)
            except data.DatasetError as error:
                raise Broken(f'{error}; what was saved is kept') from error
            write_artifacts(whole, rows)
            display.say(f'done: {workdir}/report.html')


def prepare(config: ml_collections.ConfigDict) -> tuple[Networks, InputPipeline]:
    """Opens the data and makes the networks that train on them."""
    segments, mesh = lay_out(config), layout.make_mesh(config)
    stops = {segment.steps for segment in segments} | {config.retrain.rewind_step} - {0}
    steps = trainer_lib.dispatch_steps(config, stops)
    try:
        pipeline = input_pipeline.make(config, mesh, steps)
        made = networks.make(config, pipeline, segments, mesh, steps)
        keys = jax.random.split(jax.random.key(0), config.replicates)
        techniques.check(config, replicate(made.full.init(keys), 0), made.groups)
        return made, pipeline
    except ValueError as error:
        raise BadInput(str(error)) from error


def lay_out(config: ml_collections.ConfigDict) -> list[Segment]:
    """Lays out the segments of a config."""
    return timeline.segments(
        trainings=techniques.trainings(config),
        plan=config_lib.density_plan(config),
        train_steps=config.train.steps,
        iterative=config.prune.mode == 'iterative',
    )


def kept(config: ml_collections.ConfigDict, segments: Sequence[Segment]) -> set[int]:
    """Lists the steps of the whole run whose checkpoints stay: ends, and the rewind step."""
    return {segment.end for segment in segments} | {config.retrain.rewind_step} - {0}


def needed(
    config: ml_collections.ConfigDict, workdir: Path, segments: Sequence[Segment]
) -> Callable[[int], set[int]]:
    """Makes what tells which steps, up to one, are restored after it: for rounds and for models."""

    def restored(step: int) -> set[int]:
        models = {
            segment.end
            for segment in last_segments(segments)
            if segment.end <= step
            and not all(map(Path.exists, models_of(config, workdir, segment)))
        }
        return models | timeline.needed(segments, step, techniques.rewinds(config))

    return restored


def last_segments(segments: Sequence[Segment]) -> list[Segment]:
    """Lists the segments whose networks are saved as models: the last of each technique."""
    return list({segment.technique: segment for segment in segments}.values())


def models_of(config: ml_collections.ConfigDict, workdir: Path, segment: Segment) -> list[Path]:
    """Names the files of the models of a segment, one a replicate."""
    name = f'{segment.technique}.safetensors'
    return [workdir / 'models' / f'replicate_{r}' / name for r in range(config.replicates)]


def train_all(run: Run, done: int) -> list[dict[str, Any]]:
    """Trains every segment that is not finished, from `done` steps of the whole run.

    Args:
      run: what stays the same.
      done: step of the latest checkpoint, 0 where there is none.

    Returns:
      The rows of `results.csv`.
    """
    tables: Tables = {'rows': [], 'layers': []}
    if done:
        tables = checkpoint.restore_progress(run.store, done)
    results.write_tables(run.workdir, **tables)
    if done == run.timeline[-1].end:
        run.display.say(f'{run.workdir} holds this run, finished: its results are written again')
    elif done:
        run.display.say(f'resuming {run.workdir} after {done} steps')
    for segment in run.timeline[timeline.locate(run.timeline, done) :]:
        began = time.monotonic()
        try:
            inside = segment.start < done < segment.end
            state = restore(run, segment, done) if inside else begin(run, segment)
            state = train(run, segment, state, tables)
            cells, layers = evaluate(run, segment, state.point)
        finally:  # what was trained before a stop took its time too
            results.append_timing(run.workdir, segment, time.monotonic() - began)
        tables = {'rows': tables['rows'] + cells, 'layers': tables['layers'] + layers}
        checkpoint.save(run.store, segment.end, state, tables)
        results.write_tables(run.workdir, **tables)
        run.display.say(f'{results.line(cells)}  {run.display.time_left()}')
    checkpoint.finish(run.store)
    return tables['rows']


def begin(run: Run, segment: Segment) -> TrainState:
    """Makes the state that a segment starts from: drawn anew, or pruned and rewound."""
    trainer, keys = run.networks.of(segment), keys_lib.of_segment(run.config, segment.level)
    if segment.source is None:
        points = trainer.init(keys_lib.of_draw(run.config))
    else:
        ended, begin_one = at_end(run, segment.source), rounds_of(run, segment)
        keys_of_masks = keys_lib.fold_in(keys, 3)
        started = [
            begin_one(replicate(ended, r), keys_of_masks[r], r)
            for r in range(run.config.replicates)
        ]
        points = jax.tree.map(lambda *leaves: jnp.stack(leaves), *started)
    if not run.config.retrain.reshuffle:
        keys = keys_lib.of_segment(run.config, 0)
    return layout.place(TrainState(points, jnp.int32(0), keys), trainer.shardings)


def rounds_of(run: Run, segment: Segment) -> Callable[[jp.Point, jax.Array, int], jp.Point]:
    """Makes what prunes a trained network and sets where it retrains from, by replicate."""
    trainer, technique = run.networks.full, segment.technique
    sample = run.pipeline.sample if techniques.needs_data(run.config) else lambda: None
    stored = functools.cache(lambda: restore_rewind_step(run))
    keys = keys_lib.fold_in(keys_lib.of_segment(run.config, segment.level), 2)
    drawn = functools.cache(lambda: trainer.init(keys))

    def begin_one(point: jp.Point, key: jax.Array, number: int) -> jp.Point:
        try:
            masks = techniques.prune(
                point,
                technique,
                segment.density,
                config=run.config,
                score=lambda point: trainer.score(point, sample(), key),
                key=key,
                groups=run.networks.groups,
            )
        except ValueError as error:
            raise BadInput(
                f'{segment}, replicate {number}, cannot be pruned: {error}. In a config, '
                'config.prune.floor keeps a share of each layer; what was trained is kept'
            ) from error
        retrain = techniques.retrain(
            technique,
            run.config,
            stored=lambda: replicate(stored(), number),
            drawn=lambda: replicate(drawn(), number),
            init=trainer.reset,
        )
        return retrain(point, masks)

    return begin_one


def train(run: Run, segment: Segment, state: TrainState, tables: Tables) -> TrainState:
    """Trains to the end of a segment, with checkpoints, and stops where a signal asks to.

    Args:
      run: what stays the same.
      segment: what is trained.
      state: its start, or where it was left; donated.
      tables: of the segments before, for the checkpoints.

    Returns:
      The state at the end.

    Raises:
      Diverged: a loss that is not finite.
      Interrupted: a signal asked to stop.
    """
    step, every = int(state.step), run.config.checkpoint.every_steps
    trainer, rewind = run.networks.at(segment, state.point), run.config.retrain.rewind_step
    with contextlib.closing(run.pipeline.train(state.key, step)) as parts:
        part = next(parts)
        while step < segment.steps:
            if number := processes.agreed(run.interrupted()):
                stop(run, segment.start + step, state, tables, number)
            state, losses = trainer.train(state, part)
            before, step = step, step + losses.shape[1]
            if step < segment.steps:
                part = next(parts)  # read while the devices train
            check_finite(np.asarray(losses), segment, before, run.store.latest_step())
            position = segment.start + step
            doing = f'{segment}  {step}/{segment.steps}'
            run.display.advance(position, doing, float(losses[:, -1].mean()))
            due = step // every > before // every or position == rewind
            if due and step < segment.steps:
                checkpoint.save(run.store, position, state, tables)
    return state


def stop(run: Run, position: int, state: TrainState, tables: Tables, number: int) -> None:
    """Saves a run that was asked to stop, and raises."""
    if position > 0 and position not in run.store.all_steps():
        checkpoint.save(run.store, position, state, tables)
    checkpoint.finish(run.store)
    saved = f'saved in {run.workdir}: ' if position else ''
    raise Interrupted(
        f'stopped by {signal.Signals(number).name} after {position} of {run.timeline[-1].end} '
        f'steps, {saved}the same command goes on from there',
        number,
    )


def check_finite(losses: np.ndarray, segment: Segment, before: int, latest: int | None) -> None:
    """Raises `Diverged` at the first loss that is not finite, of any replicate."""
    bad = np.argwhere(~np.isfinite(losses.T))
    if len(bad):
        step, number = map(int, bad[0])
        saved = 'none was saved yet' if latest is None else f'it is at step {latest} of the run'
        raise Diverged(
            f'the loss became {losses[number, step]} at step {before + step + 1} of '
            f'{segment.steps} of {segment}, replicate {number}: lower '
            f'config.optimizer.learning_rate. The last good checkpoint stays ({saved})'
        )


def evaluate(run: Run, segment: Segment, points: jp.Point) -> tuple[list[Any], list[Any]]:
    """Measures finished trainings; the test part is reported, never chosen by.

    Returns:
      The rows of `results.csv` and those of `layers.csv`, of each replicate.
    """
    parts = {'val': 'validation', 'test': 'test'}
    after = {name: measure(run, segment, points, part) for name, part in parts.items()}
    before = {}
    if segment.source is not None:  # the network that was pruned, with the masks that it got
        ended = at_end(run, segment.source)
        params = jp.masks.apply(ended.params, jp.get_masks(points.opt_state))
        pruned = ended._replace(params=params)
        before = {name: measure(run, segment, pruned, part) for name, part in parts.items()}
    sizes = {name: run.pipeline.predictions(part) for name, part in parts.items()}
    scores = results.accuracies('pruned_', before, sizes) | results.accuracies('', after, sizes)
    scores |= results.bits(after, sizes)
    rows, layers = [], []
    for r in range(run.config.replicates):
        records, macs = run.networks.counts(segment, replicate(points, r))
        cell = {
            'replicate': r,
            'technique': segment.technique,
            'level': segment.level,
            'train_steps': timeline.cost(run.timeline, segment),
        }
        own = {name: values[r] for name, values in scores.items()}
        rows.append(cell | own | results.sizes(records, run.networks.total, macs))
        layers.extend(results.layer_rows(cell, records))
    return rows, layers


def measure(run: Run, segment: Segment, points: jp.Point, part: str) -> Measured:
    """Evaluates networks like those of a segment on a part of the data."""
    measure_some = run.networks.at(segment, points).measure
    found = [measure_some(points, some) for some in run.pipeline.evaluate(part)]
    return jax.tree.map(lambda *sums: jnp.concatenate(sums, axis=1), *found)


def write_artifacts(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the models and the report of a finished run, from its checkpoints."""
    for segment in last_segments(run.timeline):
        if segment.end not in run.store.all_steps():  # it was damaged after they were written
            continue
        points = restore(run, segment, segment.end).point
        cell = segment.technique, segment.level
        own = [row for row in rows if (row['technique'], row['level']) == cell]
        for r, path in enumerate(models_of(run.config, run.workdir, segment)):
            (row,) = (row for row in own if row['replicate'] == r)
            point, removed = run.networks.shrunk(segment, replicate(points, r))
            about = {**run.networks.about(segment), 'removed': removed, **row}
            results.write_model(path, layout.gathered(point), about)
    if processes.writes():
        report.write([run.workdir], run.workdir)


def replicate(stacked: Any, number: int) -> Any:
    """Takes one replicate out of a tree whose leaves have them along their first axis."""
    return jax.tree.map(lambda x: x[number], stacked)


def restore_rewind_step(run: Run) -> jp.Point:
    """Restores the dense networks at the rewind step; step 0 is drawn again."""
    step = run.config.retrain.rewind_step
    return at_end(run, step) if step else run.networks.full.init(keys_lib.of_draw(run.config))


def at_end(run: Run, position: int) -> jp.Point:
    """Restores the networks of full width that were saved at a step of the whole run."""
    return restore(run, run.timeline[0], position).point


def restore(run: Run, segment: Segment, position: int) -> TrainState:
    """Restores the state saved at a step of the whole run, of networks like those of a segment."""
    trainer = run.networks.of(segment)
    keys = keys_lib.of_draw(run.config)
    like = jax.eval_shape(lambda: TrainState(trainer.init(keys), jnp.int32(0), keys))
    placed = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    like = jax.tree.map(placed, like, trainer.shardings)
    return checkpoint.restore(run.store, position, like)
