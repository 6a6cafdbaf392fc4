"""How large a unit's values are on given inputs, where layers read them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import tree
from jaxprune.structured import coupled, dims, inline, trace
from jaxprune.structured.coupled import Groups
from jaxprune.structured.dims import Dim
from jaxprune.structured.ranking import Importance
from jaxprune.structured.trace import Block
from jaxprune.tree import Params


def activation(groups: Groups, params: Params, *args: Any) -> Importance:
    """Averages the magnitudes of each unit's values over a batch, where products sum over them.

    A product that sums over a unit reads it: a dense layer, a convolution, attention. Readings
    inside of loops are not seen; what a loop returns is.

    Args:
      groups: of the function.
      params: pytree of arrays.
      *args: the other arguments of the function: a batch of real inputs.

    Returns:
      The mean of |x|, over all entries and readings of a unit, of each exact group that is read.

    Raises:
      ValueError: parameters of other shapes; no group is read; values that are NaN or infinite.
    Source: Hu et al. 2016, arXiv:1607.03250, for activations as a criterion. Deviation: the mean
      magnitude and not the share of zeros, so that it ranks units of any activation function.
    """
    tree.check_like(params, groups.params, name='params', like='those of groups')
    count = len(tree.present(params))
    closed, _ = trace.closed_jaxpr(groups.fn, params, *args)
    block, _ = coupled.traced(closed, count)
    names = [path for path, _ in tree.present(params)]
    rows = coupled.rows(groups, dict(zip(names, block.ins, strict=False)))
    ranked = [group.name for group in groups.groups if not group.inexact]

    @jax.jit
    def means(*leaves: Any) -> dict[str, jax.Array]:
        readings = _Readings()
        _run(block, [(leaf, n >= count) for n, leaf in enumerate(leaves)], readings)
        own = {name: rows[name] for name in ranked if rows[name] in readings.sums}
        return {name: readings.sums[row] / readings.counts[row] for name, row in own.items()}

    means_of = means(*jax.tree.leaves((params, *args)))
    found = {name: np.asarray(means_of[name], np.float64) for name in ranked if name in means_of}
    if not found:
        raise ValueError('no group is read by a product: take the importance from weights')
    for name, own in found.items():
        if not np.isfinite(own).all():
            raise ValueError(
                f'activations of group {name!r} are NaN or infinite at units '
                f'{np.flatnonzero(~np.isfinite(own))[:8].tolist()}: look for a diverged run'
            )
    return found


class _Readings:
    """Sums of magnitudes by unit, over all that products read, and their number."""

    def __init__(self) -> None:
        self.sums: dict[Dim, jax.Array] = {}
        self.counts: dict[Dim, int] = {}

    def add(self, value: jax.Array, axis: int, dim: Dim) -> None:
        """Adds what is read along one axis of a value."""
        others = tuple(other for other in range(value.ndim) if other != axis)
        totals = jnp.abs(value.astype(jnp.float32)).sum(axis=others)
        for row, index in dims.columns(dim):
            held, size = index >= 0, value.size // value.shape[axis]
            own = jnp.zeros(row.size).at[index[held]].add(totals[held])
            self.sums[row] = self.sums[row] + own if row in self.sums else own
            self.counts[row] = self.counts.get(row, 0) + size * int(held.sum()) // row.size


def _run(block: Block, values: Sequence[tuple[Any, bool]], readings: _Readings) -> list[Any]:
    """Runs a program on values that are known to depend on the input, or not, and reads them."""
    env = dict(zip(block.jaxpr.invars, values, strict=True))
    env |= {var: (x, False) for var, x in zip(block.jaxpr.constvars, block.consts, strict=True)}
    get = lambda atom: (atom.val, False) if trace.is_literal(atom) else env[atom]
    for step in block.steps:
        ins = [get(atom) for atom in step.eqn.invars]
        if step.eqn.primitive.name in trace.CALLS:
            outs = _run(step.inner[0], ins, readings)
        else:
            for operand, axes in _summed(step.eqn):
                value, moves = ins[operand]
                for axis in axes if moves else ():
                    readings.add(value, axis, step.ins[operand][axis])
            moves = any(moves for _, moves in ins)
            outs = [(x, moves) for x in inline.run(step.eqn, [value for value, _ in ins])]
        env.update(zip(step.eqn.outvars, outs, strict=True))
    return [get(atom) for atom in block.jaxpr.outvars]


def _summed(eqn: Any) -> list[tuple[int, Sequence[int]]]:
    """Lists the axes of units that a product sums over, by operand."""
    if eqn.primitive.name == 'dot_general':
        (left, right), _ = eqn.params['dimension_numbers']
        return [(0, left), (1, right)]
    if eqn.primitive.name == 'conv_general_dilated':
        return [(0, eqn.params['dimension_numbers'].lhs_spec[1:2])]
    return []
