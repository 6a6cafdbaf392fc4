"""A decoder as large language models have it, that predicts the next token of a sequence."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models.widths import scaled

_BASE = 10_000.0


class Decoder(nn.Module):
    """Pre-norm blocks of grouped-query attention with rotary positions, and gated layers.

    There are no biases and no dropout; the embedding and the last kernel are two leaves. `width`
    multiplies the units of each head, to an even number, and all other widths.

    Source: Su et al. 2021, arXiv:2104.09864 (rotary, pairs half a head apart); Ainslie et al. 2023,
    arXiv:2305.13245 (grouped queries); Shazeer 2020, arXiv:2002.05202 (SwiGLU); Zhang & Sennrich
    2019, arXiv:1910.07467 (RMSNorm).
    """

    num_classes: int  # of the tokens that are read and predicted
    layers: int = 2
    heads: int = 4  # of queries
    groups: int = 2  # heads of keys and values, each for heads / groups of queries
    head_units: int = 16
    units: int = 64
    hidden: int = 176
    dtype: DTypeLike = jnp.float32
    width: float = 1.0

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Maps tokens (N, L), integers below num_classes, to logits (N, L, num_classes), float32.

        The logits at a position depend on the tokens up to it, itself included.
        """
        del train
        units = scaled(self.units, self.width)
        x = nn.Embed(self.num_classes, units, dtype=self.dtype)(tokens.astype(jnp.int32))
        for _ in range(self.layers):
            x = x + self._attention(_norm(x), units)
            x = x + self._gated(_norm(x), units)
        return self._dense(self.num_classes)(_norm(x)).astype(jnp.float32)

    def _attention(self, x_NxLxD: jax.Array, units: int) -> jax.Array:
        own = 2 * scaled(self.head_units // 2, self.width)
        heads = lambda n: nn.DenseGeneral((n, own), use_bias=False, dtype=self.dtype)
        query, key = (_turned(heads(n)(x_NxLxD)) for n in (self.heads, self.groups))
        value = heads(self.groups)(x_NxLxD)
        y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return nn.DenseGeneral(units, axis=(-2, -1), use_bias=False, dtype=self.dtype)(y)

    def _gated(self, x: jax.Array, units: int) -> jax.Array:
        hidden = scaled(self.hidden, self.width)
        return self._dense(units)(nn.silu(self._dense(hidden)(x)) * self._dense(hidden)(x))

    def _dense(self, units: int) -> nn.Dense:
        return nn.Dense(units, use_bias=False, dtype=self.dtype)


def _norm(x: jax.Array) -> jax.Array:
    return nn.RMSNorm()(x.astype(jnp.float32)).astype(x.dtype)


def _turned(x_NxLxHxK: jax.Array) -> jax.Array:
    """Turns pairs of features, half a head apart, by angles that grow with the position."""
    half = x_NxLxHxK.shape[-1] // 2
    rates = _BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.arange(x_NxLxHxK.shape[1], dtype=jnp.float32)[:, None] * rates[None]
    cos, sin = (f(angles)[None, :, None].astype(x_NxLxHxK.dtype) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x_NxLxHxK, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
