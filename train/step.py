"""One network and its optimizer: how it is drawn, what a step does, what it predicts."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.typing import DTypeLike

import jaxprune as jp
from train import data
from train.rates import rates

Batch: TypeAlias = tuple[jax.Array, jax.Array]
"""Raw inputs and labels."""


class Learner(NamedTuple):
    """The pure functions of one network, without a replicate axis."""

    init: Callable[[jax.Array], jp.Point]
    """Draws the initial point from a random key."""
    step: Callable[[jp.Point, jax.Array, jax.Array, Batch], tuple[jp.Point, jax.Array]]
    """Takes step `number` of a training with a key on a batch; returns the loss before it."""
    predict: Callable[[jp.Point, jax.Array], jax.Array]
    """Makes logits of raw inputs, as a finished network does."""
    reset: Callable[[jp.tree.Params], optax.OptState]
    """Makes the state of the optimizer afresh."""


def make_learner(
    config: ml_collections.ConfigDict,
    model: nn.Module,
    about: Mapping[str, Any],
    like: Any,
    rewrite: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda fn: fn,
) -> Learner:
    """Makes the functions of a network.

    Args:
      config: a checked config.
      model: called as `model.apply(variables, inputs, train=...)`, returns logits.
      about: the normalisation of its input pipeline.
      like: one raw input, with a leading axis of length 1.
      rewrite: makes a function of smaller variables from one of the model's; `init` is not.

    Returns:
      Pure functions, for jit.
    """
    tx, prepare = optimizer(config), preprocessing(about)

    def init(key: jax.Array) -> jp.Point:
        variables = dict(model.init(key, prepare(jnp.asarray(like)), train=False))
        params = variables.pop('params')
        return jp.Point(params, tx.init(params), variables)

    @rewrite
    def in_training(variables: Any, inputs: jax.Array) -> Any:
        mutable = [name for name in variables if name != 'params']
        return model.apply(variables, inputs, train=True, mutable=mutable)

    @rewrite
    def finished(variables: Any, inputs: jax.Array) -> Any:
        return model.apply(variables, inputs, train=False)

    def loss_fn(params: Any, extra: Any, inputs: jax.Array, labels: jax.Array) -> Any:
        logits, extra = in_training({'params': params, **extra}, inputs)
        return cross_entropy(logits, labels).mean(), extra

    def step(point: jp.Point, number: jax.Array, key: jax.Array, batch: Batch) -> Any:
        inputs, labels = batch
        if config.data.augment:
            key = jax.random.fold_in(jax.random.fold_in(key, 1), number)
            inputs = data.crop_and_flip(key, inputs)
        params, opt_state, extra = point
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, extra), grads = grad_fn(params, extra, prepare(inputs), labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        return jp.Point(optax.apply_updates(params, updates), opt_state, extra), loss

    def predict(point: jp.Point, inputs: jax.Array) -> jax.Array:
        logits: Any = finished({'params': point.params, **point.extra}, prepare(inputs))
        return logits

    return Learner(init, step, predict, tx.init)


def check_fit(
    learner: Learner, inputs: tuple[int, ...], labels: tuple[int, ...], dtype: DTypeLike
) -> None:
    """Raises `ValueError` where a network cannot take a step on a batch of these shapes."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = jax.ShapeDtypeStruct(inputs, dtype), jax.ShapeDtypeStruct(labels, jnp.int32)
    try:
        point = jax.eval_shape(learner.init, key)
        jax.eval_shape(learner.step, point, jax.ShapeDtypeStruct((), jnp.int32), key, batch)
    except (TypeError, ValueError, flax.errors.FlaxError) as error:
        raise ValueError(
            f'the network of config.model does not train on inputs {inputs} with labels {labels}, '
            f'batches of config.data: {error}'
        ) from error


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Measures each prediction, in nats, the shape of `labels`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformationExtraArgs:
    """Makes the optimizer of a config, wrapped so that pruned weights stay at zero."""
    rate, c = rates(config).schedule, config.optimizer
    decay = None if c.decay_norms else _is_no_norm
    if c.name == 'adamw':
        parts = [optax.adamw(rate, weight_decay=c.weight_decay, mask=decay)]
    else:
        sgd = optax.sgd(rate, momentum=c.momentum, nesterov=c.nesterov)
        inner = optax.adam(rate) if c.name == 'adam' else sgd
        parts = [optax.add_decayed_weights(c.weight_decay, decay), inner]
    if c.clip_norm is not None:
        parts = [optax.clip_by_global_norm(c.clip_norm), *parts]
    if 'allr' in config.retrain.techniques:
        parts = [*parts, jp.rates.scale_by_factor()]
    return jp.pruned(optax.chain(*parts))


def preprocessing(about: Mapping[str, Any]) -> Callable[[jax.Array], jax.Array]:
    """Makes the function that turns raw inputs into the model's.

    Args:
      about: the normalisation of an input pipeline, or what a saved model says about itself.

    Returns:
      A function of inputs (N, ..., C), or of tokens, which stay as they are.
    """
    if about['normalize'] == 'none':
        return lambda inputs: inputs
    if about['normalize'] == 'per_image':
        return data.standardize_each
    mean, std = (jnp.array(about[name], jnp.float32) for name in ('mean', 'std'))
    return functools.partial(data.standardize, mean=mean, std=std)


def _is_no_norm(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: 'Norm' not in jp.tree.path_name(path), params)
