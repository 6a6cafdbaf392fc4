"""Choosing in a whole tree: the units of the highest scores, within a budget."""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxprune import budgets, counting, layouts, patterns, select, tree
from jaxprune.budgets import Budget, Keep
from jaxprune.patterns import Pattern, Units
from jaxprune.tree import Masks, Scores


def top(
    scores: Scores,
    budget: Budget,
    masks: Masks | None = None,
    *,
    pattern: Pattern | Mapping[str, Pattern] = patterns.unstructured,
    floor: float = 0.0,
    absolute: bool = False,
) -> Masks:
    """Keeps the highest scores within the budget of each group of leaves, and checks no values.

    What `masks.global_top` and `masks.leaf_top` are made of, for methods with counts of their own.

    Args:
      scores: higher stays, infinite ones too; a floating-point tree without NaN, `None` where not
        prunable.
      budget: weights to keep, which may be traced, a group of leaves.
      masks: booleans; where given, only weights that they keep can stay.
      pattern: what stays or goes together, for all leaves or by path.
      floor: share of each leaf that stays at least, rounded up.
      absolute: whether the absolute values are the scores; without masks, patterns and floor they
        are made where they are read, and never held.

    Returns:
      A boolean tree of the structure of `scores`.

    Raises:
      ValueError: a budget above what `masks` keep or below what must stay; a pattern that does not
        fit; `absolute` is no boolean.
    """
    if not isinstance(absolute, bool):
        raise ValueError(f'absolute must be True or False, got {absolute!r}')
    own = functools.partial(_top, pattern=pattern, floor=floor, absolute=absolute)
    chosen: Masks = layouts.like(own, scores)(scores, budget, masks)
    return chosen


