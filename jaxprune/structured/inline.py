"""A program without calls: which equation makes a value, which use it, which parameter it is."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxprune.structured import trace
from jaxprune.structured.rules import Eqn


class Op(NamedTuple):
    """One equation between values that are numbered."""

    eqn: Eqn
    ins: tuple[int, ...]
    outs: tuple[int, ...]


class Program(NamedTuple):
    """A program without calls: equations in the order in which they run."""

    ops: tuple[Op, ...]
    args: tuple[int, ...]
    consts: dict[int, Any]
    """Numbers that are written in the program, and arrays that its function holds."""
    outs: tuple[int, ...]


def inlined(closed: core.ClosedJaxpr) -> Program:
    """Puts the programs that a program calls in the place of the calls; loops stay equations."""
    count = itertools.count()
    ops: list[Op] = []
    consts: dict[int, Any] = {}

    def const(value: Any) -> int:
        consts[number := next(count)] = value
        return number

    def visit(closed: core.ClosedJaxpr, ins: Sequence[int]) -> list[int]:
        env: dict[Any, int] = dict(zip(closed.jaxpr.invars, ins, strict=True))
        env |= dict(zip(closed.jaxpr.constvars, map(const, closed.consts), strict=True))
        read = lambda atom: const(atom.val) if trace.is_literal(atom) else env[atom]
        for eqn in closed.jaxpr.eqns:
            own = [read(atom) for atom in eqn.invars]
            if eqn.primitive.name in trace.CALLS:
                outs = visit(trace.called(eqn), own)
            else:
                outs = [next(count) for _ in eqn.outvars]
                ops.append(Op(eqn, tuple(own), tuple(outs)))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    args = [next(count) for _ in closed.jaxpr.invars]
    outs = visit(closed, args)
    return Program(tuple(ops), tuple(args), consts, tuple(outs))


class Leaf(NamedTuple):
    """A value that is one of the arguments, or a rearrangement of it."""

    number: int
    """Of the argument."""
    entries: np.ndarray
    """Which entry of the flattened argument each entry of the value is."""


class Uses:
    """Who makes and who uses each value of a program."""

    def __init__(self, program: Program, shapes: Sequence[tuple[int, ...]]) -> None:
        """Takes the shapes of the first arguments: those that `leaf` may find."""
        self._shapes = dict(zip(program.args, enumerate(shapes), strict=False))
        self._maker = {value: op for op in program.ops for value in op.outs}
        self._user = {value: op for op in program.ops for value in op.ins}
        self._count = Counter([*program.outs, *[v for op in program.ops for v in op.ins]])

    def only(self, value: int) -> Op | None:
        """Finds the equation that alone uses a value, once."""
        return self._user.get(value) if self._count[value] == 1 else None

    def leaf(self, value: int) -> Leaf | None:
        """Finds the argument, of those of which shapes were given, that a value alone is made of.

        Nothing else uses the argument, and the value is its entries in another layout, precision,
        or repeated.
        """
        if self._count[value] != 1:
            return None
        if value in self._shapes:
            number, shape = self._shapes[value]
            return Leaf(number, np.arange(np.prod(shape), dtype=np.int32).reshape(shape))
        op = self._maker.get(value)
        if op is None or not is_layout(op):
            return None
        found = self.leaf(op.ins[0])
        return found and Leaf(found.number, laid_out(op, found.entries))


def is_layout(op: Op) -> bool:
    """Tells whether an equation lays out its operand otherwise, or in another precision."""
    name, atoms = op.eqn.primitive.name, (*op.eqn.invars, *op.eqn.outvars)
    if name == 'convert_element_type':
        return all(jnp.issubdtype(atom.aval.dtype, jnp.floating) for atom in atoms)
    return len(op.ins) == 1 and name in ('broadcast_in_dim', 'reshape', 'squeeze', 'transpose')


def laid_out(op: Op, array: np.ndarray) -> np.ndarray:
    """Does to an array of any dtype what such an equation does to its operand."""
    if op.eqn.primitive.name == 'convert_element_type':
        return array
    return rearrange(op.eqn, array)[0]


def run(eqn: Eqn, values: Sequence[Any]) -> list[Any]:
    """Runs one equation."""
    given = {v: x for v, x in zip(eqn.invars, values, strict=True) if not trace.is_literal(v)}
    return trace.alone(eqn)(*given.values())


def rearrange(eqn: Eqn, *arrays: Any) -> list[np.ndarray]:
    """Runs an equation that moves entries, whatever they are, on arrays of another dtype."""
    results = eqn.primitive.bind(*map(jnp.asarray, arrays), **eqn.params)
    return [np.asarray(x) for x in (results if eqn.primitive.multiple_results else [results])]
