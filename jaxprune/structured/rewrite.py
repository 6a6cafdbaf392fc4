"""The program of a function, run at smaller widths."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util

from jaxprune.structured import dims, trace
from jaxprune.structured.dims import Dim
from jaxprune.structured.trace import Axes, Block, Step

MaskOf: TypeAlias = Callable[[Dim], np.ndarray]
"""Which positions along a dim stay."""


def masks_of(kept: dict[Dim, np.ndarray]) -> MaskOf:
    """Makes the function that tells which positions along a dim stay, from rows of units."""
    known: dict[Dim, np.ndarray] = {}

    def mask_of(dim: Dim) -> np.ndarray:
        dim = dims.resolve(dim)
        if dim not in known:
            known[dim] = dims.mask(dim, kept)
        return known[dim]

    return mask_of


def run(block: Block, mask_of: MaskOf, args: Sequence[jax.Array]) -> list[jax.Array]:
    """Runs a program at the widths that masks leave.

    Args:
      block: the program with its dims.
      mask_of: which positions along each dim stay.
      args: its arguments, cut.

    Returns:
      Its results, cut.
    """
    env: dict[Any, Any] = dict(zip(block.jaxpr.invars, args, strict=True))
    for var, const, axes in zip(block.jaxpr.constvars, block.consts, block.const_axes, strict=True):
        env[var] = take(const, axes, mask_of)
    read = lambda atom: atom.val if trace.is_literal(atom) else env[atom]
    for step in block.steps:
        changed = any(not mask_of(dim).all() for axes in (*step.ins, *step.outs) for dim in axes)
        changed = changed or any(_is_changed(inner, mask_of) for inner in step.inner)
        rule = _RULES.get(step.eqn.primitive.name, _as_it_is) if changed else _as_it_is
        with _as_by(step.eqn):
            results = rule(step, [read(atom) for atom in step.eqn.invars], mask_of)
        env.update(zip(step.eqn.outvars, results, strict=True))
    return [read(atom) for atom in block.jaxpr.outvars]


def _as_by(eqn: Any) -> contextlib.AbstractContextManager[None]:
    """Makes what is run count as made where the equation was: in errors, profiles and costs."""
    c = eqn.source_info
    return source_info_util.user_context(c.traceback, name_stack=c.name_stack)


def take(value: Any, axes: Axes, mask_of: MaskOf) -> Any:
    """Takes the positions of an array that stay."""
    for axis, dim in enumerate(axes):
        mask = mask_of(dim)
        if not mask.all():
            value = jnp.take(value, np.flatnonzero(mask), axis=axis)
    return value


def shape(axes: Axes, mask_of: MaskOf) -> tuple[int, ...]:
    """Gives the shape of a value whose axes are cut."""
    return tuple(int(mask_of(dim).sum()) for dim in axes)


def _is_changed(block: Block, mask_of: MaskOf) -> bool:
    return any(
        not mask_of(dim).all()
        for step in trace.steps_of(block)
        for axes in (*step.ins, *step.outs)
        for dim in axes
    )


def _bind(step: Step, values: Sequence[Any], **changed: Any) -> list[Any]:
    results = step.eqn.primitive.bind(*values, **(step.eqn.params | changed))
    return list(results) if step.eqn.primitive.multiple_results else [results]


def _as_it_is(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    if not step.eqn.primitive.multiple_results:
        return _bind(step, values)
    del mask_of
    return trace.alone(step.eqn)(*_variables(step, values).values())


def _variables(step: Step, values: Sequence[Any]) -> dict[Any, Any]:
    pairs = zip(step.eqn.invars, values, strict=True)
    return {var: value for var, value in pairs if not trace.is_literal(var)}


def _broadcast(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    places = step.eqn.params['broadcast_dimensions']
    return [jax.lax.broadcast_in_dim(values[0], shape(step.outs[0], mask_of), places)]


def _reshape(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    return [jax.lax.reshape(values[0], shape(step.outs[0], mask_of))]


def _made(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    """Makes the whole array and cuts it: positions and random bits are those of the whole."""
    return [take(_bind(step, values)[0], step.outs[0], mask_of)]


def _slice(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    c = step.eqn.params
    starts, limits = [], []
    strides = c['strides'] or [1] * len(step.ins[0])
    for dim, start, limit, stride in zip(
        step.ins[0], c['start_indices'], c['limit_indices'], strides, strict=True
    ):
        mask = mask_of(dim)
        starts.append(start if stride > 1 else int(mask[:start].sum()))
        limits.append(limit if mask.all() else int(mask[:limit].sum()))
        if stride > 1 and not mask.all():  # whole runs of `stride` positions are gone
            limits[-1] = int(mask.sum())
    return [jax.lax.slice(values[0], starts, limits, strides)]


def _split(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    axis = step.eqn.params['axis']
    sizes = [int(mask_of(axes[axis]).sum()) for axes in step.outs]
    return list(jax.lax.split(values[0], sizes, axis))


def _pad(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    config = []
    for dim, (low, high, between) in zip(
        step.outs[0], step.eqn.params['padding_config'], strict=True
    ):
        mask = mask_of(dim)
        ends = low, high
        if not mask.all():
            ends = int(mask[:low].sum()), int(mask[len(mask) - high :].sum())
        config.append((*ends, between))
    return [jax.lax.pad(values[0], values[1], config)]


def _conv(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    del mask_of
    of_lhs, of_rhs, _ = step.eqn.params['dimension_numbers']
    groups = values[0].shape[of_lhs[1]] // values[1].shape[of_rhs[1]]
    return _bind(step, values, feature_group_count=groups)


def _slice_sizes(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    sizes = tuple(
        int(mask_of(dim).sum()) if size == dim.size else size
        for dim, size in zip(step.ins[0], step.eqn.params['slice_sizes'], strict=True)
    )
    return _bind(step, values, slice_sizes=sizes)


def _call(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    return run(step.inner[0], mask_of, values)


def _checkpoint(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    c = step.eqn.params
    inner = lambda *values: run(step.inner[0], mask_of, values)
    again = jax.checkpoint(inner, prevent_cse=c['prevent_cse'], policy=c['policy'])
    return list(again(*values))


def _custom_jvp(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    if len(step.inner) == 1:  # inside the rule of another
        return _call(step, values, mask_of)
    primal, derivative = step.inner
    given = _variables(step, values)

    @jax.custom_jvp
    def fn(*own: Any) -> tuple[Any, ...]:
        at = dict(zip(given, own, strict=True))
        read = lambda atom: atom.val if trace.is_literal(atom) else at[atom]
        return tuple(run(primal, mask_of, [read(atom) for atom in step.eqn.invars]))

    @fn.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        moving = [t for var, t in zip(given, tangents, strict=True) if trace.moves(var)]
        return fn(*primals), tuple(run(derivative, mask_of, [*primals, *moving]))

    return list(fn(*given.values()))


def _scan(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    c = step.eqn.params
    consts, carries = trace.of_scan(step.eqn)

    def body(carry: Any, x: Any) -> Any:
        found = run(step.inner[0], mask_of, [*values[:consts], *carry, *x])
        return found[:carries], found[carries:]

    carry, ys = jax.lax.scan(
        body,
        list(values[consts : consts + carries]),
        list(values[consts + carries :]),
        length=c['length'],
        reverse=c['reverse'],
        unroll=c['unroll'],
    )
    return [*carry, *ys]


def _while(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    a, b = step.eqn.params['cond_nconsts'], step.eqn.params['body_nconsts']
    cond, body = step.inner
    return jax.lax.while_loop(
        lambda state: run(cond, mask_of, [*values[:a], *state])[0],
        lambda state: run(body, mask_of, [*values[a : a + b], *state]),
        list(values[a + b :]),
    )


def _cond(step: Step, values: Sequence[Any], mask_of: MaskOf) -> list[Any]:
    def branch(inner: Block) -> Callable[..., Any]:
        return lambda *operands: run(inner, mask_of, operands)

    index, *operands = values
    return list(jax.lax.switch(jnp.int32(index), [branch(b) for b in step.inner], *operands))


_RULES: dict[str, Callable[[Step, Sequence[Any], MaskOf], list[Any]]] = {
    'broadcast_in_dim': _broadcast,
    'checkpoint': _checkpoint,
    'closed_call': _call,
    'cond': _cond,
    'conv_general_dilated': _conv,
    'core_call': _call,
    'custom_jvp_call': _custom_jvp,
    'dynamic_slice': _slice_sizes,
    'eval_jaxpr': _call,
    'gather': _slice_sizes,
    'iota': _made,
    'jit': _call,
    'pad': _pad,
    'pjit': _call,
    'random_bits': _made,
    'remat2': _checkpoint,
    'reshape': _reshape,
    'scan': _scan,
    'slice': _slice,
    'split': _split,
    'while': _while,
}
