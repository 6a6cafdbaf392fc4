"""How much each unit of a group matters: scores of weights, summed over all that a unit holds."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from jaxprune import tree
from jaxprune.structured.coupled import Groups
from jaxprune.tree import Params, Scores

Importance: TypeAlias = Mapping[str, np.ndarray]
"""By the name of a group, float64 (size,): higher stays. Groups that are not named stay whole."""


def importance(
    groups: Groups,
    scores: Scores,
    *,
    reduce: Literal['sum', 'mean'] = 'sum',
    normalize: bool = False,
    inexact: bool = False,
) -> Importance:
    """Adds up the scores of the weights that each unit holds, in all leaves that it cuts.

    The L1 norm is `scores.magnitude(params)`, Taylor's first order `scores.taylor(params, grads)`;
    squares of magnitudes make the squared L2 norm, and the scales of normalisation alone, as in
    Liu et al. 2017, arXiv:1708.06519, are `scores.magnitude(params, where=...)` of those leaves.

    Args:
      groups: of the function.
      scores: a tree like the parameters; `None` for leaves that do not count.
      reduce: whether a leaf adds the sum of its scores, or their mean, which gives small leaves as
        much weight as large ones.
      normalize: whether to divide by the mean over the units of a group, so that groups compete
        by how units differ within them and not by how large they are.
      inexact: whether to rank groups that are not exact too.

    Returns:
      The importance of the units of each group that has scores.

    Raises:
      ValueError: scores unlike the parameters; a score that is not finite; none at all.
    Source: Fang et al. 2023, arXiv:2301.12900, section 3.4, for sums over coupled parameters.
    """
    tree.check_like(scores, groups.params, name='scores', like='params of groups')
    if reduce not in ('sum', 'mean'):
        raise ValueError(f"reduce={reduce!r} must be 'sum' or 'mean'")
    leaves = {path: np.asarray(leaf, np.float64) for path, leaf in tree.present(scores)}
    for path, leaf in leaves.items():
        if not np.isfinite(leaf).all():
            count = int((~np.isfinite(leaf)).sum())
            raise ValueError(f'scores of leaf {path!r} hold {count} values that are not finite')
    found = {}
    for group in groups.groups:
        cuts = [cut for cut in group.slices if cut.path in leaves]
        if not cuts or (group.inexact and not inexact):
            continue
        total = np.zeros(group.size)
        for cut in cuts:
            total += _along(leaves[cut.path], cut.axis, cut.units, group.size, reduce)
        mean = total.mean()
        found[group.name] = total / mean if normalize and mean > 0 else total
    if not found:
        raise ValueError('no group has scores: give those of leaves that groups cut')
    return found


def geometric_median(groups: Groups, params: Params) -> Importance:
    """Measures how far each filter is from all others of its group: the nearest can be spared.

    A filter is all that makes a unit's values in the leaf that the group is named by.

    Args:
      groups: of the function.
      params: pytree of arrays.

    Returns:
      The sum of the distances to the others, by unit, of each exact group.
    Source: He et al. 2019, arXiv:1811.00250, eq. 4 to 6.
    """
    leaves = dict(tree.present(params))
    found = {}
    for group in groups.groups:
        if group.inexact:
            continue
        path, axis = group.name.rsplit(':', 1)[0], int(group.name.rsplit(':', 1)[1].split('.')[0])
        cut = next(cut for cut in group.slices if (cut.path, cut.axis) == (path, axis))
        rows = np.moveaxis(np.asarray(leaves[path], np.float64), axis, 0).reshape(
            len(cut.units), -1
        )
        filters = np.stack([rows[cut.units == unit].ravel() for unit in range(group.size)])
        squares = (filters**2).sum(axis=1)
        between = squares[:, None] + squares[None] - 2 * filters @ filters.T
        found[group.name] = np.sqrt(np.maximum(between, 0)).sum(axis=1)
    return found


def _along(leaf: np.ndarray, axis: int, index: np.ndarray, size: int, reduce: str) -> Any:
    """Sums, or averages, the scores of a leaf by unit."""
    others = tuple(other for other in range(leaf.ndim) if other != axis)
    sums, held = leaf.sum(axis=others), index >= 0
    total = np.bincount(index[held], sums[held], size)
    if reduce == 'sum':
        return total
    count = np.bincount(index[held], minlength=size) * (leaf.size / leaf.shape[axis])
    return total / np.maximum(count, 1)


def squared(scores: Scores) -> Scores:
    """Squares scores: of magnitudes, so that `importance` adds up squared L2 norms."""
    return jax.tree.map(np.square, scores)
