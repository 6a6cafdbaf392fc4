"""Averages of gradients over batches, added up in float32 and in memory that holds one batch.

The floating-point leaves of the parameters are differentiated by copies in float32 (float64 stays),
which the loss sees in the dtype that they had; all others are constants, and `None` in the result.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import tree
from jaxprune.precision import wide
from jaxprune.tree import Params

Loss: TypeAlias = Callable[[Params, Any], jax.Array]
"""The loss of parameters on one batch: a floating-point scalar."""

Gradient: TypeAlias = Callable[[Params, Any], Params]
"""The gradient of a loss, by `wide_floats`, on one batch."""


def mean_gradient(loss: Loss, params: Params, batches: Any) -> Params:
    """Averages the gradient of a loss over batches.

    E[g] = 1/B Σ_b ∂loss(params, batch_b)/∂params, one batch after the other: memory does not grow
    with B. Where each batch has its loss averaged, this is the gradient on all of them at once.

    Inside `pmap` or `shard_map` each device averages over its own batches; `jax.lax.pmean` joins
    the results. Eagerly each call compiles anew: call it inside `jit` to do so once.

    Args:
      loss: `loss(params, batch)`, a floating-point scalar; it closes over what else it needs.
      params: any pytree of arrays.
      batches: a pytree of arrays that share their leading axis, of length B ≥ 1; batch b holds
        their entries b.

    Returns:
      A tree of the structure and shapes of `params`, float32 (float64 for float64); `None` where a
      leaf is not floating-point.

    Raises:
      ValueError: no batches; leading axes that differ; no floating-point leaf in `params`; a loss
        that is not a floating-point scalar.
    """
    length_of(batches)
    return mean_over(gradient_of(loss, params), wide_floats(params, batches), batches)


def mean_squared_gradient(loss: Loss, params: Params, examples: Any, *, batch_size: int) -> Params:
    """Averages the square of each example's own gradient: the diagonal of the empirical Fisher.

    E[g²] = 1/N Σ_n (∂loss(params, example_n)/∂params)². The square of a batch's mean gradient is
    something else, and smaller. As for devices and compilation, see `mean_gradient`.

    Args:
      loss: `loss(params, example)`, a floating-point scalar, of one example without a batch axis.
      params: any pytree of arrays.
      examples: a pytree of arrays that share their leading axis, of length N ≥ 1.
      batch_size: how many examples to differentiate at a time; so many gradients are held at
        once. It need not divide N, and changes the result by rounding alone.

    Returns:
      A tree of the structure and shapes of `params`, float32 (float64 for float64), nowhere
      negative; `None` where a leaf is not floating-point.

    Raises:
      ValueError: no examples; leading axes that differ; a batch size that is not a whole number of
        1 or more; no floating-point leaf in `params`; a loss that is not a floating-point scalar.
    """
    count = length_of(examples, 'examples')
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f'batch_size is {batch_size!r}, expected a whole number of 1 or more')
    batch_size = min(batch_size, count)
    gradients = jax.vmap(gradient_of(loss, params), in_axes=(None, 0))
    floats = wide_floats(params, examples)

    def squares(floats: Params, chunk: Any) -> Params:
        return jax.tree.map(lambda g: jnp.sum(g**2, axis=0), gradients(floats, chunk))

    whole = count // batch_size * batch_size
    chunks = jax.tree.map(
        lambda x: x[:whole].reshape(count // batch_size, batch_size, *x.shape[1:]), examples
    )
    total = _sum_over(squares, floats, chunks)
    if whole < count:
        rest = jax.tree.map(lambda x: x[whole:], examples)
        total = jax.tree.map(jnp.add, total, squares(floats, rest))
    return jax.tree.map(lambda x: x / count, total)


def mean_over(f: Gradient, floats: Params, batches: Any) -> Params:
    """Averages a function of the parameters and a batch, whose values are like the parameters."""
    count = length_of(batches)
    return jax.tree.map(lambda x: x / count, _sum_over(f, floats, batches))


def gradient_of(loss: Callable[..., jax.Array], params: Params) -> Callable[..., Params]:
    """Makes the gradient of a loss by the wide copies of the floating-point leaves of params."""

    def value(floats: Params, *batch: Any) -> jax.Array:
        cast = lambda x, w: w if x is None else x.astype(jnp.result_type(w))
        found = loss(tree.map_masked(cast, floats, params), *batch)
        check_float(found, 'loss', scalar=True)
        return found

    return jax.grad(value)


def wide_floats(params: Params, batches: Any = None) -> Params:
    """Copies the floating-point leaves, at least float32, and puts `None` at the others.

    Inside `shard_map` they vary between devices as the batches do: otherwise the gradient by
    replicated parameters would be a sum over devices.
    """
    zeros = [jnp.sum(jnp.zeros_like(x[:0], jnp.float32)) for x in jax.tree.leaves(batches)]

    def copy(leaf: Any) -> jax.Array | None:
        if leaf is None or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return None
        return functools.reduce(lambda x, zero: x + zero.astype(x.dtype), zeros, wide(leaf))

    floats = jax.tree.map(copy, params, is_leaf=tree.is_none)
    if not jax.tree.leaves(floats):
        raise ValueError('params have no floating-point leaf to differentiate by')
    return floats


def length_of(batches: Any, name: str = 'batches') -> int:
    """Counts batches; raises `ValueError` where there are none or their leading axes differ."""
    shapes = {path: jnp.shape(x) for path, x in tree.named_leaves(batches) if x is not None}
    if not shapes:
        raise ValueError(f'there are no {name}: the tree holds no array')
    first, shape = next(iter(shapes.items()))
    for path, other in shapes.items():
        if not other:
            raise ValueError(
                f'{name} hold a scalar at {path!r}, expected a leading axis over the {name}: '
                'stack one value for each of them'
            )
        if other[0] != shape[0]:
            raise ValueError(
                f'{name} have shape {other} at {path!r} but {shape} at {first!r}, expected one '
                f'length of the leading axis, which counts the {name}'
            )
    if not shape[0]:
        raise ValueError(f'there are no {name}: their leading axis has length 0')
    return shape[0]


def check_float(value: Any, name: str, *, scalar: bool) -> None:
    """Raises `ValueError` unless a function returned one floating-point array, or scalar."""
    if not jax.tree_util.all_leaves([value]):
        raise ValueError(f'{name} returns a {type(value).__name__}, expected one array')
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f'{name} returns {dtype}, expected floating-point values')
    if scalar and shape:
        raise ValueError(
            f'{name} returns an array of shape {shape}, expected a scalar: take its mean'
        )


def _sum_over(f: Gradient, floats: Params, batches: Any) -> Params:
    def add(total: Params, batch: Any) -> tuple[Params, None]:
        return jax.tree.map(jnp.add, total, f(floats, batch)), None

    return lax.scan(add, jax.tree.map(jnp.zeros_like, floats), batches)[0]
