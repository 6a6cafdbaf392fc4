"""A function's jaxpr, with a dim for each axis of each value in it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend import core, source_info_util

from jaxprune.structured import dims, rules
from jaxprune.structured.dims import Dim

Axes: TypeAlias = tuple[Dim, ...]
"""The dims of one value."""

CALLS = frozenset(
    'checkpoint closed_call core_call custom_jvp_call eval_jaxpr jit pjit remat2'.split()
)
"""Equations that run one program once, on all their operands."""


class Step(NamedTuple):
    """One equation."""

    eqn: core.JaxprEqn
    ins: tuple[Axes, ...]
    outs: tuple[Axes, ...]
    inner: tuple['Block', ...]
    """The programs that it calls: the body of a scan, the branches of a conditional, ..."""
    name: str
    """Of the equation in messages, as `'reshape (model.py:12)'`."""


class Block(NamedTuple):
    """A program: equations in the order in which they run."""

    jaxpr: core.Jaxpr
    consts: tuple[Any, ...]
    const_axes: tuple[Axes, ...]
    ins: tuple[Axes, ...]
    steps: tuple[Step, ...]
    outs: tuple[Axes, ...]


class Barrier(NamedTuple):
    """An equation that is not understood, so that all it touches stays whole."""

    primitive: str
    where: str
    """File and line that made it, or an empty text."""


def closed_jaxpr(fn: Callable[..., Any], *args: Any) -> tuple[core.ClosedJaxpr, Any]:
    """Traces a function of arrays, or of their shapes.

    Returns:
      The jaxpr, and the shapes of what the function returns, as a tree.

    Raises:
      ValueError: what it does depends on values; it returns no array.
    """
    try:
        jaxpr, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise ValueError(
            f'the function cannot be traced, for it depends on values of its arguments: {error}'
        ) from error
    except TypeError as error:
        if 'valid JAX type' not in str(error):
            raise
        raise ValueError(f'the function must take and return arrays alone: {error}') from error
    if not jaxpr.out_avals:
        raise ValueError('the function returns no array')
    return jaxpr, shapes


def fresh(aval: Any, kept: str = '') -> Axes:
    """Makes new dims for a value, kept for a reason or free."""
    return tuple(Dim(size, kept) for size in aval.shape)


def trace(
    closed: core.ClosedJaxpr,
    ins: Sequence[Axes],
    barriers: list[Barrier],
    *,
    tangents: bool = False,
    within: str = '',
) -> Block:
    """Walks through a program and ties the dims of its values, as each equation demands.

    Args:
      closed: the program.
      ins: the dims of its arguments.
      barriers: gets the equations that are not understood and meet a dim that is free.
      tangents: whether to walk through the derivatives of `jax.custom_jvp` functions too.
      within: the place of the equation that calls it, for equations that do not tell theirs.

    Returns:
      The program with its dims; read them after all of it was walked through.
    """
    jaxpr = closed.jaxpr
    const_axes = tuple(fresh(var.aval) for var in jaxpr.constvars)
    axes: dict[core.Var, Axes] = dict(zip(jaxpr.constvars, const_axes, strict=True))
    axes |= dict(zip(jaxpr.invars, ins, strict=True))
    read = lambda atom: () if is_literal(atom) else axes[atom]
    steps = []
    for eqn in jaxpr.eqns:
        step = _step(eqn, tuple(map(read, eqn.invars)), barriers, (tangents, place(eqn) or within))
        axes.update(zip(eqn.outvars, step.outs, strict=True))
        steps.append(step)
    outs = tuple(read(atom) for atom in jaxpr.outvars)
    return Block(jaxpr, tuple(closed.consts), const_axes, tuple(ins), tuple(steps), outs)


def place(eqn: core.JaxprEqn) -> str:
    """Names the file and line that made an equation, as `'model.py:12'`; may be empty."""
    return source_info_util.summarize(eqn.source_info).split(' (')[0].rpartition('/')[2]


def describe(eqn: core.JaxprEqn, where: str) -> str:
    """Names an equation in messages, as `'reshape (model.py:12)'`."""
    return f'{eqn.primitive.name} ({where})' if where else eqn.primitive.name


def steps_of(block: Block) -> Iterator[Step]:
    """Yields all steps of a program, those of the programs that it calls included."""
    for step in block.steps:
        yield step
        for inner in step.inner:
            yield from steps_of(inner)


Walk: TypeAlias = Callable[[core.ClosedJaxpr, Sequence[Axes]], Block]


def _step(
    eqn: core.JaxprEqn, ins: tuple[Axes, ...], barriers: list[Barrier], about: tuple[bool, str]
) -> Step:
    name, (tangents, where) = eqn.primitive.name, about
    described = describe(eqn, where)
    if name in _CALLS:
        walk = lambda closed, ins: trace(closed, ins, barriers, tangents=tangents, within=where)
        outs, inner = _CALLS[name](eqn, ins, walk, described)
        if tangents and name == 'custom_jvp_call':
            inner = [*inner, _derivative(eqn, ins, outs, barriers)]
        return Step(eqn, ins, tuple(outs), tuple(inner), described)
    rule = rules.rule(eqn)
    if rule is not None:
        return Step(eqn, ins, tuple(map(tuple, rule(eqn, ins, described))), (), described)
    why = f'it meets {described}, which is not known'
    if any(not row.kept for axes in ins for dim in axes for row in dims.units(dim)):
        barriers.append(Barrier(name, where))
    for axes in ins:
        for dim in axes:
            dims.keep(dim, why)
    return Step(eqn, ins, tuple(fresh(var.aval, why) for var in eqn.outvars), (), described)


def _tie_all(some: Sequence[Axes], others: Sequence[Axes], why: str) -> None:
    for axes, other_axes in zip(some, others, strict=True):
        for a, b in zip(axes, other_axes, strict=True):
            dims.tie(a, b, why)


def _call(eqn: core.JaxprEqn, ins: Sequence[Axes], walk: Walk, name: str) -> Any:
    del name
    inner = walk(called(eqn), ins)
    return inner.outs, [inner]


def called(eqn: core.JaxprEqn) -> core.ClosedJaxpr:
    """Finds the program that a call, checkpoint or scan runs."""
    found = eqn.params['call_jaxpr' if 'call_jaxpr' in eqn.params else 'jaxpr']
    return found if isinstance(found, core.ClosedJaxpr) else core.ClosedJaxpr(found, ())


def of_scan(eqn: core.JaxprEqn) -> tuple[int, int]:
    """Counts the constants and the carried values among the operands of a scan, its first."""
    c = eqn.params
    if 'num_carry' in c:  # before JAX 0.12
        return c['num_consts'], c['num_carry']
    consts, carries, _ = c['ft_in'].unpack()
    return len(consts), len(carries)


def variables(eqn: core.JaxprEqn) -> list[core.Var]:
    """Lists the operands of an equation that are no literals, each once."""
    return list(dict.fromkeys(v for v in eqn.invars if isinstance(v, core.Var)))


def alone(eqn: core.JaxprEqn) -> Callable[..., list[Any]]:
    """Makes the function of its variables that an equation is."""
    given, results = variables(eqn), eqn.outvars
    about = core.DebugInfo(
        'structured', eqn.primitive.name, ('',) * len(given), ('',) * len(results)
    )
    jaxpr = core.Jaxpr((), given, results, [eqn], eqn.effects, about)
    fn: Callable[..., list[Any]] = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))
    return fn


def is_literal(atom: Any) -> bool:
    """Tells whether an operand is a number that is written in the program."""
    return isinstance(atom, core.Literal)


def moves(var: Any) -> bool:
    """Tells whether a value has a tangent."""
    return bool(jnp.issubdtype(var.aval.dtype, jnp.inexact))


def _derivative(
    eqn: core.JaxprEqn, ins: Sequence[Axes], outs: Sequence[Axes], barriers: list[Barrier]
) -> Block:
    """Walks through the rule of a `jax.custom_jvp` function.

    Returns:
      A program of the variables, and then of the tangents of those that have one, that returns the
      tangents of the results.
    """
    given = variables(eqn)
    moving = [var for var in given if moves(var)]
    fn = alone(eqn)

    def rule(*values: jax.Array) -> Any:
        primals = dict(zip(given, values[: len(given)], strict=True))

        def of_moving(*changed: jax.Array) -> Any:
            return fn(*(primals | dict(zip(moving, changed, strict=True))).values())

        starts = tuple(primals[var] for var in moving)
        return jax.jvp(of_moving, starts, values[len(given) :])[1]

    avals: list[Any] = [v.aval for v in (*given, *moving)]
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    read = {v: axes for v, axes in zip(eqn.invars, ins, strict=True) if not is_literal(v)}
    own = [read[var] for var in (*given, *moving)]
    block = trace(jax.make_jaxpr(rule)(*shapes), own, barriers)
    _tie_all(block.outs, outs, eqn.primitive.name)
    return block


def _scan(eqn: core.JaxprEqn, ins: Sequence[Axes], walk: Walk, name: str) -> Any:
    consts, carries = of_scan(eqn)
    why = f'it is the axis that {name} goes over'
    for axes in ins[consts + carries :]:
        dims.keep(axes[0], why)
    inner = walk(called(eqn), [*ins[: consts + carries], *[a[1:] for a in ins[consts + carries :]]])
    _tie_all(inner.outs[:carries], ins[consts : consts + carries], name)
    length = Dim(eqn.params['length'], why)
    return [*inner.outs[:carries], *[(length, *axes) for axes in inner.outs[carries:]]], [inner]


def _while(eqn: core.JaxprEqn, ins: Sequence[Axes], walk: Walk, name: str) -> Any:
    of_cond, of_body = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
    state = ins[of_cond + of_body :]
    cond = walk(eqn.params['cond_jaxpr'], [*ins[:of_cond], *state])
    body = walk(eqn.params['body_jaxpr'], [*ins[of_cond : of_cond + of_body], *state])
    _tie_all(body.outs, state, name)
    return state, [cond, body]


def _cond(eqn: core.JaxprEqn, ins: Sequence[Axes], walk: Walk, name: str) -> Any:
    inner = [walk(branch, ins[1:]) for branch in eqn.params['branches']]
    for other in inner[1:]:
        _tie_all(other.outs, inner[0].outs, name)
    return inner[0].outs, inner


_CALLS: dict[str, Callable[[core.JaxprEqn, Sequence[Axes], Walk, str], Any]] = {
    **dict.fromkeys(CALLS, _call),
    'cond': _cond,
    'scan': _scan,
    'while': _while,
}
