"""Compaction: units that an unstructured mask has left dead are removed, at no loss."""

from typing import Any

import jax
import numpy as np

from jaxprune import tree
from jaxprune.structured import coupled, folding, removal, trace, vanish
from jaxprune.structured.coupled import Groups, Keep
from jaxprune.tree import Params


def dead(groups: Groups, params: Params, *args: Any) -> Keep:
    """Finds the units that add nothing, whatever the input, because of weights that are 0.

    Either what makes a unit is 0, its bias included, and stays 0 on the way to every sum over it,
    or what reads it is 0 in all of them. Removing units can leave others dead, which are found too.

    Args:
      groups: of the function.
      params: pytree of arrays, pruned weights at exactly 0.
      *args: the other arguments of the function, or their shapes.

    Returns:
      The units that stay, of groups that have dead ones; of a group that is dead as a whole the
      first unit stays. The function computes the same without the others, in exact arithmetic.

    Raises:
      ValueError: parameters of other shapes.
    """
    tree.check_like(params, groups.params, name='params', like='those of groups')
    names = [path for path, _ in tree.present(params)]
    closed, _ = trace.closed_jaxpr(groups.fn, groups.params, *args)
    block, _ = coupled.traced(closed, len(names))
    weights = {path: _numbers(leaf) for path, leaf in tree.present(params)}
    gone: dict[str, np.ndarray] = {
        group.name: np.zeros(group.size, bool) for group in groups.groups
    }
    while True:
        given = [
            vanish.of(axes, weights[path]) for path, axes in zip(names, block.ins, strict=False)
        ]
        given += [{} for _ in block.ins[len(names) :]]
        found = _by_group(groups, block, names, vanish.sums(block, given))
        if all((found[name] <= gone[name]).all() for name in found):
            break
        gone = {name: gone[name] | found[name] for name in gone}
        _zero(weights, groups, gone)
    keep = {name: ~own for name, own in gone.items() if own.any()}
    for own in keep.values():
        own[0] |= not own.any()
    return keep


def compact(groups: Groups, params: Params, *args: Any) -> removal.Shrunk:
    """Removes the dead units of a pruned network: smaller, and the same function.

    Units that are constant because all their incoming weights are 0 are folded into the biases of
    the layers that read them first, see `fold`, and so are dead where no other layer reads them.

    Args:
      groups: of the function.
      params: pytree of arrays, pruned weights at exactly 0.
      *args: the other arguments of the function, or their shapes.

    Returns:
      The smaller parameters and their function; `dead` of the folded parameters tells which units
      stay.

    Raises:
      ValueError: parameters of other shapes.
    """
    folded = folding.fold(groups, params, *args)
    return removal.shrink(folded, groups, dead(groups, folded, *args))


def _by_group(
    groups: Groups, block: trace.Block, names: list[str], sums: vanish.Sums
) -> dict[str, np.ndarray]:
    """Names the units whose entries are 0 in every sum, of the same program traced again."""
    rows = coupled.rows(groups, dict(zip(names, block.ins, strict=False)))
    return {name: sums.vanishing.get(row, np.zeros(row.size, bool)) for name, row in rows.items()}


def _numbers(leaf: Any) -> np.ndarray:
    """Copies a leaf; of random keys, which are no numbers and never 0, makes ones."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    return np.ones(leaf.shape, bool) if is_key else np.array(leaf)


def _zero(weights: dict[str, np.ndarray], groups: Groups, gone: dict[str, np.ndarray]) -> None:
    keep = {name: ~own for name, own in gone.items()}
    for (path, axis), mask in removal.axis_masks(groups, keep).items():
        weights[path][(slice(None),) * axis + (~mask,)] = 0
