"""A recurrent network that predicts the next token of a sequence."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models.widths import scaled


class LSTM(nn.Module):
    """Embedding, long short-term memory, linear layer; each sequence starts from a state of 0.

    With the 97 tokens of stdlib_text it has 117,537 weights.

    Prunable are the embedding, the kernels of the four gates (four of the input and four of the
    state, a layer) and the last kernel; not biases.

    Source: Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735, with the forget gate of
    Gers et al. 2000, doi:10.1162/089976600300015015.
    """

    num_classes: int  # of the tokens that are read and predicted
    layers: int = 1
    units: int = 128
    embedded: int = 64
    dtype: DTypeLike = jnp.float32
    width: float = 1.0  # multiplies the units and the embedding

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Maps tokens (N, L), integers below num_classes, to logits (N, L, num_classes), float32.

        The logits at a position depend on the tokens up to it, itself included.
        """
        del train
        embedded, units = scaled(self.embedded, self.width), scaled(self.units, self.width)
        x = nn.Embed(self.num_classes, embedded, dtype=self.dtype)(tokens.astype(jnp.int32))
        for _ in range(self.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(units, dtype=self.dtype))(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
