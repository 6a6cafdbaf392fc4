"""Which entries of a program's values are constants: made of parameters alone, whatever the input.

An entry moves where the input may change it. It does not where all it is made of does not, or where
what moves meets a 0: a unit whose incoming weights are all 0 has its bias for a value. Nothing is
tried out; an entry that is not known to be constant moves.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxprune.structured import inline, rules
from jaxprune.structured.inline import Op, Program
from jaxprune.structured.rules import Eqn


class Value(NamedTuple):
    """What is known about one value."""

    at: Any
    """Array; 0 where it moves."""
    moves: np.ndarray
    """Booleans of the same shape: whether the input may change an entry."""


def walk(
    program: Program, closed: core.ClosedJaxpr, leaves: Sequence[np.ndarray]
) -> Iterator[tuple[Op, list[Value]]]:
    """Runs what is constant in a program.

    Args:
      program: `closed`, inlined.
      closed: the program, for the shapes of its arguments.
      leaves: its first arguments, which do not move; all others do.

    Yields:
      Each equation, with what is known about its operands.
    """
    known = [_still(leaf) for leaf in leaves]
    known += [_moving(aval) for aval in closed.in_avals[len(leaves) :]]
    env = dict(zip(program.args, known, strict=True))
    env |= {number: _still(value) for number, value in program.consts.items()}
    for op in program.ops:
        ins = [env[number] for number in op.ins]
        yield op, ins
        env.update(zip(op.outs, _results(op.eqn, ins), strict=True))


def _still(value: Any) -> Value:
    return Value(value, np.broadcast_to(False, np.shape(value)))


def _moving(aval: Any) -> Value:
    zero = None if _is_opaque(aval) else np.zeros((), aval.dtype)
    at = None if zero is None else np.broadcast_to(zero, aval.shape)
    return Value(at, np.broadcast_to(True, aval.shape))


def _is_opaque(aval: Any) -> bool:
    """Tells whether a value holds no numbers, as random keys."""
    return bool(jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended))


def _results(eqn: Eqn, ins: Sequence[Value]) -> list[Value]:
    avals = [atom.aval for atom in eqn.outvars]
    opaque = any(_is_opaque(atom.aval) for atom in (*eqn.invars, *eqn.outvars))
    name = eqn.primitive.name
    rule = _entrywise if name in rules.ELEMENTWISE else _whole
    moves = (_whole if opaque or eqn.effects else _RULES.get(name, rule))(eqn, ins)
    if all(own.all() and own.size for own in moves):
        return [_moving(aval) for aval in avals]
    found = inline.run(eqn, [value.at for value in ins])
    clear = lambda x, own: jnp.where(own, jnp.zeros((), x.dtype), x) if own.any() else x
    return [Value(clear(x, own), own) for x, own in zip(found, moves, strict=True)]


def _whole(eqn: Eqn, ins: Sequence[Value]) -> list[np.ndarray]:
    """Of what is not known: all moves where anything does."""
    moves = bool(eqn.effects) or any(value.moves.any() for value in ins)
    return [np.broadcast_to(moves, _shape(atom)) for atom in eqn.outvars]


def _entrywise(eqn: Eqn, ins: Sequence[Value]) -> list[np.ndarray]:
    if len(eqn.outvars) > 1:  # each result is an operand
        return [value.moves for value in ins]
    shape = _shape(eqn.outvars[0])
    return [np.logical_or.reduce([np.broadcast_to(value.moves, shape) for value in ins])]


def _product(eqn: Eqn, ins: Sequence[Value]) -> list[np.ndarray]:
    (moves,) = _entrywise(eqn, ins)
    for value in ins:
        moves = moves & _counts(value)
    return [moves]


def _counts(value: Value) -> np.ndarray:
    """Tells which entries are not known to be 0."""
    result: np.ndarray = value.moves | (np.asarray(value.at) != 0)
    return result


def _rearranged(eqn: Eqn, ins: Sequence[Value]) -> list[np.ndarray]:
    return inline.rearrange(eqn, *[value.moves for value in ins])


def _looked_up(eqn: Eqn, ins: Sequence[Value]) -> list[np.ndarray]:
    operand, *indices = ins
    if any(value.moves.any() for value in indices):
        return _whole(eqn, ins)
    return inline.rearrange(eqn, operand.moves, *[value.at for value in indices])


def _reduced(eqn: Eqn, ins: Sequence[Value]) -> list[np.ndarray]:
    return [np.any(ins[0].moves, axis=tuple(eqn.params['axes']))]


def _window(eqn: Eqn, ins: Sequence[Value]) -> list[np.ndarray]:
    c = eqn.params
    return [
        np.asarray(
            jax.lax.reduce_window(
                jnp.asarray(ins[0].moves, jnp.float32),
                0.0,
                jax.lax.max,
                c['window_dimensions'],
                c['window_strides'],
                c['padding'],
                c['base_dilation'],
                c['window_dilation'],
            )
            > 0
        )
    ]


def _dot(eqn: Eqn, ins: Sequence[Value]) -> list[np.ndarray]:
    """Counts the products of each sum that move."""
    numbers = eqn.params['dimension_numbers']
    number = lambda mask: jnp.asarray(mask, jnp.float32)
    count = lambda a, b: jax.lax.dot_general(number(a), number(b), numbers)
    left, right = ins
    result = np.asarray(count(left.moves, _counts(right)) > 0)
    if right.moves.any():
        result = result | np.asarray(count(_counts(left), right.moves) > 0)
    return [result]


def _conv(eqn: Eqn, ins: Sequence[Value]) -> list[np.ndarray]:
    """Tells which channels move, for all positions alike."""
    images, kernel = ins
    if eqn.params['batch_group_count'] != 1 or kernel.moves.any():
        return _whole(eqn, ins)
    of_lhs, of_rhs, of_out = eqn.params['dimension_numbers']
    read = np.any(images.moves, axis=(of_lhs[0], *of_lhs[2:]))
    taps = np.any(_counts(kernel).transpose(of_rhs), axis=tuple(range(2, len(of_rhs))))
    moves = (taps & by_output(read, taps.shape, eqn.params['feature_group_count'])).any(axis=1)
    shape = _shape(eqn.outvars[0])
    own = moves.reshape([-1 if axis == of_out[1] else 1 for axis in range(len(shape))])
    return [np.broadcast_to(own, shape)]


def by_output(channels: np.ndarray, shape: Sequence[int], groups: int) -> np.ndarray:
    """Lays the channels (C,) that a grouped convolution reads along its kernel (O, C / groups)."""
    return np.repeat(channels.reshape(groups, shape[1]), shape[0] // groups, axis=0)


def _shape(atom: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = atom.aval.shape
    return shape


Rule: TypeAlias = Callable[[Eqn, Sequence[Value]], list[np.ndarray]]
"""Finds what moves in the results of an equation."""

_REARRANGED = """
    broadcast_in_dim concatenate pad reshape rev slice split squeeze stack tile transpose unstack
    """
_REDUCED = 'argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum'
_RULES: dict[str, Rule] = {
    **dict.fromkeys(('and', 'mul'), _product),
    **dict.fromkeys(_REARRANGED.split(), _rearranged),
    **dict.fromkeys(_REDUCED.split(), _reduced),
    **dict.fromkeys(('dynamic_slice', 'gather'), _looked_up),
    **dict.fromkeys(('reduce_window_max', 'reduce_window_min', 'reduce_window_sum'), _window),
    'conv_general_dilated': _conv,
    'dot_general': _dot,
}
