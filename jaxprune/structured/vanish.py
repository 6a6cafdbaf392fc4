"""Which units add nothing to any sum, so that removing them changes nothing else.

Removing a unit leaves a function as it is where all entries that are summed over its axis are 0.
This walks a program forwards and finds, for each value, the units at which it is 0.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.extend import core

from jaxprune.structured import dims, trace
from jaxprune.structured.dims import Dim
from jaxprune.structured.trace import Axes, Block, Step

Zeros: TypeAlias = dict[Dim, np.ndarray] | None
"""By row of units, booleans (size,): whether a value is 0 at the positions of a unit, along each
axis that holds the row; of rows that are not in it no unit is. `None`: it is 0 everywhere."""


class Sums(NamedTuple):
    """What a walk finds about the rows that are summed over somewhere."""

    vanishing: dict[Dim, np.ndarray]
    """Booleans (size,): units whose entries are 0 in every sum."""
    where: dict[Dim, str]
    """The first sum of rows in which the entries of some unit need not be 0."""


def sums(block: Block, given: Sequence[Zeros]) -> Sums:
    """Finds the sums over rows of units in a program.

    Args:
      block: a program with its dims.
      given: where its arguments are 0.

    Returns:
      The rows that are summed over.
    """
    found = Sums({}, {})
    _walk(block, given, found)
    return found


def whole(axes: Axes) -> Zeros:
    """Tells where weights are 0 in which any unit is set to 0: at that unit."""
    return {row: np.ones(row.size, bool) for row in _rows(axes)}


def of(axes: Axes, weights: np.ndarray) -> Zeros:
    """Tells at which units weights are 0."""
    result: dict[Dim, np.ndarray] = {}
    for axis, dim in enumerate(axes):
        others = tuple(other for other in range(len(axes)) if other != axis)
        nothing = ~np.any(weights, axis=others)
        for row, index in dims.columns(dim):
            zero = np.ones(row.size, bool)
            zero[index[~nothing & (index >= 0)]] = False
            result[row] = result[row] & zero if row in result else zero
    return {row: zero for row, zero in result.items() if not row.kept}


def _walk(block: Block, given: Sequence[Zeros], found: Sums) -> list[Zeros]:
    """Walks through a program; returns the zeros of its results."""
    env: dict[Any, Zeros] = dict(zip(block.jaxpr.invars, given, strict=True))
    for var, const in zip(block.jaxpr.constvars, block.consts, strict=True):
        env[var] = {} if np.ndim(const) or not _is_zero(const) else None

    def read(atom: Any) -> Zeros:
        if trace.is_literal(atom):
            return None if _is_zero(atom.val) else {}
        return env[atom]

    for step in block.steps:
        rule = _RULES.get(step.eqn.primitive.name, _unknown)
        results = rule(step, [read(atom) for atom in step.eqn.invars], found)
        env.update(zip(step.eqn.outvars, results, strict=True))
    return [read(atom) for atom in block.jaxpr.outvars]


def _is_zero(value: Any) -> bool:
    """Tells whether a constant is 0; a random key is not."""
    is_key = jax.dtypes.issubdtype(jax.typeof(value).dtype, jax.dtypes.extended)
    return not is_key and not np.any(value)


def _rows(axes: Axes) -> list[Dim]:
    """Lists the rows of units that may go, each once."""
    return list(dict.fromkeys(row for dim in axes for row in dims.units(dim) if not row.kept))


def _at(zeros: Zeros, row: Dim) -> np.ndarray:
    if zeros is None:
        return np.ones(row.size, bool)
    return zeros[row] if row in zeros else np.zeros(row.size, bool)


def _only(rows: Sequence[Dim], at: Callable[[Dim], np.ndarray]) -> Zeros:
    found = {row: at(row) for row in rows}
    return {row: zero for row, zero in found.items() if zero.any()}


def _sum_over(step: Step, dim: Dim, at: Callable[[Dim], np.ndarray], found: Sums) -> None:
    for row in _rows((dim,)):
        zero = at(row)
        found.vanishing[row] = found.vanishing.get(row, True) & zero
        if not zero.all():
            found.where.setdefault(row, step.name)


def _where(axes: Axes, row: Dim) -> list[int]:
    return [axis for axis, dim in enumerate(axes) if row in dims.units(dim)]


def _at_zero(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    """Of functions of one operand that are 0 at 0."""
    del step, found
    return list(zeros)


def _if(
    reduce: Callable[[Sequence[np.ndarray]], np.ndarray], operands: slice
) -> Callable[[Step, Sequence[Zeros], Sums], list[Zeros]]:
    """Of functions that are 0 where all of some operands are, or where any is."""

    def rule(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
        del found
        own = list(zip(zeros[operands], step.ins[operands], strict=True))
        if reduce([np.array(zero is None) for zero, _ in own]):
            return [None]

        def at(row: Dim) -> np.ndarray:
            places = _where(step.outs[0], row)
            fits = lambda axes: _where(axes, row) == places
            return reduce([_at(z if z is None or fits(axes) else {}, row) for z, axes in own])

        return [_only(_rows(step.outs[0]), at)]

    return rule


def _clamp(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    low, _, high = step.eqn.invars  # 0 stays 0 between bounds that are written in the program
    if isinstance(low, core.Literal) and isinstance(high, core.Literal):
        return [zeros[1]] if low.val <= 0 <= high.val else [{}]
    return _unknown(step, zeros, found)


def _rearranged(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    """Of what moves entries, takes some of them, or mixes them along other axes."""
    del found
    at = lambda row: _at(zeros[0], row)
    return [None if zeros[0] is None else _only(_rows(axes), at) for axes in step.outs]


def _repeated(made: Callable[[Step], Axes]) -> Callable[..., list[Zeros]]:
    """Of what also makes axes along which all is the same: not 0 at a unit of such an axis."""

    def rule(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
        fresh = _rows(made(step))
        known: list[Zeros] = [
            None if own is None else {row: at for row, at in own.items() if row not in fresh}
            for own in zeros
        ]
        return _rearranged(step, known, found)

    return rule


def _broadcast_axes(step: Step) -> Axes:
    places = step.eqn.params['broadcast_dimensions']
    kept = {place for place, dim in zip(places, step.ins[0], strict=True) if dim.size != 1}
    return tuple(dim for axis, dim in enumerate(step.outs[0]) if axis not in kept)


def _gathered_axes(step: Step) -> Axes:
    offsets = step.eqn.params['dimension_numbers'].offset_dims
    return tuple(dim for axis, dim in enumerate(step.outs[0]) if axis not in offsets)


def _integer_pow(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    return list(zeros) if step.eqn.params['y'] > 0 else _unknown(step, zeros, found)


def _reduce_sum(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    for axis in step.eqn.params['axes']:
        _sum_over(step, step.ins[0][axis], lambda row: _at(zeros[0], row), found)
    return _rearranged(step, zeros, found)


def _pad(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    return _rearranged(step, zeros, found) if zeros[1] is None else [{}]


def _concatenate(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    del found
    if all(zero is None for zero in zeros):
        return [None]
    own = [(zero, _rows(axes)) for zero, axes in zip(zeros, step.ins, strict=True)]
    at = lambda row: _all([_at(zero, row) for zero, rows in own if row in rows])
    return [_only(_rows(step.outs[0]), at)]


def _update(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    del step, found
    return [_both(zeros[:2])]


def _dot(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    (left, right), batches = step.eqn.params['dimension_numbers']
    either = lambda row: _any([_at(own, row) for own in zeros])
    for axis in left:
        _sum_over(step, step.ins[0][axis], either, found)
    if None in zeros:
        return [None]
    free = [
        _rows(tuple(dim for axis, dim in enumerate(axes) if axis not in (*gone, *batch)))
        for axes, gone, batch in zip(step.ins, (left, right), batches, strict=True)
    ]
    batch = _rows(tuple(step.ins[0][axis] for axis in batches[0]))

    def at(row: Dim) -> np.ndarray:
        own = [_at(zero, row) for zero, rows in zip(zeros, free, strict=True) if row in rows]
        return _all([*own, either(row)] if row in batch else own)

    return [_only(_rows(step.outs[0]), at)]


def _conv(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    of_lhs, of_rhs, of_out = step.eqn.params['dimension_numbers']
    images, kernel = zeros
    own = step.ins[1][of_rhs[1]]  # the channels that are summed over
    _sum_over(step, own, lambda row: _any([_at(images, row), _at(kernel, row)]), found)
    if images is None or kernel is None:
        return [None]
    summed = _rows((own,))
    groups = [row for row in _rows((step.ins[0][of_lhs[1]],)) if row not in summed]
    at = lambda row: _any([_at(kernel, row), _at(images if row in groups else {}, row)])
    result = _only(_rows((step.outs[0][of_out[1]],)), at) or {}
    batch = _rows((step.ins[0][of_lhs[0]],))
    return [result | (_only(batch, lambda row: _at(images, row)) or {})]


def _unknown(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    del zeros, found
    return [{} for _ in step.outs]


def _call(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    return _walk(step.inner[0], zeros, found)


def _cond(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    branches = [_walk(inner, zeros[1:], found) for inner in step.inner]
    return [_both(results) for results in zip(*branches, strict=True)]


def _both(some: Sequence[Zeros]) -> Zeros:
    """Finds what is 0 in each of several values."""
    known = [zeros for zeros in some if zeros is not None]
    if not known:
        return None
    rows = [row for row in known[0] if all(row in zeros for zeros in known)]
    return _only(rows, lambda row: _all([zeros[row] for zeros in known]))


def _is_same(a: Zeros, b: Zeros) -> bool:
    if a is None or b is None:
        return a is b
    return a.keys() == b.keys() and all((a[row] == b[row]).all() for row in a)


def _scan(step: Step, zeros: Sequence[Zeros], found: Sums) -> list[Zeros]:
    consts, carries = trace.of_scan(step.eqn)
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
        own = Sums({}, {})
        results = body(carry, own)
        after = [_both(pair) for pair in zip(carry, results, strict=False)]
        if all(_is_same(a, b) for a, b in zip(after, carry, strict=True)):
            for row, zero in own.vanishing.items():
                found.vanishing[row] = found.vanishing.get(row, True) & zero
            found.where.update(own.where | found.where)
            return [*carry, *results[len(carry) :]]
        carry = after


_all: Callable[[Sequence[np.ndarray]], np.ndarray] = np.logical_and.reduce
_any: Callable[[Sequence[np.ndarray]], np.ndarray] = np.logical_or.reduce
_AT_ZERO = """
    abs asin asinh atan atanh cbrt ceil convert_element_type copy copy_p erf erf_inv expm1 floor
    imag log1p name neg optimization_barrier pvary real reduce_precision round sign sin
    sinh sqrt square stop_gradient tan tanh
    """.split()
_REARRANGED = """
    cummax cummin cumprod cumsum dynamic_slice reduce_max reduce_min
    reduce_or reduce_prod reduce_window_max reduce_window_min reduce_window_sum reshape rev slice
    split squeeze tile transpose unstack
    """.split()
_IF_ALL, _IF_ANY = _if(_all, slice(None)), _if(_any, slice(None))

_RULES: dict[str, Callable[[Step, Sequence[Zeros], Sums], list[Zeros]]] = {
    **dict.fromkeys(_AT_ZERO, _at_zero),
    **dict.fromkeys(_REARRANGED, _rearranged),
    **dict.fromkeys(('add', 'add_any', 'max', 'min', 'or', 'sub', 'xor'), _IF_ALL),
    **dict.fromkeys(('and', 'mul'), _IF_ANY),
    **dict.fromkeys(('div', 'rem'), _if(_all, slice(0, 1))),
    **dict.fromkeys(trace.CALLS, _call),
    'broadcast_in_dim': _repeated(_broadcast_axes),
    'clamp': _clamp,
    'concatenate': _concatenate,
    'cond': _cond,
    'conv_general_dilated': _conv,
    'dot_general': _dot,
    'dynamic_update_slice': _update,
    'gather': _repeated(_gathered_axes),
    'integer_pow': _integer_pow,
    'pad': _pad,
    'reduce_sum': _reduce_sum,
    'scan': _scan,
    'stack': _concatenate,  # its new axis stays whole
    'select_n': _if(_all, slice(1, None)),
    'while': _while,
}
