"""Pytrees of parameters: paths, which leaves are prunable, a map that knows `None`."""

import fnmatch
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias, TypeVar

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


T = TypeVar('T')


def is_none(x: Any) -> bool:
    """Tells whether x is `None`: the `is_leaf` of every walk over scores or masks."""
    return x is None


def path_name(path: tuple[Any, ...]) -> str:
    """Names a key path as `'Dense_0/kernel'`; a bare array has the empty name."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Lists `(path, leaf)` in the order of the tree, `None` leaves included.

    Raises `ValueError` where two leaves have one path, as when a key holds a slash.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none)
    named = [(path_name(path), leaf) for path, leaf in leaves]
    if len({path for path, _ in named}) < len(named):
        twice = next(path for path, _ in named if [p for p, _ in named].count(path) > 1)
        raise ValueError(f"two leaves have the path {twice!r}: use no keys that hold '/'")
    return named


def present(tree: Any) -> list[tuple[str, Any]]:
    """Lists `(path, leaf)` without the `None` leaves."""
    return [(path, leaf) for path, leaf in named_leaves(tree) if leaf is not None]


def arrays(tree: Any) -> list[tuple[str, Any]]:
    """Lists `(path, leaf)` as `present`; raises `ValueError` at a leaf that is no array."""
    named = present(tree)
    for path, leaf in named:
        check_array(path, leaf)
    return named


def check_array(path: str, leaf: Any) -> None:
    """Raises `ValueError` unless a leaf is an array, or stands for one."""
    if not hasattr(leaf, 'shape') or not hasattr(leaf, 'dtype'):
        raise ValueError(
            f'leaf {path!r} is {leaf!r}, a {type(leaf).__name__}: make it an array, as by '
            'jnp.asarray, or leave it out of the parameters'
        )


def prunable(path: str, leaf: jax.Array) -> bool:
    """Accepts floating-point leaves with two or more axes: kernels, embeddings, positions.

    Not those called `bias` or `scale`, or `q_bias`, which have several axes too where they are
    those of heads, or of layers that a scan stacks.
    """
    *_, own = [''] + [name for name in path.split('/') if name != 'value']  # NNX: `bias/value`
    of_each = own.split('_')[-1] in ('bias', 'scale')
    return (
        not of_each and jnp.ndim(leaf) >= 2 and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    )


def covered_by(masks: Masks) -> Predicate:
    """Makes the predicate that accepts the leaves which masks cover."""
    covered = {path for path, mask in named_leaves(masks) if mask is not None}
    return lambda path, leaf: path in covered


def by_path(rules: Mapping[str, T], paths: Collection[str]) -> dict[str, T]:
    """Finds what rules say of each path.

    Args:
      rules: by path, or by a pattern in which `*` stands for anything, `/` included; a path itself
        wins over patterns.
      paths: of the leaves that the rules are for.

    Returns:
      The value of each path that a rule matches.

    Raises:
      ValueError: a rule that matches no path; patterns that give one path different values.
    """
    found: dict[str, T] = {path: rules[path] for path in paths if path in rules}
    for rule, value in rules.items():
        matched = [path for path in paths if fnmatch.fnmatchcase(path, rule)]
        if rule not in paths and not matched:
            raise ValueError(f'the rule {rule!r} matches no leaf among {sorted(paths)}')
        for path in matched:
            if path not in rules and found.setdefault(path, value) != value:
                raise ValueError(
                    f'rules contradict each other at leaf {path!r}: {found[path]} and, by '
                    f'{rule!r}, {value}; name the leaf itself, which wins'
                )
    return found


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
      ValueError: no leaf is prunable; `where` accepts a leaf that is not floating-point; a leaf is
        no array or number.
    """
    found = False

    def visit(key_path: tuple[Any, ...], leaf: Any) -> Any:
        nonlocal found
        path = path_name(key_path)
        if leaf is not None and not isinstance(leaf, int | float | complex):
            check_array(path, leaf)
        if leaf is None or not where(path, leaf):
            return None
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f'leaf {path!r} is {jnp.result_type(leaf)} and cannot be pruned: choose '
                'floating-point leaves with where=lambda path, leaf: ...'
            )
        found = True
        return f(path, leaf)

    result = jax.tree_util.tree_map_with_path(visit, params, is_leaf=is_none)
    if not found:
        shapes = {path: jnp.shape(leaf) for path, leaf in named_leaves(params) if leaf is not None}
        raise ValueError(
            f'nothing is prunable among the {len(shapes)} leaves {_shorten(shapes)}; by default '
            'floating-point leaves with two or more axes are, save those called bias or scale: '
            'pass where=lambda path, leaf: ...'
        )
    return result


