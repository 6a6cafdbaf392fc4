"""What each primitive does to the dims of its operands.

A rule takes an equation, the dims of its operands (none for literals), and words for its place in
the program; it ties dims, or keeps them, and returns the dims of each result. A primitive without
a rule is not understood.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from jaxprune.structured import dims
from jaxprune.structured.dims import Dim

Eqn: TypeAlias = Any
"""A `jax.extend.core.JaxprEqn`, whose values are typed without their shapes."""

Ins: TypeAlias = Sequence[Sequence[Dim]]
Rule: TypeAlias = Callable[[Eqn, Ins, str], Sequence[Sequence[Dim]]]

ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp clz conj convert_element_type copy copy_p cos cosh digamma
    div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le
    lgamma log log1p log2 logistic lt max min mul name ne neg nextafter not one_minus_square
    optimization_barrier or polynomial population_count pow pvary real reduce_precision rem round
    rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
    stop_gradient sub tan tanh xor zeta
    """.split()
)
"""Each entry of the result depends on the same entry of the operands; axes of 1 are repeated."""


def rule(eqn: Eqn) -> Rule | None:
    """Finds the rule of an equation, `None` where it is not understood."""
    name = eqn.primitive.name
    if name in ELEMENTWISE:
        return _elementwise
    found = _RULES.get(name)
    if name == 'conv_general_dilated' and eqn.params['batch_group_count'] != 1:
        return None
    if name == 'reshape' and eqn.params['dimensions'] is not None:
        return None
    if name == 'bitcast_convert_type' and eqn.outvars[0].aval.ndim != eqn.invars[0].aval.ndim:
        return None
    return found


