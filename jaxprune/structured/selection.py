"""Which units stay: a share of them, or as many as a budget allows."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from jaxprune import tree
from jaxprune.structured.coupled import Groups, Keep
from jaxprune.structured.ranking import Importance
from jaxprune.structured.removal import axis_masks


def top(
    groups: Groups,
    importance: Importance,
    density: float,
    *,
    scope: Literal['global', 'group'] = 'global',
    multiple: int = 1,
    floor: float = 0.0,
) -> Keep:
    """Keeps the most important units.

    Args:
      groups: of the function.
      importance: of the units; groups that it does not name stay whole.
      density: share of the ranked units that stays, in (0, 1].
      scope: whether units compete over all groups, or within each.
      multiple: a group keeps a multiple of this many units, the next higher one, or all.
      floor: share of each group that stays at least, in [0, 1); one unit always does.

    Returns:
      The units that stay, of each group that is ranked.

    Raises:
      ValueError: a value out of range; a group that does not exist; a floor above the density.
    """
    if scope not in ('global', 'group'):
        raise ValueError(f"scope={scope!r} must be 'global' or 'group'")
    order = _order(groups, importance, floor, multiple)
    if not 0 < density <= 1:
        raise ValueError(f'density={density} must be in (0, 1]: the share of units that stays')
    if floor > density:
        raise ValueError(f'floor={floor} is above density={density}, which it would exceed')
    if scope == 'group':
        sizes = {name: len(own) for name, own in importance.items()}
        gone = {name: size - round(density * size) for name, size in sizes.items()}
        taken: dict[str, int] = dict.fromkeys(sizes, 0)
        chosen = []
        for name, unit in order:
            if taken[name] < gone[name]:
                taken[name] += 1
                chosen.append((name, unit))
        return _without(importance, chosen, multiple)
    total = sum(len(own) for own in importance.values())
    count = total - round(density * total)
    if count > len(order):
        raise ValueError(
            f'density={density} keeps {total - count} of {total} units, the floor {floor} keeps '
            f'{total - len(order)}: raise the density or lower the floor'
        )
    return _without(importance, order[:count], multiple)


def within(
    groups: Groups,
    importance: Importance,
    budget: float,
    measure: Callable[[Keep], float],
    *,
    multiple: int = 1,
    floor: float = 0.0,
) -> Keep:
    """Removes the least important units until a cost is within a budget, and no more.

    Found by bisection over how many units go, which takes about log2 of their number measurements;
    where the cost does not fall steadily, as a latency, what is returned is within the budget
    but need not be the largest network that is.

    Args:
      groups: of the function.
      importance: of the units; groups that it does not name stay whole.
      budget: what `measure` may say at most.
      measure: the cost of a network, such as `parameters(groups)`, or MACs or seconds by
        `jaxprune.cost` of a network that is shrunk by the keep set.
      multiple: a group keeps a multiple of this many units, the next higher one, or all.
      floor: share of each group that stays at least, in [0, 1); one unit always does.

    Returns:
      The units that stay.

    Raises:
      ValueError: the smallest network that can be made is above the budget: the message says
        how large it is.
    """
    if math.isnan(budget):
        raise ValueError('budget is NaN: say what the cost may be at most')
    order = _order(groups, importance, floor, multiple)
    low, high = 0, len(order)  # units that go: too few, enough
    smallest = measure(_without(importance, order, multiple))
    if not smallest <= budget:
        raise ValueError(
            f'budget={budget:g} cannot be met: the smallest network that is left costs '
            f'{smallest:g}, with the floor {floor} and multiples of {multiple}'
        )
    if measure(_without(importance, [], multiple)) <= budget:
        return _without(importance, [], multiple)
    while high - low > 1:
        middle = (low + high) // 2
        enough = measure(_without(importance, order[:middle], multiple)) <= budget
        low, high = (low, middle) if enough else (middle, high)
    return _without(importance, order[:high], multiple)


def parameters(
    groups: Groups, *, where: Callable[[str], bool] = lambda path: True
) -> Callable[[Keep], int]:
    """Makes the measure that counts the parameters left, of leaves whose paths `where` accepts."""
    return lambda keep: sum(size for path, size, _ in _sizes(groups, keep) if where(path))


def stored(groups: Groups) -> Callable[[Keep], int]:
    """Makes the measure that counts the bytes of the parameters left."""
    return lambda keep: sum(size * width for _, size, width in _sizes(groups, keep))


def _sizes(groups: Groups, keep: Keep) -> list[tuple[str, int, int]]:
    masks = axis_masks(groups, keep)
    kept = {at: int(mask.sum()) for at, mask in masks.items()}
    return [
        (
            path,
            math.prod(kept.get((path, axis), size) for axis, size in enumerate(leaf.shape)),
            leaf.dtype.itemsize,
        )
        for path, leaf in tree.present(groups.params)
    ]


def _order(
    groups: Groups, importance: Importance, floor: float, multiple: int
) -> list[tuple[str, int]]:
    """Lists the units that may go, the least important first; of equals the last one first."""
    if multiple < 1:
        raise ValueError(f'multiple={multiple} must be at least 1')
    if not 0 <= floor < 1:
        raise ValueError(f'floor={floor} must be in [0, 1): the share of a group that stays')
    ranked = []
    for place, (name, own) in enumerate(importance.items()):
        size = groups.named(name).size
        if np.shape(own) != (size,) or not np.isfinite(own).all():
            raise ValueError(
                f'importance[{name!r}] must hold {size} finite numbers, one a unit, got shape '
                f'{np.shape(own)}'
            )
        by_rank = np.lexsort((-np.arange(size), own)).tolist()
        at_least = max(1, math.ceil(floor * size - 1e-9))  # 0.07 * 100 is above 7
        ranked += [(own[unit], -place, -unit, name) for unit in by_rank[: size - at_least]]
    return [(name, -unit) for _, _, unit, name in sorted(ranked)]


def _without(importance: Importance, gone: list[tuple[str, int]], multiple: int) -> Keep:
    """Keeps all units but some, and as many of those as a multiple takes, the best first."""
    own = {name: [unit for other, unit in gone if other == name] for name in importance}
    keep = {}
    for name, removed in own.items():
        size = len(importance[name])
        left = size - len(removed)
        wanted = min(size, math.ceil(left / multiple) * multiple)
        mask = np.ones(size, bool)
        mask[removed[: size - wanted]] = False
        keep[name] = mask
    return keep
