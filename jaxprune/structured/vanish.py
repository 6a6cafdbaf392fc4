"""Where units whose weights are 0 add nothing to a sum, so that removing them changes nothing else.

Removing a unit equals setting its weights to zero if all entries that are summed over its axis are
then 0. This walks a program forwards and finds, for each value, the rows of units at which it is 0.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxprune.structured import dims, trace
from jaxprune.structured.dims import Dim
from jaxprune.structured.trace import Axes, Block, Step

Zeros: TypeAlias = frozenset[Dim] | None
"""Rows of units for which a value is 0 at the positions of units whose weights are 0, along each
axis that holds the row. `None` for a value that is 0 everywhere."""


class Sums(NamedTuple):
    """What a walk finds."""

    summed: set[Dim]
    """Rows of units that are summed over somewhere."""
    inexact: dict[Dim, str]
    """Those that are summed over where their entries need not be 0, and where that is."""


def sums(block: Block, weights: Sequence[bool]) -> Sums:
    """Finds the sums over rows of units in a program.

    Args:
      block: a program with its dims.
      weights: whether each of its arguments is an array of weights, which are set to zero.

    Returns:
      The rows that are summed over, and those of them that cannot be removed exactly.
    """
    given = [
        _rows(axes) if own else frozenset() for axes, own in zip(block.ins, weights, strict=True)
    ]
    found = Sums(set(), {})
    _walk(block, given, found)
    return found


def _walk(block: Block, given: Sequence[Zeros], found: Sums) -> list[Zeros]:
    """Walks through a program; returns the zeros of its results."""
    env: dict[Any, Zeros] = dict(zip(block.jaxpr.invars, given, strict=True))
    for var, const in zip(block.jaxpr.constvars, block.consts, strict=True):
        env[var] = frozenset() if np.ndim(const) or np.any(const) else None

    def read(atom: Any) -> Zeros:
        if trace.is_literal(atom):
            return frozenset() if np.any(atom.val) else None
        return env[atom]

    for step in block.steps:
        rule = _RULES.get(step.eqn.primitive.name, _unknown)
        results = rule(step, [read(atom) for atom in step.eqn.invars], found)
        env.update(zip(step.eqn.outvars, results, strict=True))
    return [read(atom) for atom in block.jaxpr.outvars]


def _rows(axes: Axes) -> frozenset[Dim]:
    return frozenset(row for dim in axes for row in dims.units(dim))


def _sum_over(step: Step, dim: Dim, zero: Callable[[Dim], bool], found: Sums) -> None:
    for row in dims.units(dim):
        found.summed.add(row)
        if not row.kept and not zero(row):
            found.inexact.setdefault(row, trace.describe(step.eqn))


def _has(zeros: Zeros, row: Dim) -> bool:
    return zeros is None or row in zeros


def _where(axes: Axes, row: Dim) -> list[int]:
    return [axis for axis, dim in enumerate(axes) if row in dims.units(dim)]


def _at_zero(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    """Of functions of one operand that are 0 at 0."""
    del step, found
    return list(zeros)


def _if(
    quantor: Callable[[Any], bool], operands: slice
) -> Callable[[Step, Sequence[Zeros], Sums], list[Zeros]]:
    """Of functions that are 0 where all of some operands are, or where any is."""

    def rule(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
        del found
        own = list(zip(zeros[operands], step.ins[operands], strict=True))
        if quantor(zero is None for zero, _ in own):
            return [None]

        def holds(row: Dim) -> bool:
            places = _where(step.outs[0], row)
            return quantor(
                zero is None or (row in zero and _where(axes, row) == places) for zero, axes in own
            )

        return [frozenset(filter(holds, _rows(step.outs[0])))]

    return rule


def _clamp(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    low = step.eqn.invars[0]  # 0 stays 0 between bounds that are written in the program
    bounded = trace.is_literal(low) and trace.is_literal(step.eqn.invars[2])
    if bounded and np.all(low.val <= 0) and np.all(step.eqn.invars[2].val >= 0):
        return [zeros[1]]
    return _unknown(step, zeros, found)


def _rearranged(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    """Of what moves entries, takes some of them, or mixes them along other axes."""
    del found
    zero = zeros[0]
    return [None if zero is None else zero & _rows(axes) for axes in step.outs]


def _reduce_sum(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    for axis in step.eqn.params['axes']:
        _sum_over(step, step.ins[0][axis], lambda row: _has(zeros[0], row), found)
    return _rearranged(step, zeros, found)


def _pad(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    return _rearranged(step, zeros, found) if zeros[1] is None else [frozenset()]


def _concatenate(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    del found
    if all(zero is None for zero in zeros):
        return [None]
    own = [(zero, _rows(axes)) for zero, axes in zip(zeros, step.ins, strict=True)]
    holds = lambda row: all(_has(zero, row) or row not in rows for zero, rows in own)
    return [frozenset(filter(holds, _rows(step.outs[0])))]


def _update(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    del step, found
    return [_both(zeros[:2])]


def _dot(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    (left, right), batches = step.eqn.params['dimension_numbers']
    zero = lambda row: any(_has(own, row) for own in zeros)
    for axis in left:
        _sum_over(step, step.ins[0][axis], zero, found)
    if None in zeros:
        return [None]
    free = [
        _rows(tuple(dim for axis, dim in enumerate(axes) if axis not in (*gone, *batch)))
        for axes, gone, batch in zip(step.ins, (left, right), batches, strict=True)
    ]
    batch = _rows(tuple(step.ins[0][axis] for axis in batches[0]))

    def holds(row: Dim) -> bool:
        return (row not in batch or zero(row)) and all(
            _has(own, row) or row not in rows for own, rows in zip(zeros, free, strict=True)
        )

    return [frozenset(filter(holds, _rows(step.outs[0])))]


def _conv(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    of_lhs, of_rhs, _ = step.eqn.params['dimension_numbers']
    images, kernel = zeros
    read, written = step.ins[0][of_lhs[1]], step.ins[1][of_rhs[0]]
    own = step.ins[1][of_rhs[1]]  # the channels that are summed over
    _sum_over(step, own, lambda row: _has(images, row) or _has(kernel, row), found)
    if images is None or kernel is None:
        return [None]
    groups = frozenset(dims.units(read)) - frozenset(dims.units(own))
    kept = (kernel | (images & groups)) & frozenset(dims.units(written))
    return [kept | (images & frozenset(dims.units(step.ins[0][of_lhs[0]])))]


def _unknown(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    del zeros, found
    return [frozenset() for _ in step.outs]


def _call(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    return _walk(step.inner[0], zeros, found)


def _cond(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    branches = [_walk(inner, zeros[1:], found) for inner in step.inner]
    return [_both(results) for results in zip(*branches, strict=True)]


def _both(some: Sequence[Zeros]) -> Zeros:
    """Finds what is 0 in each of several values."""
    known = [zeros for zeros in some if zeros is not None]
    return frozenset.intersection(*known) if known else None


def _scan(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    consts, carries = step.eqn.params['num_consts'], step.eqn.params['num_carry']
    others = lambda carry: [*zeros[:consts], *carry, *zeros[consts + carries :]]
    return _until_stable(
        lambda carry, own: _walk(step.inner[0], others(carry), own),
        zeros[consts : consts + carries],
        found,
    )


def _while(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    of_cond, of_body = step.eqn.params['cond_nconsts'], step.eqn.params['body_nconsts']
    consts = zeros[of_cond : of_cond + of_body]
    state = _until_stable(
        lambda state, own: _walk(step.inner[1], [*consts, *state], own),
        zeros[of_cond + of_body :],
        found,
    )
    _walk(step.inner[0], [*zeros[:of_cond], *state], found)
    return state


def _until_stable(
    body: Callable[[Sequence[Zeros], Sums], list[Zeros]], carry: Sequence[Zeros], found: Sums
) -> list[Zeros]:
    """Finds what is 0 in every turn of a loop; the first results of the body are carried on."""
    while True:
        own = Sums(set(), {})
        results = body(carry, own)
        after = [_both(pair) for pair in zip(carry, results, strict=False)]
        if after == list(carry):
            found.summed.update(own.summed)
            found.inexact.update(own.inexact | found.inexact)
            return [*carry, *results[len(carry) :]]
        carry = after


_AT_ZERO = """
    abs asin asinh atan atanh cbrt ceil convert_element_type copy copy_p erf erf_inv expm1 floor
    imag integer_pow log1p name neg optimization_barrier pvary real reduce_precision round sign sin
    sinh sqrt square stop_gradient tan tanh
    """.split()
_REARRANGED = """
    broadcast_in_dim cummax cummin cumprod cumsum dynamic_slice gather reduce_max reduce_min
    reduce_or reduce_prod reduce_window_max reduce_window_min reduce_window_sum reshape rev slice
    split squeeze tile transpose
    """.split()
_ALL, _ANY = _if(all, slice(None)), _if(any, slice(None))

_RULES: dict[str, Callable[[Step, Sequence[Zeros], Sums], list[Zeros]]] = {
    **dict.fromkeys(_AT_ZERO, _at_zero),
    **dict.fromkeys(_REARRANGED, _rearranged),
    **dict.fromkeys(('add', 'add_any', 'max', 'min', 'or', 'sub', 'xor'), _ALL),
    **dict.fromkeys(('and', 'mul'), _ANY),
    **dict.fromkeys(('div', 'rem'), _if(all, slice(0, 1))),
    **dict.fromkeys(('checkpoint', 'closed_call', 'core_call', 'custom_jvp_call'), _call),
    **dict.fromkeys(('jit', 'pjit', 'remat2'), _call),
    'clamp': _clamp,
    'concatenate': _concatenate,
    'cond': _cond,
    'conv_general_dilated': _conv,
    'dot_general': _dot,
    'dynamic_update_slice': _update,
    'pad': _pad,
    'reduce_sum': _reduce_sum,
    'scan': _scan,
    'stack': _concatenate,
    'select_n': _if(all, slice(1, None)),
    'while': _while,
}