def _elementwise(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    if len(eqn.outvars) > 1:  # each result is an operand
        return ins
    result = []
    for axis, size in enumerate(eqn.outvars[0].aval.shape):
        same = [axes[axis] for axes in ins if axes and axes[axis].size == size]
        for other in same[1:]:
            dims.tie(same[0], other, why)
        result.append(same[0] if same else Dim(size))
    return [result]


def _broadcast(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    del why
    result = [Dim(size) for size in eqn.outvars[0].aval.shape]
    for dim, axis in zip(ins[0], eqn.params['broadcast_dimensions'], strict=True):
        if dim.size == result[axis].size:
            result[axis] = dim
    return [result]


def _reshape(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    shape = eqn.outvars[0].aval.shape
    result = [Dim(size) for size in shape]
    if 0 in shape:
        return [result]
    given = [dim for dim in ins[0] if dim.size != 1]
    places = [axis for axis, size in enumerate(shape) if size != 1]
    while given:
        block, into = [given.pop(0)], [places.pop(0)]
        while (a := _size(block)) != (b := math.prod(shape[axis] for axis in into)):
            block, into = (
                ([*block, given.pop(0)], into) if a < b else (block, [*into, places.pop(0)])
            )
        whole = dims.product(block)
        split = [whole]
        if len(into) > 1:
            split = dims.factors(whole, [shape[axis] for axis in into], why)
        for axis, dim in zip(into, split, strict=True):
            result[axis] = dim
    return [result]


def _size(some: Sequence[Dim]) -> int:
    return math.prod(dim.size for dim in some)


def _squeeze(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    del why
    gone = eqn.params['dimensions']
    return [[dim for axis, dim in enumerate(ins[0]) if axis not in gone]]


def _transpose(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    del why
    return [[ins[0][axis] for axis in eqn.params['permutation']]]


def _dot(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    (left, right), (left_batch, right_batch) = eqn.params['dimension_numbers']
    lhs, rhs = ins
    for a, b in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        dims.tie(lhs[a], rhs[b], why)
    free = [dim for axis, dim in enumerate(lhs) if axis not in (*left, *left_batch)]
    other = [dim for axis, dim in enumerate(rhs) if axis not in (*right, *right_batch)]
    return [[*[lhs[axis] for axis in left_batch], *free, *other]]


def _conv(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    lhs, rhs = ins
    of_lhs, of_rhs, of_out = eqn.params['dimension_numbers']
    groups = eqn.params['feature_group_count']
    read, written = lhs[of_lhs[1]], rhs[of_rhs[0]]
    own = read
    if groups > 1:
        group, own = dims.factors(read, (groups, read.size // groups), why)
        dims.tie(dims.factors(written, (groups, written.size // groups), why)[0], group, why)
    dims.tie(own, rhs[of_rhs[1]], why)
    result: list[Dim] = list(fixed(eqn.outvars[0].aval.shape, f'{why} slides along it'))
    result[of_out[0]], result[of_out[1]] = lhs[of_lhs[0]], written
    keep_all([lhs[axis] for axis in of_lhs[2:]], f'{why} slides along it')
    keep_all([rhs[axis] for axis in of_rhs[2:]], f'{why} slides along it')
    return [result]


def _reduce(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    gone = eqn.params['axes']
    if eqn.primitive.name != 'reduce_sum':
        keep_all([ins[0][axis] for axis in gone], f'{why} reduces it')
    return [[dim for axis, dim in enumerate(ins[0]) if axis not in gone]]


def _along_axis(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    """Of what moves or mixes the entries along one axis, or some, of all operands."""
    axes = eqn.params.get('axis', eqn.params.get('dimension', eqn.params.get('dimensions')))
    for given in ins:
        keep_all([given[axis] for axis in _listed(axes)], f'{why} goes along it')
        for a, b in zip(given, ins[0], strict=True):
            dims.tie(a, b, why)
    return [ins[0]] * len(eqn.outvars)


def _top_k(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    keep_all(ins[0], f'{why} goes along it')
    return [fixed(var.aval.shape, f'{why} goes along it') for var in eqn.outvars]


def _window(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    c, result = eqn.params, []
    for axis, dim in enumerate(ins[0]):
        still = c['window_dimensions'][axis] == 1 and c['window_strides'][axis] == 1
        if still and tuple(c['padding'][axis]) == (0, 0):
            result.append(dim)
            continue
        dims.keep(dim, f'{why} slides along it')
        result.append(Dim(eqn.outvars[0].aval.shape[axis], f'{why} slides along it'))
    return [result]


def _made(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    """Of what is made from nothing, or from random keys."""
    del ins, why
    return [[Dim(size) for size in var.aval.shape] for var in eqn.outvars]


def _keys(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    reason = f'{why} makes random keys of it'
    for axes in ins:
        keep_all(axes, reason)
    return [fixed(var.aval.shape, reason) for var in eqn.outvars]


def _concatenate(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    joined = eqn.params['dimension']
    for axes in ins[1:]:
        for axis, dim in enumerate(axes):
            if axis != joined:
                dims.tie(dim, ins[0][axis], why)
    result = list(ins[0])
    result[joined] = dims.concatenation([axes[joined] for axes in ins])
    return [result]


def _stack(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    for axes in ins[1:]:
        for a, b in zip(axes, ins[0], strict=True):
            dims.tie(a, b, why)
    result = list(ins[0])
    result.insert(eqn.params['axis'], Dim(len(ins), f'{why} makes it'))
    return [result]


def _tile(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    reps = eqn.params['reps']
    times = [Dim(n, f'{why} repeats it') for n in reps]
    return [[dims.product([n, dim]) for n, dim in zip(times, ins[0], strict=True)]]


def _split(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    axis = eqn.params['axis']
    parts = dims.pieces(ins[0][axis], [int(n) for n in eqn.params['sizes']], why)
    return [[*ins[0][:axis], part, *ins[0][axis + 1 :]] for part in parts]


def _unstack(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    axis = eqn.params['axis']
    dims.keep(ins[0][axis], f'{why} takes it apart')
    return [[*ins[0][:axis], *ins[0][axis + 1 :]]] * len(eqn.outvars)


def _slice(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    starts, limits = eqn.params['start_indices'], eqn.params['limit_indices']
    strides = eqn.params['strides'] or [1] * len(starts)
    return [
        [
            _sliced(dim, start, limit, stride, why)
            for dim, start, limit, stride in zip(ins[0], starts, limits, strides, strict=True)
        ]
    ]


def _sliced(dim: Dim, start: int, limit: int, stride: int, why: str) -> Dim:
    if (start, limit, stride) == (0, dim.size, 1):
        return dim
    if stride == 1:
        return dims.pieces(dim, (start, limit - start, dim.size - limit), why)[1]
    count = len(range(start, limit, stride))
    if dim.size == count * stride and start < stride:  # as of pairs, for interleaved features
        taken, within = dims.factors(dim, (count, stride), why)
        dims.keep(within, f'{why} takes one of {stride}')
        return taken
    dims.keep(dim, f'{why} takes every {stride}th')
    return Dim(count, f'{why} takes every {stride}th')


def _pad(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    result = []
    for dim, (low, high, between) in zip(ins[0], eqn.params['padding_config'], strict=True):
        if low < 0 or high < 0 or between:
            dims.keep(dim, f'{why} spreads or cuts it')
            size = low + high + dim.size + between * max(dim.size - 1, 0)
            result.append(Dim(int(size), f'{why} spreads or cuts it'))
        elif low or high:
            result.append(dims.concatenation([Dim(int(low)), dim, Dim(int(high))]))
        else:
            result.append(dim)
    return [result]


def _gather(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    (operand, indices), c = ins, eqn.params['dimension_numbers']
    reason = f'{why} looks entries up along it'
    batching = dict(zip(c.operand_batching_dims, c.start_indices_batching_dims, strict=True))
    kept = []  # axes of the operand that are taken whole, or a part of
    for axis, (dim, size) in enumerate(zip(operand, eqn.params['slice_sizes'], strict=True)):
        if axis in batching:
            dims.tie(dim, indices[batching[axis]], why)
        elif axis in c.collapsed_slice_dims:
            dims.keep(dim, reason)
        elif size == dim.size:
            kept.append(dim)
        else:
            dims.keep(dim, reason)
            kept.append(Dim(size, reason))
    looked_up = iter(indices[:-1])
    whole = iter(kept)
    rank = eqn.outvars[0].aval.ndim
    return [[next(whole if axis in c.offset_dims else looked_up) for axis in range(rank)]]


def _dynamic_slice(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    result = []
    for dim, size in zip(ins[0], eqn.params['slice_sizes'], strict=True):
        if size != dim.size:
            dims.keep(dim, f'{why} takes a part of it')
        result.append(dim if size == dim.size else Dim(size, f'{why} takes a part of it'))
    return [result]


def _dynamic_update_slice(eqn: Eqn, ins: Ins, why: str) -> Sequence[Sequence[Dim]]:
    for dim, part in zip(ins[0], ins[1], strict=True):
        if dim.size == part.size:
            dims.tie(dim, part, why)
        else:
            keep_all([dim, part], f'{why} writes a part of it')
    return [ins[0]]


def keep_all(some: Sequence[Dim], why: str) -> None:
    """Keeps all units of some dims."""
    for dim in some:
        dims.keep(dim, why)


def fixed(shape: Sequence[int], why: str) -> list[Dim]:
    """Makes dims whose units stay."""
    return [Dim(size, why) for size in shape]


def _listed(axes: Any) -> Sequence[int]:
    return [axes] if isinstance(axes, int) else axes


_RULES: dict[str, Rule] = {
    'broadcast_in_dim': _broadcast,
    'concatenate': _concatenate,
    'conv_general_dilated': _conv,
    'cumlogsumexp': _along_axis,
    'cummax': _along_axis,
    'cummin': _along_axis,
    'cumprod': _along_axis,
    'cumsum': _along_axis,
    'dot_general': _dot,
    'dynamic_slice': _dynamic_slice,
    'dynamic_update_slice': _dynamic_update_slice,
    'gather': _gather,
    'iota': _made,
    'pad': _pad,
    'random_bits': _made,
    'random_clone': _keys,
    'random_fold_in': _keys,
    'random_seed': _keys,
    'random_split': _keys,
    'random_unwrap': _keys,
    'random_wrap': _keys,
    'reduce_window_max': _window,
    'reduce_window_min': _window,
    'reduce_window_sum': _window,
    'reshape': _reshape,
    'rev': _along_axis,
    'slice': _slice,
    'sort': _along_axis,
    'split': _split,
    'squeeze': _squeeze,
    'stack': _stack,
    'tile': _tile,
    'top_k': _top_k,
    'transpose': _transpose,
    'unstack': _unstack,
    **dict.fromkeys(
        (
            'argmax',
            'argmin',
            'reduce_and',
            'reduce_max',
            'reduce_min',
            'reduce_or',
            'reduce_prod',
            'reduce_sum',
            'reduce_xor',
        ),
        _reduce,
    ),
}
