"""The networks of a run: the full one, and the narrower ones of the control that has them."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
from jax.sharding import Mesh

import jaxprune as jp
from jaxprune.structured import Groups
from train import config as config_lib
from train import models, units
from train import step as step_lib
from train import trainer as trainer_lib
from train.input_pipeline import InputPipeline
from train.timeline import Segment
from train.trainer import Trainer

_SMALLEST = 2.0**-10


class Networks(NamedTuple):
    """The trainers of a run, by the width of their network."""

    full: Trainer
    total: jp.report.Record
    """Counts of the full network."""
    widths: Mapping[int, float]
    """The width of the small dense network of each level, where the run has them."""
    trainer: Callable[[float], Trainer]
    about: Callable[[Segment], dict[str, Any]]
    """What the file of a segment's model says about it."""

    costs: Callable[[Segment, units.Smaller | None], Sequence[jp.cost.Layer]]
    """Of one example, in evaluation, of the network of a segment, whole or without some units;
    masks are not counted."""
    groups: Groups | None
    """What can be removed from the full network, where its units are."""
    smaller: Callable[[units.Smaller], Trainer]

    def of(self, segment: Segment) -> Trainer:
        """Returns what begins the network of a segment, and restores it."""
        return self.trainer(self.width(segment))

    def at(self, segment: Segment, points: jp.Point) -> Trainer:
        """Returns what trains and measures the network of a segment, at the size of its masks."""
        found = self.left(segment, jax.tree.map(lambda x: x[0], points))
        return self.of(segment) if found is None else self.smaller(found)

    def left(self, segment: Segment, point: jp.Point) -> units.Smaller | None:
        """Finds what is left of one network whose units are gone; `None` where it is whole."""
        if self.groups is None or segment.technique == 'small_dense':
            return None
        return units.smaller(self.groups, point)

    def shrunk(self, segment: Segment, point: jp.Point) -> tuple[jp.Point, dict[str, list[int]]]:
        """Takes the units that are gone out of one network, and lists them by group."""
        found = self.left(segment, point)
        return (point, {}) if found is None else (found.narrow(point), found.removed())

    def counts(self, segment: Segment, point: jp.Point) -> tuple[list[jp.report.Record], int]:
        """Counts the weights that one network keeps of each leaf, and its multiply-accumulates."""
        layers = jp.report.records(point.params, jp.get_masks(point.opt_state))
        found = self.left(segment, point)
        costs = self.costs(segment, found)
        if found is not None:
            sizes = {path: leaf.size for path, leaf in jp.tree.present(found.narrow(point).params)}
            layers = [layer._replace(kept=sizes[layer.path]) for layer in layers]
            return layers, jp.cost.total(costs).macs
        shares = {
            f'{units.PARAMS}/{layer.path}': layer.kept / layer.parameters
            for layer in layers
            if layer.parameters
        }
        return layers, round(sum(cost.macs * shares.get(cost.path, 1) for cost in costs))

    def width(self, segment: Segment) -> float:
        """Returns the width of the network of a segment; 1 is full."""
        return self.widths[segment.level] if segment.technique == 'small_dense' else 1.0