def _top(
    scores: Scores,
    budget: Budget,
    masks: Masks | None,
    *,
    pattern: Pattern | Mapping[str, Pattern],
    floor: float,
    absolute: bool,
) -> Masks:
    if absolute and (masks is not None or floor or pattern is not patterns.unstructured):
        scores, absolute = jax.tree.map(jnp.abs, scores), False
    if masks is not None:
        scores = _exclude(scores, masks)
        _check_room(budget, dict(tree.present(masks)))
    named = tree.present(scores)
    rules = pattern if isinstance(pattern, Mapping) else {'*': pattern}
    ways = tree.by_path(rules, dict(named))
    whole = {path for path, leaf in named if not leaf.size}  # of nothing no block is made
    ways = {path: way for path, way in ways.items() if path not in whole}
    units = {path: ways.get(path, patterns.unstructured)(path, leaf) for path, leaf in named}
    bound = {path: unit.always for path, unit in units.items()}
    always = bound if masks is None else _inside(units, dict(tree.present(masks)))
    budgets.check_room(budget, bound, 'that n of m always keeps: ask for more')
    if floor:
        least = _at_least(floor, sizes(scores), units)
        budgets.check_room(budget, least, f'that a floor of {floor} keeps: lower it')
        if masks is not None:
            _check_floor(floor, least, dict(tree.present(masks)))
        firm = _select(units, Budget([*least.values()], range(len(least)), []), always)
        units = {path: _firmly(units[path], mask) for path, mask in firm.items()}
    chosen = _select(units, budget, always, absolute)
    kept = [_spread(units[path], chosen[path], leaf) for path, leaf in named]
    if masks is not None:  # a traced count may exceed what they keep
        kept = [new & old for new, (_, old) in zip(kept, tree.present(masks), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(scores), kept)


def sizes(scores: Scores) -> dict[str, int]:
    """Counts the weights of each leaf that has scores, by its path."""
    return {path: leaf.size for path, leaf in tree.present(scores)}


def _exclude(scores: Scores, masks: Masks) -> Scores:
    tree.check_masks(masks, scores)
    covered = dict(tree.present(masks))
    for path, _ in tree.present(scores):
        if path not in covered:
            raise ValueError(f'masks are None at {path!r}, where there are scores')
    return tree.map_masked(
        # what is pruned ranks below all that is not, -inf included
        lambda s, m: None if s is None else _below(s, m),
        scores,
        masks,
    )


def _below(score: jax.Array, mask: jax.Array) -> jax.Array:
    lowest = jnp.full_like(score, jnp.finfo(score.dtype).min)
    return jnp.where(mask, jnp.maximum(score, lowest), jnp.full_like(score, -jnp.inf))


def _at_least(floor: float, sizes: Mapping[str, int], units: Mapping[str, Units]) -> dict[str, int]:
    """Weights that each leaf keeps at least, in whole units."""
    if not budgets.is_number(floor) or not 0 <= float(floor) < 1:
        raise ValueError(f'floor must be a number in [0, 1), got {floor!r}')
    least = {}
    for path, unit in units.items():
        chosen = max(math.ceil(floor * sizes[path]) - unit.always, 0)
        least[path] = unit.always + math.ceil(chosen / unit.size) * unit.size
    return least


def _select(
    units: Mapping[str, Units],
    budget: Budget,
    always: Mapping[str, Keep],
    absolute: bool = False,
) -> dict[str, jax.Array]:
    keeps = budgets.without(budget, always)
    # n of m in all groups: nothing is left to choose, and no scores need be held to choose it
    settled = lambda unit, g: unit.always > 0 and isinstance(keeps[g], int) and keeps[g] == 0
    groups = dict(zip(units, budget.groups, strict=True))
    chosen = {
        path: jnp.zeros_like(unit.scores, bool)
        for path, unit in units.items()
        if settled(unit, groups[path])
    }
    open_ = {path: unit for path, unit in units.items() if path not in chosen}
    found = select.top(
        [unit.scores for unit in open_.values()],
        keeps,
        [groups[path] for path in open_],
        [unit.size for unit in open_.values()],
        absolute=absolute,
    )
    return chosen | dict(zip(open_, found, strict=True))


def _spread(unit: Units, chosen: jax.Array, scores: jax.Array) -> jax.Array:
    """The mask of the weights, laid out over devices as their scores are."""
    mask = unit.spread(chosen)
    return mask if unit.scores is scores else mask & ~jnp.isnan(scores)  # always true, but a tie


def _firmly(unit: Units, mask: jax.Array) -> Units:
    """The unit with scores that stay before all others where the mask is True; not what may not."""
    mask &= unit.scores > -jnp.inf
    return unit._replace(scores=jnp.where(mask, jnp.full_like(unit.scores, jnp.inf), unit.scores))


def _inside(units: Mapping[str, Units], masks: Mapping[str, jax.Array]) -> dict[str, Keep]:
    """Of what each leaf keeps whatever is chosen, how much is inside its mask."""
    always: dict[str, Keep] = {}
    for path, unit in units.items():
        none = jnp.zeros_like(unit.scores, bool)
        always[path] = counting.count([unit.spread(none) & masks[path]]) if unit.always else 0
    return always


def _check_floor(floor: float, least: Mapping[str, int], masks: Mapping[str, jax.Array]) -> None:
    for path, keep in least.items():
        left = counting.count([masks[path]])
        if not isinstance(left.low, jax.core.Tracer) and keep > counting.to_int(left):
            raise ValueError(
                f'a floor of {floor} keeps {keep} weights of leaf {path!r}, of which the given '
                f'masks keep only {counting.to_int(left)}: lower it'
            )


def _check_room(budget: Budget, masks: Mapping[str, jax.Array]) -> None:
    for keep, members in zip(budget.keeps, budgets.members_of(budget, masks), strict=True):
        left = counting.count(list(members.values()))
        if not isinstance(keep, int) or isinstance(left.low, jax.core.Tracer):
            continue
        if keep > counting.to_int(left):
            where = f'leaf {next(iter(members))!r}' if len(members) == 1 else 'the tree'
            raise ValueError(
                f'the density asks for {keep} weights of {where}, of which the given '
                f'masks keep only {counting.to_int(left)}: a density is relative to all prunable '
                'weights'
            )