def map_masked(f: Callable[..., Any], masks: Any, *trees: Any) -> Any:
    """Maps f over leaves under `masks` (or scores) first; f sees `None` where not prunable."""
    return jax.tree.map(f, masks, *trees, is_leaf=is_none)


def check_like(masks: Any, params: Any, *, name: str = 'masks', like: str = 'params') -> None:
    """Raises unless `masks` has the structure of `params` and each mask its leaf's shape.

    Args:
      masks: tree to check; `None` matches any leaf, or a whole branch.
      params: tree it must be like; where this has `None`, so must `masks`.
      name: of the first tree in the message.
      like: name of the second tree in the message.

    Raises:
      ValueError: the first path that is missing, superfluous, or of another shape.
    """
    found, expected = dict(named_leaves(masks)), dict(named_leaves(params))
    branches = [path for path, leaf in found.items() if leaf is None and path not in expected]
    for path in [p for p in expected if p not in found]:
        if any(_is_under(path, branch) for branch in branches):
            continue
        raise ValueError(f'{name} have no leaf {path!r}, which {like} have')
    for path in [p for p in found if p not in expected]:
        if path in branches and any(_is_under(other, path) for other in expected):
            continue
        raise ValueError(f'{name} have a leaf {path!r}, which {like} do not have')
    for path, leaf in found.items():
        if leaf is None:
            continue
        if expected[path] is None or jnp.shape(leaf) != jnp.shape(expected[path]):
            other = None if expected[path] is None else jnp.shape(expected[path])
            raise ValueError(
                f'{name} have shape {jnp.shape(leaf)} at {path!r} where {like} have {other}'
            )


def check_masks(masks: Masks, params: Params, *, like: str = 'params') -> None:
    """Raises unless `masks` are like `params` and boolean.

    Args:
      masks: tree to check; `None` leaves match anything.
      params: tree it must be like.
      like: name of the second tree in the message.

    Raises:
      ValueError: the first path that is missing, superfluous, of another shape, or not boolean.
    """
    check_boolean(masks)
    check_like(masks, params, like=like)


def check_boolean(masks: Masks) -> None:
    """Raises `ValueError` at the first leaf that is neither boolean nor `None`."""
    for path, leaf in present(masks):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.bool_):
            raise ValueError(
                f'masks are {jnp.result_type(leaf)} at {path!r}, expected bool: compare, as in '
                'mask != 0, and give None where a leaf is not prunable'
            )


def in_structure_of(masks: Masks, params: Params) -> Masks:
    """Rebuilds masks with the containers and leaves of `params`, which they are like."""
    given = dict(named_leaves(masks))
    return jax.tree.map_with_path(
        lambda path, _: given.get(path_name(path)), params, is_leaf=is_none
    )


def _is_under(path: str, branch: str) -> bool:
    return not branch or path.startswith(f'{branch}/')


def _shorten(shapes: dict[str, Any], limit: int = 8) -> str:
    shown = ', '.join(f'{path!r}: {shape}' for path, shape in list(shapes.items())[:limit])
    return '{' + shown + (', ...}' if len(shapes) > limit else '}')
