"""Budgets: how many weights each leaf keeps, or a group of leaves together."""

import functools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import counting, tree
from jaxprune.counting import Count

Density: TypeAlias = float | jax.Array
Keep: TypeAlias = int | Count
T = TypeVar('T')

NOT_TRACED = (
    'this needs a density that is known when it is compiled, not a traced one: give it as a Python '
    'number; under optax.inject_hyperparams, name it in static_args'
)


class Budget(NamedTuple):
    """How many weights each group of leaves keeps; a leaf alone is a group of one."""

    keeps: Sequence[Keep]
    """Weights to keep, a group; Python integers unless traced."""
    groups: Sequence[int]
    """For each leaf the index of its group."""
    last: Sequence[Keep]
    """Weights to keep in the end, at progress 1."""


def together(
    sizes: Mapping[str, int],
    density: Density,
    rules: Mapping[str, float] | None,
    progress: Density,
) -> Budget:
    """Lets leaves share a budget, but for those that rules give their own.

    Args:
      sizes: weights of each leaf by path.
      density: share of all weights that stays, in (0, 1].
      rules: densities of single leaves, which win.
      progress: share of the way from dense to these densities, in [0, 1].

    Returns:
      The budget; its first groups are the leaves with rules, its last one all the others.

    Raises:
      ValueError: as `uniform`.
    """
    fixed = fixed_by(sizes, rules)
    total = sum(sizes.values())
    paths = list(fixed)
    others = {path: size for path, size in sizes.items() if path not in fixed}
    keep: Keep
    if _is_traced(density):
        if fixed:
            raise ValueError('rules need a density that is a number, not traced: give progress')
        keep = counting.share(density, total)
    else:
        keep = rest(whole(density, total, 'the tree'), fixed, others)
    last: list[Keep] = [keep for keep, _ in fixed.values()]
    totals = [size for _, size in fixed.values()]
    if others:
        last.append(keep)
        totals.append(sum(others.values()))
    groups = [paths.index(path) if path in fixed else len(fixed) for path in sizes]
    return _budget(last, totals, groups, progress)


def apart(
    sizes: Mapping[str, int],
    density: Density | Mapping[str, float],
    progress: Density,
    *,
    allow_empty: bool = False,
) -> Budget:
    """Gives each leaf its own budget.

    Args:
      sizes: weights of each leaf by path.
      density: share of each leaf that stays, in (0, 1], or such shares by path or pattern.
      progress: share of the way from dense to these densities, in [0, 1].
      allow_empty: whether a density may be 0, or so small that nothing stays.

    Returns:
      The budget; group i is leaf i.

    Raises:
      ValueError: a density outside (0, 1], or that keeps nothing; a leaf without one.
    """
    densities: dict[str, Density]
    if isinstance(density, Mapping):
        densities = dict(tree.by_path(density, sizes))
        for path in sizes:
            if path not in densities:
                raise ValueError(f'no density is given for leaf {path!r}: add it, or a pattern')
    else:
        densities = dict.fromkeys(sizes, density)
    last = [
        counting.share(densities[path], size)
        if _is_traced(densities[path])
        else whole(densities[path], size, f'leaf {path!r}', allow_empty=allow_empty)
        for path, size in sizes.items()
    ]
    return _budget(last, list(sizes.values()), list(range(len(sizes))), progress)


def whole(density: Density, total: int, where: str, *, allow_empty: bool = False) -> int:
    """Rounds density · total to a whole number of weights, halves to even.

    Args:
      density: share that stays, in (0, 1].
      total: number of weights.
      where: whose weights they are, for the message.
      allow_empty: whether the density may be 0, or so small that nothing stays.

    Returns:
      Weights to keep, at least 1 of some.

    Raises:
      ValueError: a density outside (0, 1], or so small that nothing stays.
    """
    if not (allow_empty and is_number(density) and float(density) == 0):
        check_density(density, where)
    keep = round(float(density) * total)
    if keep == 0 and total and not allow_empty:
        raise ValueError(
            f'density {density} keeps none of the {total} weights of {where}: '
            f'ask for at least {1 / max(total, 1):.3g}'
        )
    return keep


def check_room(budget: Budget, needed: Mapping[str, int], why: str) -> None:
    """Raises unless each group's budget holds what its leaves need, to the end.

    Args:
      budget: weights to keep; a traced density passes, a traced progress does not.
      needed: weights by the path of each leaf.
      why: what needs them, and the remedy, for the message.

    Raises:
      ValueError: a group that needs more than its budget.
    """
    for keep, members in zip(budget.last, members_of(budget, needed), strict=True):
        if isinstance(keep, int) and sum(members.values()) > keep:
            where = (
                f'leaf {next(iter(members))!r}' if len(members) == 1 else f'{len(members)} leaves'
            )
            raise ValueError(
                f'the density asks for {keep} weights of {where}, fewer than the '
                f'{sum(members.values())} {why}'
            )


def check_untraced(density: Density | Mapping[str, Density]) -> None:
    """Raises `ValueError` for a traced density, or one among those by path."""
    if any(map(_is_traced, density.values() if isinstance(density, Mapping) else [density])):
        raise ValueError(NOT_TRACED)


