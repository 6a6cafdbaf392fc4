"""Vision transformers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models.widths import scaled


class ViT(nn.Module):
    """Patches and a class token through pre-norm blocks of attention and a GELU layer.

    With the fields of 'vit_b16' it has 86,567,656 weights for 1000 classes on 224 x 224 x 3.
    `width` multiplies the units of each head and the hidden units; the number of heads stays.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929. Deviation: there is no dropout, and GELU is
    the approximation by tanh.
    """

    num_classes: int
    patch: int = 2  # pixels of a side
    layers: int = 4
    heads: int = 4
    head_units: int = 16
    dtype: DTypeLike = jnp.float32
    width: float = 1.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images (N, H, W, C), of sides that patches divide, to logits, float32."""
        del train
        units = self.heads * scaled(self.head_units, self.width)
        sides = (self.patch, self.patch)
        x = nn.Conv(units, sides, sides, dtype=self.dtype, name='patches')(
            images.astype(self.dtype)
        )
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = self.param('token', nn.initializers.zeros, (1, 1, x.shape[-1]))
        token = jnp.broadcast_to(token.astype(self.dtype), (len(x), 1, token.shape[-1]))
        x = jnp.concatenate([token, x], axis=1)
        positions = self.param('positions', nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = x + positions.astype(self.dtype)
        for _ in range(self.layers):
            x = _Block(self.heads, units, self.dtype)(x)
        x = nn.LayerNorm(epsilon=1e-6)(x[:, 0].astype(jnp.float32)).astype(self.dtype)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class _Block(nn.Module):
    """Attention between patches, then two layers a patch; both are added to the input."""

    heads: int
    units: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_NxLxD: jax.Array) -> jax.Array:
        y = nn.LayerNorm(epsilon=1e-6)(x_NxLxD.astype(jnp.float32)).astype(self.dtype)
        shape = (self.heads, self.units // self.heads)
        query, key, value = (
            nn.DenseGeneral(shape, dtype=self.dtype, name=name)(y)
            for name in ('query', 'key', 'value')
        )
        y = jax.nn.dot_product_attention(query, key, value)
        y = nn.DenseGeneral(self.units, axis=(-2, -1), dtype=self.dtype, name='attended')(y)
        x = x_NxLxD + y
        y = nn.LayerNorm(epsilon=1e-6)(x.astype(jnp.float32)).astype(self.dtype)
        y = nn.gelu(nn.Dense(4 * self.units, dtype=self.dtype)(y))
        return x + nn.Dense(self.units, dtype=self.dtype)(y)
