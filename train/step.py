"""The state of training, and the jitted step over a mesh of all devices."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from train import config as config_lib
from train import data


class TrainState(NamedTuple):
    """All that one training changes; with the data it determines what follows, bit for bit."""

    point: jp.Point
    """Weights, the optimizer's state with the masks in it, and batch statistics."""
    step: jax.Array
    """Steps taken in this training, int32: also the position in the data."""
    key: jax.Array
    """Random key of this training, which the order of the data is drawn from."""


class Trainer(NamedTuple):
    """The compiled functions of a run; one compilation each, whatever the round."""

    init: Callable[[jax.Array], jp.Point]
    """Draws the initial point from a random key."""
    train: Callable[[TrainState, data.Split], tuple[TrainState, jax.Array]]
    """Takes the steps of one dispatch and donates the state; returns the loss of each, the last
    one NaN where a weight is no longer finite."""
    correct: Callable[[jp.Point, data.Split], jax.Array]
    """Tells for each example whether it is classified rightly."""
    starts: Mapping[str, int]
    """Where in the schedule the techniques begin that retrain at rates of their own."""
    sharding: NamedSharding
    """Layout of states and of data: replicated over the mesh."""


def schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Makes the learning rate by step: linear warm-up, then a drop at each named share."""
    rate, warmup = config.optimizer.learning_rate, config.schedule.warmup_steps
    drops = {
        round(share * config.train.steps) - warmup: config.schedule.drop_factor
        for share in config.schedule.drops
    }
    constant = optax.piecewise_constant_schedule(rate, drops)
    if warmup == 0:
        return constant
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), constant], [warmup])


def rates(config: ml_collections.ConfigDict) -> jp.rates.Extended:
    """Makes the learning rate by step, with that of each technique behind the dense one."""
    dense, steps = schedule(config), config_lib.retrain_steps(config)
    highest, lowest = config.optimizer.learning_rate, float(dense(config.train.steps))
    own = {
        'slr': jp.rates.slr(highest, lowest, steps),
        'clr': jp.rates.clr(highest, lowest, steps),
        'llr': jp.rates.llr(highest, steps),
    }
    return jp.rates.extend(dense, config.train.steps, own, steps)


def optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Makes the optimizer of a config, wrapped so that pruned weights stay at zero."""
    rate, c = rates(config).schedule, config.optimizer
    if c.name == 'adamw':
        return jp.pruned(optax.adamw(rate, weight_decay=c.weight_decay))
    if c.name == 'adam':
        inner = optax.adam(rate)
    else:
        inner = optax.sgd(rate, momentum=c.momentum, nesterov=c.nesterov)
    return jp.pruned(optax.chain(optax.add_decayed_weights(c.weight_decay), inner))


def make_mesh() -> Mesh:
    """Lays all devices along one axis, `'data'`."""
    return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def dispatch_steps(config: ml_collections.ConfigDict) -> int:
    """Finds the most steps, up to the config's, that divide every training of the run."""
    common = math.gcd(config.train.steps, config_lib.retrain_steps(config))
    limit = min(config.train.steps_per_dispatch, common)
    return max(steps for steps in range(1, limit + 1) if common % steps == 0)


