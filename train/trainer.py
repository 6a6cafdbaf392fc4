"""The jitted training of all replicates over a mesh of all devices."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from train import layout, techniques, units
from train import step as step_lib
from train.data import Split
from train.input_pipeline import InputPipeline
from train.step import Learner


class TrainState(NamedTuple):
    """All that one training changes; with the data it determines what follows, bit for bit."""

    point: jp.Point
    """Weights, the optimizer's state with the masks in it, and batch statistics; each leaf has
    the replicates along its first axis."""
    step: jax.Array
    """Steps taken in this training, int32: also the position in the data."""
    key: jax.Array
    """Random keys of this training, one a replicate, which the order of the data is drawn from."""


class Measured(NamedTuple):
    """Sums over a part of the data, an entry a replicate and batch."""

    right: jax.Array
    """Predictions that are right, (R, batches), int32."""
    nats: jax.Array
    """Cross-entropy of the predictions, (R, batches), float32."""


class Trainer(NamedTuple):
    """The compiled functions of a run; one compilation each, whatever the round."""

    init: Callable[[jax.Array], jp.Point]
    """Draws the initial points of all replicates, from a random key each."""
    train: Callable[[TrainState, Split], tuple[TrainState, jax.Array]]
    """Takes the steps of one dispatch and donates the state; returns the losses, (R, steps), the
    last one NaN where a weight is no longer finite. Held data are the whole training part; streamed
    data the batches of these steps, (steps, B, ...)."""
    measure: Callable[[jp.Point, Split], Measured]
    """Evaluates every example of a part of the data, or of one streamed batch."""
    score: Callable[[jp.Point, Split | None, jax.Array], jp.tree.Scores]
    """Scores one network as the config says, on the first examples of a part, `None` where they
    are not needed; the key is for random scores."""
    reset: Callable[[jp.tree.Params], optax.OptState]
    """Makes the state of the optimizer afresh for one network."""
    shardings: TrainState
    """Where states lie, leaf by leaf."""


def dispatch_steps(config: ml_collections.ConfigDict, lengths: set[int]) -> int:
    """Finds the most steps, up to the config's, that divide every length of a training."""
    common = math.gcd(*lengths)
    limit = min(config.train.steps_per_dispatch, common)
    return max(steps for steps in range(1, limit + 1) if common % steps == 0)


def make_trainer(
    config: ml_collections.ConfigDict,
    model: nn.Module,
    pipeline: InputPipeline,
    mesh: Mesh,
    steps: int,
    *,
    smaller: units.Smaller | None = None,
) -> Trainer:
    """Compiles nothing yet: makes the functions of a run.

    Where the devices divide the replicates evenly, each device trains some of them and none waits
    for another; elsewhere each batch is split over the devices, and so are the weights where the
    mesh has axes for them. A device trains its replicates
    side by side (`vmap`) or in turn (`map`), in either case in one program.

    Args:
      config: a checked config.
      model: called as `model.apply(variables, inputs, train=...)`, returns logits.
      pipeline: tells the shape of inputs and how they are normalised.
      mesh: of all devices, see `layout.make_mesh`.
      steps: of one dispatch.
      smaller: the network that is trained and measured, `None` for the whole model; states have
        the whole shapes in either case.

    Returns:
      Jitted functions; data are arguments, so that they live on the devices.
    """
    rewrite = (lambda fn: fn) if smaller is None else smaller.rewrite
    learner = step_lib.make_learner(config, model, pipeline.normalization, pipeline.like, rewrite)
    split = layout.is_split(mesh)
    apart = config.replicates % mesh.size == 0 and smaller is None and not split
    apart = apart and jax.process_count() == 1  # losses are read in every process
    whole, over_devices = NamedSharding(mesh, P()), P(layout.REPLICAS)
    each = NamedSharding(mesh, over_devices) if apart else whole
    batches = NamedSharding(mesh, P(layout.BATCH))
    alone = config.replicates == 1 or (apart and config.replicates == mesh.size)
    over = _alone if alone else _in_turn if config.replicate_by == 'map' else jax.vmap

    def spread(batch: Any) -> Any:
        return batch if apart else jax.lax.with_sharding_constraint(batch, batches)

    def share_out(f: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        return jax.shard_map(f, mesh=mesh, in_specs=inputs, out_specs=outputs) if apart else f

    if config.data.streaming:
        train_one = _training_on_stream(learner, steps, spread)
        measure_one = _measuring_stream(learner, spread)
    else:
        train_one = _training(learner, config.train.batch_size, steps, spread)
        measure_one = _measuring(learner, config.train.batch_size, spread)

    if smaller is not None:
        train_one, measure_one = _at_size_of(smaller, train_one, measure_one)

    def train(state: TrainState, part: Split) -> tuple[TrainState, jax.Array]:
        one = lambda point, key: train_one(point, state.step, key, part)
        points, losses = over(one)(state.point, state.key)
        return TrainState(points, state.step + steps, state.key), losses

    def measure(point: jp.Point, part: Split) -> Measured:
        return over(lambda point: measure_one(point, part))(point)

    def loss(point: jp.Point, params: Any, batch: step_lib.Batch) -> jax.Array:
        logits = learner.predict(point._replace(params=params), batch[0])
        return step_lib.cross_entropy(logits, batch[1]).mean()

    init = (_alone if config.replicates == 1 else jax.vmap)(learner.init)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.replicates))
    shapes = jax.eval_shape(init, keys)
    own = layout.shardings(shapes, mesh) if split else jax.tree.map(lambda _: each, shapes)
    shardings = TrainState(own, whole, each)  # type: ignore[arg-type]  # placements, not arrays
    states = TrainState(over_devices, P(), over_devices)  # type: ignore[arg-type]  # prefixes
    return Trainer(
        jax.jit(init, out_shardings=own),
        jax.jit(
            share_out(train, (states, P()), (states, over_devices)),
            donate_argnums=0,
            out_shardings=(shardings, each),
        ),
        jax.jit(share_out(measure, (over_devices, P()), over_devices), out_shardings=each),
        techniques.scorer(config, loss),
        learner.reset,
        shardings,
    )


