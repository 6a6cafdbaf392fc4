"""At least float32 for sums and products, and divisions by a scale that may be 0."""

import jax
import jax.numpy as jnp


def wide(x: jax.Array) -> jax.Array:
    """Casts to float32 what holds fewer bits; float32 and float64 stay."""
    x = jnp.asarray(x)
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def over(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Divides by a scale; by 1 where it is 0. NaN stays NaN."""
    return x / jnp.where(scale == 0, jnp.ones_like(scale), scale)


def largest(x: jax.Array) -> jax.Array:
    """The highest |x|, 0 for an empty array."""
    return jnp.max(jnp.abs(x), initial=0)
