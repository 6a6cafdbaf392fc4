"""Pytrees of parameters: paths, which leaves are prunable, a map that knows `None`."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Params: TypeAlias = Any
"""Any pytree of arrays."""

Scores: TypeAlias = Any
"""A tree like the parameters: how much each weight matters; `None` where not prunable."""

Masks: TypeAlias = Any
"""A tree like the parameters: booleans, `True` stays; `None` where the leaf is not prunable."""

Predicate: TypeAlias = Callable[[str, jax.Array], bool]
"""Whether the leaf at a path may be pruned."""


def is_none(x: Any) -> bool:
    """Tells whether x is `None`: the `is_leaf` of every walk over scores or masks."""
    return x is None


def path_name(path: tuple[Any, ...]) -> str:
    """Names a key path as `'Dense_0/kernel'`; a bare array has the empty name."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Lists `(path, leaf)` in the order of the tree, `None` leaves included."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none)
    return [(path_name(path), leaf) for path, leaf in leaves]


def prunable(path: str, leaf: jax.Array) -> bool:
    """Accepts floating-point leaves with two or more axes: kernels and embeddings, not biases."""
    del path
    return jnp.ndim(leaf) >= 2 and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def covered_by(masks: Masks) -> Predicate:
    """Makes the predicate that accepts the leaves which masks cover."""
    covered = {path for path, mask in named_leaves(masks) if mask is not None}
    return lambda path, leaf: path in covered


def map_prunable(
    f: Callable[[str, jax.Array], Any], params: Params, *, where: Predicate = prunable
) -> Any:
    """Maps f over the prunable leaves and puts `None` at the others.

    Args:
      f: function of the leaf's path and the leaf.
      params: any pytree of arrays.
      where: which leaves are prunable, by path and leaf.

    Returns:
      A tree of the structure of `params` whose other leaves are `None`.

    Raises:
      ValueError: no leaf is prunable.
    """
    found = False

    def visit(key_path: tuple[Any, ...], leaf: Any) -> Any:
        nonlocal found
        path = path_name(key_path)
        if leaf is None or not where(path, leaf):
            return None
        found = True
        return f(path, leaf)

    result = jax.tree_util.tree_map_with_path(visit, params, is_leaf=is_none)
    if not found:
        shapes = {path: jnp.shape(leaf) for path, leaf in named_leaves(params) if leaf is not None}
        raise ValueError(
            f'nothing is prunable among the {len(shapes)} leaves {_shorten(shapes)}; by default '
            'floating-point leaves with two or more axes are: pass where=lambda path, leaf: ...'
        )
    return result


def map_masked(f: Callable[..., Any], masks: Any, *trees: Any) -> Any:
    """Maps f over leaves under `masks` (or scores) first; f sees `None` where not prunable."""
    return jax.tree.map(f, masks, *trees, is_leaf=is_none)


def check_like(masks: Any, params: Any, *, like: str = 'params') -> None:
    """Raises unless `masks` has the structure of `params` and each mask its leaf's shape.

    Args:
      masks: tree to check; `None` leaves match anything.
      params: tree it must be like; where this has `None`, so must `masks`.
      like: name of the second tree in the message.

    Raises:
      ValueError: the first path that is missing, superfluous, or of another shape.
    """
    found, expected = dict(named_leaves(masks)), dict(named_leaves(params))
    for path in expected.keys() - found.keys():
        raise ValueError(f'masks have no leaf {path!r}, which {like} have')
    for path in found.keys() - expected.keys():
        raise ValueError(f'masks have a leaf {path!r}, which {like} do not have')
    for path, leaf in found.items():
        if leaf is None:
            continue
        if expected[path] is None or jnp.shape(leaf) != jnp.shape(expected[path]):
            other = None if expected[path] is None else jnp.shape(expected[path])
            raise ValueError(
                f'masks have shape {jnp.shape(leaf)} at {path!r} where {like} have {other}'
            )


def check_masks(masks: Masks, params: Params) -> None:
    """Raises unless `masks` are like `params` and boolean.

    Args:
      masks: tree to check; `None` leaves match anything.
      params: tree it must be like.

    Raises:
      ValueError: the first path that is missing, superfluous, of another shape, or not boolean.
    """
    check_like(masks, params)
    for path, leaf in named_leaves(masks):
        if leaf is not None and not jnp.issubdtype(jnp.result_type(leaf), jnp.bool_):
            raise ValueError(f'masks are {jnp.result_type(leaf)} at {path!r}, expected bool')


def in_structure_of(masks: Masks, params: Params) -> Masks:
    """Rebuilds masks with the containers of `params`, whose paths they share."""
    structure = jax.tree.structure(params, is_leaf=is_none)
    return jax.tree.unflatten(structure, jax.tree.leaves(masks, is_leaf=is_none))


def _shorten(shapes: dict[str, Any], limit: int = 8) -> str:
    shown = ', '.join(f'{path!r}: {shape}' for path, shape in list(shapes.items())[:limit])
    return '{' + shown + (', ...}' if len(shapes) > limit else '}')
