"""Folding: what constant units contribute to a layer goes into its bias, and nothing reads them.

A layer reads x, y = x W + b. Where unit k of x is a constant c, whatever the input,

    y = x' W' + (b + c W[k]),

with row k of W at 0, and x' without unit k. Where units are constant is found by `constant`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import tree
from jaxprune.structured import constant, inline, trace
from jaxprune.structured.constant import Value
from jaxprune.structured.coupled import Groups
from jaxprune.structured.inline import Leaf, Op, Uses
from jaxprune.tree import Params


class _Reader(NamedTuple):
    """A dense layer or a convolution, with a kernel that is a parameter."""

    op: Op
    side: int
    """Which operand is the kernel."""
    kernel: Leaf
    summed: tuple[int, ...]
    """The axes of units of the other operand."""
    written: tuple[int, ...]
    """The axes of units of the result."""
    even: bool
    """Whether all positions of the result read the same: no padding, no holes in the operand."""


class _Bias(NamedTuple):
    """A parameter that is added to what a reader makes."""

    number: int
    sign: int
    """-1 where it is subtracted, as the running mean of a batch normalization."""
    between: tuple[Op, ...]
    """What lays out the result of the reader otherwise before."""
    at: np.ndarray
    """For each entry of the parameter, an entry of the flattened result that it is added to."""


def fold(groups: Groups, params: Params, *args: Any) -> Params:
    """Moves what constant units contribute into the biases of the layers that read them.

    A unit is constant where its incoming weights are 0 and its bias is not, and wherever else the
    input does not reach it, after any activation, normalization or sum. The weights that read it
    become 0, so that `dead` finds it once no layer reads it. This can leave further units constant,
    which are folded too.

    A layer that reads is a product with a kernel, dense or convolution, and then a bias, or the
    running mean of a batch normalization; kernel and bias are leaves that are used once. Where a
    unit is constantly 0 it needs no bias. All else stays as it is: units that are multiplied with
    what is not constant, that a convolution with padding reads (borders differ), or a layer without
    a bias, with a kernel or bias that is shared or computed, or inside of a loop.

    Runs what is constant in the function, at the shapes of the other arguments: pass a batch of
    one, for it is the same at any batch, but images and sequences of the size that they will have.
    Gradients are not the same after.

    Args:
      groups: of the function.
      params: pytree of arrays, pruned weights at exactly 0.
      *args: the other arguments of the function, or their shapes.

    Returns:
      Parameters of the same structure, shapes and dtypes, of which the function is the same up to
      rounding. A bias that was pruned need not be 0 after.

    Raises:
      ValueError: parameters of other shapes.
    """
    tree.check_like(params, groups.params, name='params', like='those of groups')
    closed, _ = trace.closed_jaxpr(groups.fn, groups.params, *args)
    program = inline.inlined(closed)
    leaves, structure = jax.tree.flatten(params)
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    arrays = [leaf if is_key(leaf) else np.asarray(leaf) for leaf in leaves]
    uses = Uses(program, [array.shape for array in arrays])
    while True:
        changed: dict[int, np.ndarray] = {}
        for op, ins in constant.walk(program, closed, arrays):
            if reader := _reader(op, uses):
                changed |= _folded(reader, ins, uses, arrays)
        if not changed:
            return jax.tree.unflatten(structure, leaves)
        for number, array in changed.items():
            arrays[number], leaves[number] = array, jnp.asarray(array)


def _folded(
    reader: _Reader, ins: Sequence[Value], uses: Uses, arrays: Sequence[np.ndarray]
) -> dict[int, np.ndarray]:
    """Folds the constants that one reader reads; returns the leaves that change."""
    kernel, bias = reader.kernel, _bias(reader, uses) if reader.even else None
    values, still = _constants(ins[1 - reader.side], reader.summed)
    if bias is None:
        still &= values == 0
    gone = _entries(reader, still)
    if not (np.asarray(ins[reader.side].at) != 0)[gone].any():
        return {}
    weights = arrays[kernel.number].copy()
    weights.reshape(-1)[kernel.entries[gone]] = 0
    if bias is None:
        return {kernel.number: weights}
    own = arrays[bias.number]
    moved = _contribution(reader, ins, np.where(still, values, np.zeros_like(values)))
    for op in bias.between:
        moved = inline.laid_out(op, moved)
    own = own + (bias.sign * moved.reshape(-1)[bias.at].reshape(own.shape)).astype(own.dtype)
    return {kernel.number: weights, bias.number: own}


def _reader(op: Op, uses: Uses) -> _Reader | None:
    """Reads an equation as a layer."""
    name, c = op.eqn.primitive.name, op.eqn.params
    atoms = (*op.eqn.invars, *op.eqn.outvars)
    if name not in ('dot_general', 'conv_general_dilated') or not all(map(_is_floating, atoms)):
        return None
    sides = (1, 0) if name == 'dot_general' else (1,)
    side, kernel = next(
        ((side, leaf) for side in sides if (leaf := uses.leaf(op.ins[side]))), (1, None)
    )
    if kernel is None or np.unique(kernel.entries).size < kernel.entries.size:
        return None
    if name == 'conv_general_dilated':
        of_lhs, _, of_out = c['dimension_numbers']
        even = not np.any(c['padding']) and all(n == 1 for n in c['lhs_dilation'])
        if c['batch_group_count'] != 1:
            return None
        return _Reader(op, side, kernel, (of_lhs[1],), (of_out[1],), even)
    summed, batches = c['dimension_numbers']
    if batches[0]:
        return None
    rank, free = op.eqn.outvars[0].aval.ndim, kernel.entries.ndim - len(summed[side])
    written = range(rank - free, rank) if side else range(free)
    return _Reader(op, side, kernel, tuple(summed[1 - side]), tuple(written), True)


def _bias(reader: _Reader, uses: Uses) -> _Bias | None:
    """Finds the parameter that is added to each unit that a reader makes, and used nowhere else."""
    shape = reader.op.eqn.outvars[0].aval.shape
    made = [shape[axis] for axis in reader.written]
    units = _along(np.arange(np.prod(made, dtype=np.int32)).reshape(made), reader.written, shape)
    last, between = reader.op, []
    while (user := uses.only(last.outs[0])) and inline.is_layout(user):
        between.append(user)
        last, units = user, inline.laid_out(user, units)
    if user is None or user.eqn.primitive.name not in ('add', 'sub'):
        return None
    place = user.ins.index(last.outs[0])
    leaf, subtracted = uses.leaf(user.ins[1 - place]), user.eqn.primitive.name == 'sub'
    if leaf is None or (subtracted and place) or user.eqn.outvars[0].aval.shape != units.shape:
        return None
    index = np.broadcast_to(leaf.entries, units.shape)
    at = np.zeros(np.max(index) + 1, int)
    at[index.reshape(-1)] = np.arange(index.size)
    if (units.reshape(-1)[at[index]] != units).any():  # one entry for several units
        return None
    return _Bias(leaf.number, -1 if subtracted else 1, tuple(between), at)


def _constants(value: Value, axes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Finds the units along axes that are constant, the same at all positions, and their values.

    Equal entries may differ in their last bits, for loops are vectorized up to a remainder.
    """
    others = tuple(axis for axis in range(value.moves.ndim) if axis not in axes)
    order = [sorted(axes).index(axis) for axis in axes]
    at = np.asarray(value.at)
    low, high = at.min(axis=others), at.max(axis=others)
    with np.errstate(all='ignore'):  # of infinities
        close = high - low <= 4 * jnp.finfo(at.dtype).eps * np.maximum(abs(low), abs(high))
    still = ~value.moves.any(axis=others) & np.isfinite(low) & np.isfinite(high) & close
    return low.transpose(order), still.transpose(order)