def members_of(budget: Budget, leaves: Mapping[str, T]) -> list[dict[str, T]]:
    """Sorts what is given for each leaf by path into the groups of a budget."""
    found: list[dict[str, T]] = [{} for _ in budget.keeps]
    for (path, leaf), group in zip(leaves.items(), budget.groups, strict=True):
        found[group][path] = leaf
    return found


def without(budget: Budget, always: Mapping[str, Keep]) -> list[Keep]:
    """Takes from each group's budget what stays whatever is chosen; none is left of one too small.

    Args:
      budget: weights to keep.
      always: for each leaf by path, weights that stay anyway; counts may be traced.

    Returns:
      For each group the weights left to choose.
    """
    left: list[Keep] = []
    for keep, members in zip(budget.keeps, members_of(budget, always), strict=True):
        whole = sum(n for n in members.values() if isinstance(n, int))
        counted = [n for n in members.values() if not isinstance(n, int)]
        if isinstance(keep, int) and not counted:
            left.append(max(keep - whole, 0))
        else:
            firm = functools.reduce(counting.add, counted, counting.from_int(whole))
            wanted = counting.from_int(keep) if isinstance(keep, int) else keep
            left.append(_at_least_none(wanted, firm))
    return left


def check_density(density: Density, where: str = 'the tree') -> None:
    """Raises `ValueError` unless a density is a number in (0, 1]."""
    if isinstance(density, Mapping):
        raise ValueError(
            'densities by path are for masks.leaf_top; this takes one density, and global_top '
            f'rules= for single leaves; got {density!r}'
        )
    if not is_number(density) or not 0 < float(density) <= 1:
        raise ValueError(f'density must be a number in (0, 1], got {density!r} for {where}')


def is_number(value: Any) -> bool:
    """Tells whether a value is one real number, of Python, NumPy or JAX; not a boolean."""
    if isinstance(value, str | bytes | bool) or value is None or np.ndim(value):
        return False
    dtype = jnp.result_type(value) if isinstance(value, jax.Array) else np.asarray(value).dtype
    return bool(jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))


def _at_least_none(keep: Count, firm: Count) -> Count:
    """Subtracts; 0 where a traced budget, which cannot be refused, is too small."""
    short = counting.less(keep, firm)
    return counting.each(
        lambda n: jnp.where(short, jnp.uint32(0), n), counting.subtract(keep, firm)
    )


def fixed_by(
    sizes: Mapping[str, int], rules: Mapping[str, float] | None
) -> dict[str, tuple[int, int]]:
    """Weights to keep, and size, of each leaf that has a rule."""
    found = tree.by_path(rules or {}, sizes)
    return {
        path: (whole(found[path], sizes[path], f'leaf {path!r}'), sizes[path])
        for path in sizes
        if path in found
    }


def rest(keep: int, fixed: Mapping[str, tuple[int, int]], others: Mapping[str, int]) -> int:
    """What of a budget is left to the leaves without a rule.

    Where every leaf has one, rules that keep as much as the density asks for, but for the half a
    weight that each rounding may take, decide.
    """
    taken, room = sum(count for count, _ in fixed.values()), sum(others.values())
    if not others:
        if 2 * abs(keep - taken) > len(fixed) + 1:
            total = sum(size for _, size in fixed.values())
            raise ValueError(
                f'the density asks for {keep} weights in all, but the rules, which cover every '
                f'leaf, keep {taken}: set the density to {taken / total:.6g}, or take out a rule'
            )
        return 0
    if not room:
        raise ValueError(
            f'the leaves {sorted(others)} hold no weights to choose from: leave them out by where='
        )
    if not 0 <= keep - taken <= room or keep == taken:
        raise ValueError(
            f'the density asks for {keep} weights in all, of which the rules keep {taken}: the '
            f'{keep - taken} that are left do not suit the {len(others)} leaves without a rule, '
            f'which have {room}; change the density or the rules'
        )
    return keep - taken


def _budget(
    last: Sequence[Keep], totals: Sequence[int], groups: Sequence[int], progress: Density
) -> Budget:
    way = [_on_the_way(keep, n, progress) for keep, n in zip(last, totals, strict=True)]
    return Budget(way, groups, last)


def _on_the_way(keep: Keep, total: int, progress: Density) -> Keep:
    """The weights kept when a share of those to be pruned is: all of them at 0, `keep` at 1."""
    if not _is_traced(progress):
        if not is_number(progress) or not 0 <= float(progress) <= 1:
            raise ValueError(f'progress must be a number in [0, 1], got {progress!r}')
        if float(progress) == 1:
            return keep
    if not isinstance(keep, int):
        raise ValueError(NOT_TRACED)
    if not _is_traced(progress):
        return total - round(Fraction(float(np.float32(progress))) * (total - keep))
    pruned = counting.share(progress, total - keep)  # at most all of them
    return counting.subtract(counting.from_int(total), pruned)


def _is_traced(value: object) -> bool:
    return isinstance(value, jax.core.Tracer)
