"""Scores: how much each weight matters; higher stays, `None` where a leaf is not prunable."""

import jax
import jax.numpy as jnp

from jaxprune import tree
from jaxprune.tree import Params, Predicate, Scores


def magnitude(params: Params, *, where: Predicate = tree.prunable) -> Scores:
    """Scores each weight by |w|.

    Args:
      params: any pytree of arrays.
      where: which leaves are prunable, by path and leaf.

    Returns:
      A tree of the structure, shapes and dtypes of `params`; `None` where not prunable.

    Raises:
      ValueError: no leaf is prunable.
    Source: Han et al. 2015, arXiv:1506.02626, section 3.
    """
    return tree.map_prunable(lambda _, w: jnp.abs(w), params, where=where)


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
      ValueError: no leaf is prunable.
    """
    places = {path: place for place, (path, _) in enumerate(tree.named_leaves(params))}

    def draw(path: str, leaf: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, places[path]), jnp.shape(leaf))

    return tree.map_prunable(draw, params, where=where)