def _entries(reader: _Reader, units: np.ndarray) -> np.ndarray:
    """Finds the entries of a kernel that read some units."""
    c, shape = reader.op.eqn.params, reader.kernel.entries.shape
    if reader.op.eqn.primitive.name == 'dot_general':
        return _along(units, c['dimension_numbers'][0][reader.side], shape)
    axes = c['dimension_numbers'][1][:2]
    own = constant.by_output(units, [shape[axis] for axis in axes], c['feature_group_count'])
    return _along(own, axes, shape)


def _contribution(reader: _Reader, ins: Sequence[Value], values: np.ndarray) -> np.ndarray:
    """Runs a reader on the constants alone."""
    read = _along(values, reader.summed, ins[1 - reader.side].moves.shape)
    kernel = ins[reader.side].at
    operands = (read, kernel) if reader.side else (kernel, read)
    return np.asarray(inline.run(reader.op.eqn, operands)[0])


def _along(array: np.ndarray, axes: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Lays an array along some axes of a larger one, and repeats it along the others."""
    whole = array.reshape(*array.shape, *[1] * (len(shape) - array.ndim))
    return np.broadcast_to(np.moveaxis(whole, range(array.ndim), axes), shape)


def _is_floating(atom: Any) -> bool:
    return bool(jnp.issubdtype(atom.aval.dtype, jnp.floating))
