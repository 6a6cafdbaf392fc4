"""How a model grows and shrinks: one factor for all its hidden widths."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def scaled(units: int, width: float) -> int:
    """Multiplies a hidden width by a factor, to the nearest integer and at least 1."""
    return max(1, round(units * width))


def wide(dtype: DTypeLike) -> DTypeLike:
    """Returns float32, or the dtype itself where it is wider: what to normalise in."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
