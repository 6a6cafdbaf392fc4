"""Scores of weights alone."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import layouts, tree
from jaxprune.precision import largest, over, wide
from jaxprune.tree import Params, Predicate, Scores


def magnitude(params: Params, *, where: Predicate = tree.prunable) -> Scores:
    """Scores each weight by |w|.

    Args:
      params: any pytree of arrays.
      where: which leaves are prunable, by path and leaf.

    Returns:
      A tree of the structure, shapes and dtypes of `params`; `None` where not prunable.

    Raises:
      ValueError: no leaf is prunable; `where` accepts a leaf that is not floating-point.
    Source: Han et al. 2015, arXiv:1506.02626, section 3.
    """
    return tree.map_prunable(lambda _, w: jnp.abs(w), params, where=where)


def normalized_magnitude(params: Params, *, where: Predicate = tree.prunable) -> Scores:
    """Scores each weight by |w| / ||W||₂, W the leaf that holds it.

    Makes the leaves of a tree comparable whatever their scale. Within a leaf the order is that of
    the magnitudes.

    Args:
      params: any pytree of arrays.
      where: which leaves are prunable, by path and leaf.

    Returns:
      A tree of the structure and shapes of `params`, float32 (float64 for float64), whose squares
      sum to 1 over each leaf; 0 for a leaf of zeros; `None` where not prunable.

    Raises:
      ValueError: no leaf is prunable; `where` accepts a leaf that is not floating-point.
    """

    def score(_: str, w: jax.Array) -> jax.Array:
        size = jnp.abs(wide(w))
        size = over(size, largest(size))  # else the squares may overflow, or all underflow
        return over(size, jnp.sqrt(jnp.sum(size**2)))

    return tree.map_prunable(score, params, where=where)


def lamp(params: Params, *, where: Predicate = tree.prunable) -> Scores:
    """Scores each weight by the share of its square in those that outlast it in its leaf.

    With the weights of a leaf in ascending order of magnitude, score(u) = w_u² / Σ_{v ≥ u} w_v²:
    what removing u alone would distort its leaf, once all that are smaller have gone. Pruned by one
    threshold over the whole tree, each leaf finds its own density.

    Each leaf is sorted, which holds about six arrays of its size; a sharded leaf is gathered onto
    every device for it.

    Args:
      params: any pytree of arrays; fewer than 2**31 weights a leaf.
      where: which leaves are prunable, by path and leaf.

    Returns:
      A tree of the structure and shapes of `params`, float32 (float64 for float64), in [0, 1];
      `None` where not prunable. The highest magnitude of a leaf scores exactly 1 (of equal ones the
      first), so no threshold below that empties a leaf; a larger magnitude never scores less than a
      smaller one; of equal magnitudes the lower index scores no less; 0 scores 0.

    Raises:
      ValueError: no leaf is prunable; `where` accepts a leaf that is not floating-point.
    Source: Lee et al. 2021, arXiv:2010.07611, section 2. Deviation: ties, which they leave open;
      rounding cannot turn the order within a leaf around.
    """
    return tree.map_prunable(lambda _, w: layouts.like(_lamp, w)(wide(w)), params, where=where)


def random(params: Params, key: jax.Array, *, where: Predicate = tree.prunable) -> Scores:
    """Scores each weight by an independent draw from [0, 1): the control of every comparison.

    Args:
      params: any pytree of arrays; only paths, shapes and dtypes are used.
      key: a JAX random key; each leaf draws from the key folded with its place among the leaves.
      where: which leaves are prunable, by path and leaf.

    Returns:
      A float32 tree of the structure and shapes of `params`; `None` where not prunable. Float32
      for every dtype of weights, since few bits would make ties, which go to the lower index.

    Raises:
      ValueError: no leaf is prunable; `where` accepts a leaf that is not floating-point; a key that
        is none.
    """
    if not isinstance(key, jax.Array):
        raise ValueError(f'key must be a JAX random key, such as jax.random.key(0), got {key!r}')
    places = {path: place for place, (path, _) in enumerate(tree.named_leaves(params))}

    def draw(path: str, leaf: jax.Array) -> jax.Array:
        leaf_key = jax.random.fold_in(key, places[path])
        return jax.random.uniform(leaf_key, jnp.shape(leaf), jnp.float32)

    return tree.map_prunable(draw, params, where=where)


def _lamp(w: jax.Array) -> jax.Array:
    size = jnp.abs(w).ravel()
    size = over(size, largest(size))  # squares neither overflow nor all underflow
    order = jnp.argsort(-size, stable=True)  # descending: the sum over v ≥ u ends at u
    squares = size[order] ** 2
    ranked = over(squares, jnp.cumsum(squares))
    ranked = lax.cummin(ranked)  # rounding must not turn the order within a leaf around
    return jnp.zeros_like(size).at[order].set(ranked, unique_indices=True).reshape(w.shape)
