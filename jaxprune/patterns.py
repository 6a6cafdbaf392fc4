"""Patterns: which weights of a leaf stay or go together.

A pattern turns the scores of a leaf into units. Units are chosen as single weights are, by any
score and any allocation, and the choice is spread over the weights.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import precision

Reduce: TypeAlias = Literal['sum', 'mean', 'max']
"""How the scores of the weights in a unit become the score of the unit."""


class Units(NamedTuple):
    """The units of one leaf."""

    scores: jax.Array
    """One score a unit; higher stays."""
    size: int
    """Weights that a unit holds."""
    always: int
    """Weights of the leaf that are in no unit and stay whatever is chosen."""
    spread: Callable[[jax.Array], jax.Array]
    """Makes the mask of the weights from booleans of the shape of `scores`, `True` stays."""


Pattern: TypeAlias = Callable[[str, jax.Array], Units]
"""Makes the units of the leaf at a path from its scores; excluded weights score -inf."""


def unstructured(path: str, scores: jax.Array) -> Units:
    """Makes each weight a unit of its own.

    Args:
      path: name of the leaf.
      scores: of its weights.

    Returns:
      Units of one weight.
    """
    del path
    return Units(scores, 1, 0, lambda chosen: chosen)


def blocks(shape: Sequence[int], *, reduce: Reduce = 'sum') -> Pattern:
    """Makes blocks of neighbouring weights stay or go together, such as 1 × 4 for CPU kernels.

    Args:
      shape: of a block, over the last axes of a leaf; (1, 4) is four neighbours in a row.
      reduce: whether the sum, the mean or the highest of its scores is the score of a block; the
        mean where blocks of several sizes share a budget.

    Returns:
      The pattern; it raises `ValueError` for a leaf of fewer axes, or with an axis that the block
      does not divide.
    Source: Narang et al. 2017, arXiv:1711.02782, section 3 (max); Gale et al. 2020,
      arXiv:2006.10901, for the kernels.
    """
    shape = tuple(shape)
    if not shape or not all(isinstance(n, int) and n >= 1 for n in shape):
        raise ValueError(f'a block must have whole sides of at least 1, got {shape}')
    pool = _reducer(reduce)

    def pattern(path: str, scores: jax.Array) -> Units:
        whole = scores.shape
        sides = whole[len(whole) - len(shape) :]
        if len(whole) < len(shape) or any(n % b for n, b in zip(sides, shape, strict=True)):
            raise ValueError(
                f'blocks of {_times(shape)} do not fit leaf {path!r} of shape {whole}: choose '
                'sides that divide its last axes, give this leaf another pattern by its path, or '
                'leave it out with where='
            )
        split = list(whole[: len(whole) - len(shape)])
        inside = []
        for n, b in zip(sides, shape, strict=True):
            inside.append(len(split) + 1)
            split += [n // b, b]
        pooled = pool(scores.reshape(split), tuple(inside))

        def spread(chosen: jax.Array) -> jax.Array:
            return jnp.broadcast_to(jnp.expand_dims(chosen, inside), split).reshape(whole)

        return Units(pooled, math.prod(shape), 0, spread)

    return pattern


def channels(axis: int = -1, *, reduce: Reduce = 'sum') -> Pattern:
    """Makes all weights with one index on an axis stay or go together: rows, columns, filters.

    Args:
      axis: of the channels; -1 is the outputs of a kernel, -2 its inputs.
      reduce: whether the sum, the mean or the highest of its scores is the score of a channel. The
        sum of magnitudes is the L1 norm of Li et al.; over several leaves it favours large
        channels, the mean does not.

    Returns:
      The pattern; it raises `ValueError` for a leaf without that axis.
    Source: Li et al. 2017, arXiv:1608.08710, section 3.1 (L1 norm of filters).
    """
    pool = _reducer(reduce)

    def pattern(path: str, scores: jax.Array) -> Units:
        whole = scores.shape
        here = _axis(axis, path, whole)
        others = tuple(i for i in range(len(whole)) if i != here)
        size = math.prod(whole[i] for i in others)
        return Units(
            pool(scores, others),
            size,
            0,
            lambda chosen: jnp.broadcast_to(jnp.expand_dims(chosen, others), whole),
        )

    return pattern


def n_of_m(n: int, m: int, *, axis: int = -2) -> Pattern:
    """Keeps n of each m neighbours along an axis, in all groups or, at higher densities, in some.

    The n highest of a group always stay; the m - n others stay or go together. So a density of
    n / m prunes all groups, and one above it those groups whose lowest scores sum to least. Equal
    scores keep the lower index.

    Args:
      n: weights that stay in a pruned group, in [1, m).
      m: weights in a group.
      axis: the groups lie along; by default the contraction axis of a kernel.

    Returns:
      The pattern; it raises `ValueError` for a leaf without that axis, or where m does not divide
      it.
    Source: Zhou et al. 2021, arXiv:2102.04010, eq. 1. Deviation: by fraction of groups, where a
      density above n / m is asked for.
    """
    if not (isinstance(n, int) and isinstance(m, int) and 1 <= n < m):
        raise ValueError(f'n of m must be whole with 1 <= n < m, got {n} of {m}')
    pool = _reducer('sum')

    def pattern(path: str, scores: jax.Array) -> Units:
        whole = scores.shape
        here = _axis(axis, path, whole)
        if whole[here] % m:
            raise ValueError(
                f'{n} of {m} does not fit leaf {path!r} of shape {whole}: {m} does not divide the '
                f'{whole[here]} weights of its axis {axis}; give this leaf another pattern by its '
                'path, or leave it out with where='
            )
        split = (*whole[:here], whole[here] // m, m, *whole[here + 1 :])
        grouped = scores.reshape(split)
        stays = _highest(grouped, n, here + 1)
        lowest = pool(jnp.where(stays, jnp.full_like(grouped, -jnp.inf), grouped), (here + 1,))

        def spread(chosen: jax.Array) -> jax.Array:
            return (stays | jnp.expand_dims(chosen, here + 1)).reshape(whole)

        return Units(lowest, m - n, scores.size // m * n, spread)

    return pattern


def _highest(grouped: jax.Array, n: int, axis: int) -> jax.Array:
    """Marks the n highest along a short axis; of equal ones the first.

    Each place along the axis is an array of its own: XLA for TPU pads an axis of four to eight.
    """
    places = [jax.lax.index_in_dim(grouped, i, axis, False) for i in range(grouped.shape[axis])]

    def stays(i: int) -> jax.Array:
        before, after = places[:i], places[i + 1 :]
        wins = [other >= places[i] for other in before] + [other > places[i] for other in after]
        return functools.reduce(jnp.add, [win.astype(jnp.int32) for win in wins]) < n

    return jnp.stack([stays(i) for i in range(len(places))], axis)


def _reducer(reduce: Reduce) -> Callable[[jax.Array, tuple[int, ...]], jax.Array]:
    """Pools over axes in at least float32; a unit whose weights are all excluded is so itself."""
    if reduce not in ('sum', 'mean', 'max'):
        raise ValueError(f"reduce must be 'sum', 'mean' or 'max', got {reduce!r}")

    def pool(scores: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        scores = precision.wide(scores)
        if reduce == 'max':
            return jnp.max(scores, axes)
        left = scores > -jnp.inf
        total = jnp.sum(jnp.where(left, scores, jnp.zeros_like(scores)), axes)
        if reduce == 'mean':
            total /= math.prod(scores.shape[axis] for axis in axes)
        return jnp.where(jnp.any(left, axes), total, jnp.full_like(total, -jnp.inf))

    return pool


def _axis(axis: int, path: str, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f'leaf {path!r} of shape {shape} has no axis {axis}: choose another axis, or leave the '
            'leaf out with where='
        )
    return int(np.arange(len(shape))[axis])


def _times(shape: Sequence[int]) -> str:
    return ' × '.join(map(str, shape))
