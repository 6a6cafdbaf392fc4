"""A small decoder that predicts the next token of a sequence."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models.widths import scaled


class Transformer(nn.Module):
    """Causal transformer: pre-norm blocks of attention and a ReLU layer, learned positions.

    With the 97 tokens and 64 positions of stdlib_text it has 116,193 weights. There is no dropout;
    training and evaluation are the same function. `width` multiplies the units of each head,
    so that the number of heads stays.

    Prunable are both embeddings, of tokens and of positions, and all kernels: queries, keys and
    values together, the attention's output, the two layers behind it, and the last one; not biases
    and norms.

    Source: Vaswani et al. 2017, arXiv:1706.03762. Deviation: normalisation comes first (Xiong et
    al. 2020, arXiv:2002.04745), positions are learned, and attention has no biases.
    """

    num_classes: int  # of the tokens that are read and predicted
    layers: int = 2
    heads: int = 2
    head_units: int = 32
    dtype: DTypeLike = jnp.float32
    width: float = 1.0  # multiplies the units of each head, and with them all hidden widths

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Maps tokens (N, L), integers below num_classes, to logits (N, L, num_classes), float32.

        The logits at a position depend on the tokens up to it, itself included.
        """
        del train
        units = self.heads * scaled(self.head_units, self.width)
        position = self.param('positions', nn.initializers.normal(0.02), (tokens.shape[1], units))
        x = nn.Embed(self.num_classes, units, dtype=self.dtype)(tokens.astype(jnp.int32))
        x = x + position.astype(self.dtype)[None]
        for _ in range(self.layers):
            x = _Block(self.heads, self.dtype)(x)
        x = nn.LayerNorm()(x.astype(jnp.float32)).astype(self.dtype)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class _Block(nn.Module):
    """Attention over what came before, then two layers a position; both are added to the input."""

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_NxLxD: jax.Array) -> jax.Array:
        N, L, D = x_NxLxD.shape
        y = nn.LayerNorm()(x_NxLxD.astype(jnp.float32)).astype(self.dtype)
        y = nn.Dense(3 * D, use_bias=False, dtype=self.dtype, name='query_key_value')(y)
        query, key, value = jnp.moveaxis(y.reshape(N, L, 3, self.heads, D // self.heads), 2, 0)
        y = jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(N, L, D)
        x = x_NxLxD + nn.Dense(D, use_bias=False, dtype=self.dtype, name='attended')(y)
        y = nn.LayerNorm()(x.astype(jnp.float32)).astype(self.dtype)
        y = nn.relu(nn.Dense(4 * D, dtype=self.dtype)(y))
        return x + nn.Dense(D, dtype=self.dtype)(y)