def _at_size_of(
    smaller: units.Smaller, train: Callable[..., Any], measure: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Makes functions of points of the whole shapes from those of a smaller network."""

    def train_smaller(point: jp.Point, *rest: Any) -> Any:
        point, losses = train(smaller.narrow(point), *rest)
        return smaller.widen(point), losses

    def measure_smaller(point: jp.Point, part: Split) -> Measured:
        measured: Measured = measure(smaller.narrow(point), part)
        return measured

    return train_smaller, measure_smaller


def _training(
    learner: Learner, batch: int, steps: int, spread: Callable[[Any], Any]
) -> Callable[..., tuple[jp.Point, jax.Array]]:
    """Makes what takes the steps of a dispatch with one network, from a step of its training."""

    def train(point: jp.Point, first: jax.Array, key: jax.Array, part: Split) -> Any:
        examples = len(part.labels)

        def epoch_order(number: jax.Array) -> jax.Array:
            epoch = number // (examples // batch)
            own = jax.random.fold_in(jax.random.fold_in(key, 0), epoch)
            return jax.random.permutation(own, examples)

        def body(carry: tuple[jp.Point, jax.Array], number: jax.Array) -> Any:
            point, order = carry
            place = number % (examples // batch)
            order = jax.lax.cond(place == 0, epoch_order, lambda _: order, number)
            now = jax.lax.dynamic_slice_in_dim(order, place * batch, batch)
            chosen = spread((part.inputs[now], part.labels[now]))
            point, loss = learner.step(point, number, key, chosen)
            return (point, order), loss

        numbers = first + jnp.arange(steps, dtype=jnp.int32)
        (point, _), losses = jax.lax.scan(body, (point, epoch_order(first)), numbers)
        return point, _marked(losses, point.params)

    return train


def _training_on_stream(
    learner: Learner, steps: int, spread: Callable[[Any], Any]
) -> Callable[..., tuple[jp.Point, jax.Array]]:
    """Makes the same for batches that come in the order in which they are trained on."""

    def train(point: jp.Point, first: jax.Array, key: jax.Array, batches: Split) -> Any:
        def body(point: jp.Point, numbered: tuple[jax.Array, Split]) -> Any:
            number, batch = numbered
            return learner.step(point, number, key, spread(tuple(batch)))

        numbers = first + jnp.arange(steps, dtype=jnp.int32)
        point, losses = jax.lax.scan(body, point, (numbers, batches))
        return point, _marked(losses, point.params)

    return train


def _marked(losses: jax.Array, params: jp.tree.Params) -> jax.Array:
    """Makes the last loss NaN where the last update, which no loss shows yet, ruined a weight."""
    finite = jax.tree.map(lambda w: jnp.isfinite(w).all(), params)
    healthy = jnp.stack(jax.tree.leaves(finite)).all()
    return losses.at[-1].set(jnp.where(healthy, losses[-1], jnp.nan))


def _measuring(
    learner: Learner, batch: int, spread: Callable[[Any], Any]
) -> Callable[[jp.Point, Split], Measured]:
    """Makes what evaluates one network on a part of the data, batch by batch."""

    def measure(point: jp.Point, part: Split) -> Measured:
        size = len(part.labels)
        batches = -(-size // batch)

        def sums(chosen: jax.Array) -> Measured:
            now = chosen % size  # the last batch is filled from the first, and not counted
            inputs, labels = spread((part.inputs[now], part.labels[now]))
            counts = (chosen < size).reshape(-1, *[1] * (labels.ndim - 1))
            return _sums(learner.predict(point, inputs), labels, counts)

        return jax.lax.map(sums, jnp.arange(batches * batch).reshape(batches, batch))

    return measure


def _measuring_stream(
    learner: Learner, spread: Callable[[Any], Any]
) -> Callable[[jp.Point, Split], Measured]:
    """Makes what evaluates one network on one batch, in which label -1 is padding."""

    def measure(point: jp.Point, batch: Split) -> Measured:
        inputs, labels = spread(tuple(batch))
        logits = learner.predict(point, inputs)
        return jax.tree.map(lambda x: x[None], _sums(logits, labels, labels >= 0))

    return measure


def _sums(logits: jax.Array, labels: jax.Array, counts: jax.Array) -> Measured:
    right = (logits.argmax(-1) == labels) & counts
    nats = jnp.where(counts, step_lib.cross_entropy(logits, labels), 0.0)
    return Measured(right.sum(), nats.sum())


def _alone(f: Callable[..., Any]) -> Callable[..., Any]:
    """Does without `vmap`, under which a convolution is slow to compile, for one replicate."""

    def call(*stacked: Any) -> Any:
        one = jax.tree.map(lambda x: x[0], stacked)
        return jax.tree.map(lambda x: x[None], f(*one))

    return call


def _in_turn(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *stacked: jax.lax.map(lambda one: f(*one), stacked)