def make_trainer(
    config: ml_collections.ConfigDict, model: nn.Module, dataset: data.Dataset, mesh: Mesh
) -> Trainer:
    """Compiles nothing yet: makes the functions of a run.

    Args:
      config: a checked config.
      model: called as `model.apply(variables, images, train=...)`, returns logits.
      dataset: its training part gives the shapes and the normalisation.
      mesh: the batch is split over its axis `'data'`, all else is replicated.

    Returns:
      Jitted functions; data are arguments, so that they live on the devices.
    """
    tx = optimizer(config)
    prepare = preprocessing(normalization(config, dataset.train))
    replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))
    batch, examples = config.train.batch_size, len(dataset.train.labels)

    def init(key: jax.Array) -> jp.Point:
        images = prepare(jnp.asarray(dataset.train.images[:1]))
        variables = dict(model.init(key, images, train=False))
        params = variables.pop('params')
        return jp.Point(params, tx.init(params), variables)

    def loss_fn(params: Any, extra: Any, images: jax.Array, labels: jax.Array) -> Any:
        logits, extra = model.apply(
            {'params': params, **extra}, images, train=True, mutable=list(extra)
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), extra

    def step(state: TrainState, images: jax.Array, labels: jax.Array) -> Any:
        images, labels = jax.lax.with_sharding_constraint((images, labels), split)
        if config.data.augment:
            key = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)
            images = data.crop_and_flip(key, images)
        params, opt_state, extra = state.point
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, extra), grads = grad_fn(params, extra, prepare(images), labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        point = jp.Point(optax.apply_updates(params, updates), opt_state, extra)
        return TrainState(point, state.step + 1, state.key), loss

    def epoch_order(state: TrainState) -> jax.Array:
        epoch = state.step // (examples // batch)
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0), epoch)
        return jax.random.permutation(key, examples)

    def train(state: TrainState, part: data.Split) -> tuple[TrainState, jax.Array]:
        def body(carry: tuple[TrainState, jax.Array], _: None) -> Any:
            state, order = carry
            place = state.step % (examples // batch)
            order = jax.lax.cond(place == 0, epoch_order, lambda _: order, state)
            chosen = jax.lax.dynamic_slice_in_dim(order, place * batch, batch)
            state, loss = step(state, part.images[chosen], part.labels[chosen])
            return (state, order), loss

        start = (state, epoch_order(state))
        (state, _), losses = jax.lax.scan(body, start, length=dispatch_steps(config))
        # what the last update does shows in no loss yet, but in the weights
        finite = jax.tree.map(lambda w: jnp.isfinite(w).all(), state.point.params)
        healthy = jnp.stack(jax.tree.leaves(finite)).all()
        return state, losses.at[-1].set(jnp.where(healthy, losses[-1], jnp.nan))

    def correct(point: jp.Point, part: data.Split) -> jax.Array:
        def predict(chosen: jax.Array) -> jax.Array:
            images = jax.lax.with_sharding_constraint(part.images[chosen], split)
            variables = {'params': point.params, **point.extra}
            logits: Any = model.apply(variables, prepare(images), train=False)
            return logits.argmax(-1) == part.labels[chosen]

        size = len(part.labels)
        batches = -(-size // batch)
        order = jnp.arange(batches * batch) % size  # the last batch is filled from the first
        return jax.lax.map(predict, order.reshape(batches, batch)).reshape(-1)[:size]

    return Trainer(
        jax.jit(init, out_shardings=replicated),
        jax.jit(train, donate_argnums=0, out_shardings=replicated),
        jax.jit(correct, out_shardings=replicated),
        rates(config).starts,
        replicated,
    )


def resident(dataset: data.Dataset, sharding: NamedSharding) -> data.Dataset:
    """Puts the images and labels of a data set onto the devices."""
    parts = {part: getattr(dataset, part) for part in ('train', 'validation', 'test')}
    return dataset._replace(**jax.device_put(parts, sharding))


def normalization(config: ml_collections.ConfigDict, part: data.Split) -> dict[str, Any]:
    """Measures how the input is normalised: `per_image`, or by mean and deviation a channel."""
    if config.data.normalize == 'per_image':
        return {'normalize': 'per_image'}
    mean, std = data.channel_moments(np.asarray(part.images))
    return {'normalize': 'dataset', 'mean': mean.tolist(), 'std': std.tolist()}


def preprocessing(about: Mapping[str, Any]) -> Callable[[jax.Array], jax.Array]:
    """Makes the function that turns raw images into the model's input.

    Args:
      about: what `normalization` measured, or what a saved model says about itself.

    Returns:
      A function of images (N, H, W, C).
    """
    if about['normalize'] == 'per_image':
        return data.standardize_each
    mean, std = (jnp.array(about[name], jnp.float32) for name in ('mean', 'std'))
    return functools.partial(data.standardize, mean=mean, std=std)