def make(
    config: ml_collections.ConfigDict,
    pipeline: InputPipeline,
    segments: Sequence[Segment],
    mesh: Mesh,
    steps: int,
) -> Networks:
    """Makes the trainers of a run; nothing compiles yet.

    Args:
      config: a checked config.
      pipeline: what is trained on.
      segments: the timeline of the run.
      mesh: of all devices, see `layout.make_mesh`.
      steps: of one dispatch.

    Returns:
      The trainers.

    Raises:
      ValueError: a network that does not take the data; a level that keeps no weight, or no fewer
        than the one before; no small dense network that is as small as a level.
    """

    step_lib.check_fit(
        step_lib.make_learner(
            config,
            build(config, pipeline.num_classes, 1.0),
            pipeline.normalization,
            pipeline.like,
        ),
        (config.train.batch_size, *pipeline.like.shape[1:]),
        (config.train.batch_size, *pipeline.label_shape),
        pipeline.like.dtype,
    )

    @functools.cache
    def trainer(width: float) -> Trainer:
        model = build(config, pipeline.num_classes, width)
        return trainer_lib.make_trainer(config, model, pipeline, mesh, steps)

    def records(width: float) -> list[jp.report.Record]:
        return _records(trainer(width), config.replicates)

    check_counts(config, [record.prunable for record in records(1.0) if record.prunable])
    total = jp.report.total(records(1.0))
    parameters = lambda width: jp.report.total(records(width)).parameters
    widths = {
        segment.level: width_of(round(segment.density * total.prunable), total, parameters)
        for segment in segments
        if segment.technique == 'small_dense'
    }

    def about(segment: Segment) -> dict[str, Any]:
        width = widths[segment.level] if segment.technique == 'small_dense' else 1.0
        kind = {'model': config.model.name, 'num_classes': pipeline.num_classes, 'width': width}
        kind |= {'dtype': config.model.dtype, 'protected': units.protected(config)}
        return kind | dict(pipeline.normalization)

    model = build(config, pipeline.num_classes, 1.0)
    prepare = step_lib.preprocessing(pipeline.normalization)
    by_groups = config.prune.pattern == 'groups'
    groups = units.find(config, model, prepare, pipeline.like) if by_groups else None
    known: dict[Any, Trainer] = {}

    def smaller(network: units.Smaller) -> Trainer:
        at = tuple((name, mask.tobytes()) for name, mask in network.keep.items())
        if at not in known:
            known[at] = trainer_lib.make_trainer(
                config, model, pipeline, mesh, steps, smaller=network
            )
        return known[at]

    @functools.cache
    def costs(width: float) -> list[jp.cost.Layer]:
        network = build(config, pipeline.num_classes, width)
        return jp.cost.layers(*units.evaluation(network, prepare, pipeline.like))

    def of_segment(segment: Segment, network: units.Smaller | None) -> list[jp.cost.Layer]:
        if network is not None:
            fn, variables, inputs = units.evaluation(model, prepare, pipeline.like)
            return jp.cost.layers(network.rewrite(fn), network.narrowed(variables), inputs)
        return costs(widths[segment.level] if segment.technique == 'small_dense' else 1.0)

    return Networks(trainer(1.0), total, widths, trainer, about, of_segment, groups, smaller)


def build(config: ml_collections.ConfigDict, num_classes: int, width: float) -> Any:
    """Builds the model of a config at a width."""
    return models.build(
        config.model.name,
        num_classes=num_classes,
        dtype=config.model.dtype,
        width=width,
    )


def check_counts(config: ml_collections.ConfigDict, sizes: Sequence[int]) -> None:
    """Raises `ValueError` unless each level keeps some weights, and fewer than the one before."""
    for size in sizes if config.prune.allocation == 'uniform' else [sum(sizes)]:
        before = size
        for level, density in enumerate(config_lib.density_plan(config), 1):
            if not 0 < round(density * size) < before:
                raise ValueError(
                    f'config.prune: level {level} has density {density:.3g}, which keeps '
                    f'{round(density * size)} of {size} weights, the level before {before}'
                )
            before = round(density * size)


def width_of(kept: int, total: jp.report.Record, parameters: Callable[[float], int]) -> float:
    """Finds the widest network with no more parameters than a pruned one, by bisection.

    Args:
      kept: prunable weights that the pruned network keeps.
      total: counts of the full network.
      parameters: counts the parameters of the network of a width.

    Returns:
      A width in (0, 1], a multiple of 1/1024.

    Raises:
      ValueError: the smallest network is larger.
    """
    budget = total.parameters - total.prunable + kept

    def fits(width: float) -> bool:
        return parameters(width) <= budget

    low, high = _SMALLEST, 1.0
    if not fits(low):
        raise ValueError(
            f"config.retrain.techniques: 'small_dense' cannot have as few parameters as the level "
            f'that keeps {kept} weights, {budget} with those that are not pruned: leave it out, or '
            'end at a higher density'
        )
    while high - low > _SMALLEST:
        middle = round((low + high) / 2 / _SMALLEST) * _SMALLEST
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _records(trainer: Trainer, replicates: int) -> list[jp.report.Record]:
    """Counts one dense network, from its shapes alone."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), replicates))
    point = jax.eval_shape(trainer.init, keys)
    masks = dict(jp.tree.named_leaves(jp.get_masks(point.opt_state)))
    shapes = {path: leaf.shape[1:] for path, leaf in jp.tree.named_leaves(point.params)}
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    return [
        jp.report.Record(path, shapes[path], n, 0 if masks[path] is None else n, n)
        for path, n in sizes.items()
    ]
