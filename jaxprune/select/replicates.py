"""Under vmap, one replicate after the other, each read from where it lies in memory."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxprune.select.ties import Leaf

Result = TypeVar('Result')


def in_turn(f: Callable[[list[Leaf], Any], Result]) -> Callable[[list[jax.Array], Any], Result]:
    """Gives a function of large leaves a rule for vmap, at any depth: a loop over the replicates.

    Side by side, loops would all take the passes of the slowest replicate, and branches both sides.
    On many devices, which may each have some of the replicates, there is no such rule.

    Args:
      f: function of leaves that reads them many times, and of a tree of small arrays; it returns a
        tree of arrays, and has no derivative.

    Returns:
      The function, of the leaves as arrays.
    """

    def whole(leaves: list[jax.Array], small: Any) -> Result:
        return f([Leaf(x.shape, functools.partial(lambda x: x, x)) for x in leaves], small)

    if jax.device_count() > 1:
        return whole
    one, many = custom_vmap(whole), custom_vmap(functools.partial(_each, f))
    one.def_vmap(lambda size, batched, *args: _all(many(*_stack(size, batched, args))))

    @many.def_vmap
    def _(size: int, batched: Any, *args: Any) -> Any:
        flat = lambda x: x.reshape(size * x.shape[1], *x.shape[2:])
        found = many(*jax.tree.map(flat, _stack(size, batched, args)))
        return _all(jax.tree.map(lambda x: x.reshape(size, len(x) // size, *x.shape[1:]), found))

    return one


def _each(f: Callable[[list[Leaf], Any], Result], leaves: list[jax.Array], small: Any) -> Result:
    """Calls f for each replicate along the first axis."""
    held = [_sliceable(x) for x in leaves]

    def read(held: jax.Array, like: jax.Array, i: jax.Array) -> jax.Array:
        own = lax.dynamic_index_in_dim(held, i, keepdims=False)
        return own if own.dtype == like.dtype else lax.bitcast_convert_type(own, like.dtype)

    def one(i_and_small: tuple[jax.Array, Any]) -> Result:
        i, small = i_and_small
        own = [
            Leaf(x.shape[1:], functools.partial(read, h, x, i))
            for h, x in zip(held, leaves, strict=True)
        ]
        return f(own, small)

    count = len(jax.tree.leaves(small)[0])
    return lax.map(one, (jnp.arange(count), small))


def _sliceable(x: jax.Array) -> jax.Array:
    """Holds 16 bits as integers: of a sliced bfloat16 XLA on CPU keeps the whole as float32."""
    return lax.bitcast_convert_type(x, 'int16') if x.dtype.itemsize == 2 else x


def _stack(size: int, batched: Any, args: Any) -> Any:
    """Repeats what is the same for all replicates."""
    repeat = lambda x, own: x if own else jnp.broadcast_to(x, (size, *x.shape))
    return jax.tree.map(repeat, args, tuple(batched))


def _all(found: Result) -> tuple[Result, Any]:
    return found, jax.tree.map(lambda _: True, found)
