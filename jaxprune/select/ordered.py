"""Numbers found three bits a pass: floats as integers of their order, and candidates for a bound.

A bound on integers of b bits is found in b / 3 passes: each pass counts what lies below seven
candidates, 2**shift apart, which takes the time of counting below one.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import counting
from jaxprune.counting import Count

BITS = 3


def widest(dtypes: Sequence[np.dtype]) -> np.dtype:
    """The dtype that holds the values of all floating-point dtypes given exactly."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    return jnp.dtype(jnp.float64 if jnp.dtype(jnp.float64) in dtypes else jnp.float32)


def keys(x: jax.Array, dtype: np.dtype) -> jax.Array:
    """Signed integers that order like the floats: the bits of the magnitude, with its sign."""
    signed = jnp.dtype(f'int{jnp.finfo(dtype).bits}')
    bits = lax.bitcast_convert_type(x.astype(dtype), signed)
    return jnp.where(bits < 0, jnp.array(jnp.iinfo(signed).min, signed) - bits, bits)


def key(bound: jax.Array, dtype: np.dtype) -> jax.Array:
    """The key of an unsigned bound, in order; 0 is the lowest key."""
    bits = jnp.finfo(dtype).bits
    sign = jnp.array(2 ** (bits - 1), bound.dtype)
    return lax.bitcast_convert_type(bound ^ sign, jnp.dtype(f'int{bits}'))


def first_shift(bits: int) -> jax.Array:
    """The place of the highest three bits of a number of so many bits; negative for none."""
    return jnp.int32(BITS * (math.ceil(bits / BITS) - 1))


def candidates(low: jax.Array, shift: jax.Array) -> jax.Array:
    """The next seven bounds above low, 2**shift apart and held at the highest integer."""
    highest = jnp.array(jnp.iinfo(low.dtype).max, low.dtype)
    low, shift = low[..., None], shift.astype(low.dtype)
    steps = lax.expand_dims(jnp.arange(1, 2**BITS, dtype=low.dtype), range(low.ndim - 1))
    return jnp.where(steps <= (highest - low) >> shift, low + (steps << shift), highest)


def pick(rows: jax.Array, index: jax.Array) -> jax.Array:
    """Takes from each row the entry at its index."""
    return jnp.take_along_axis(rows, index[:, None], axis=1)[:, 0]


def counts_if(needed: jax.Array, make: Callable[[], Count]) -> Count:
    """Makes the counts, or zeros where not needed.

    Out of a branch XLA does not move what counts are made of, to keep it all in memory.
    """
    zero = (needed & False).astype(jnp.uint32)  # varies inside shard_map where `needed` does
    none = lambda: counting.each(lambda n: jnp.broadcast_to(zero, n.shape), jax.eval_shape(make))
    return lax.cond(needed, make, none)
