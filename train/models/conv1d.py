"""A small convolutional network for signals of 40 points or so."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models.widths import scaled


class Conv1D(nn.Module):
    """Three convolutions of stride 2 with ReLU, then a linear layer; 5,210 weights on 40 x 1.

    The kernels are 5, 3 and 3 points long with 1 of padding at each side, so that 40 points
    become 19, 10 and 5. Prunable are all four kernels.

    Source: Greydanus 2020, arXiv:2011.14439, the baseline `ConvBase` of its code. Deviation: Flax's
    initial weights (normal kernels of variance 1 / inputs, biases 0) instead of PyTorch's.
    """

    num_classes: int
    channels: int = 25
    dtype: DTypeLike = jnp.float32
    width: float = 1.0  # multiplies the channels

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps signals (N, L, C) to logits (N, num_classes), float32."""
        del train
        x, channels = inputs.astype(self.dtype), scaled(self.channels, self.width)
        for size in (5, 3, 3):
            x = nn.relu(_Conv(channels, size, self.dtype)(x))
        x = x.reshape(len(x), -1)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class _Conv(nn.Module):
    """`nn.Conv` of stride 2 and padding 1 as a product of matrices.

    On a CPU this trains several times faster, and under vmap it stays a product where a convolution
    would become a grouped one.
    """

    channels: int
    size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_NxLxC: jax.Array) -> jax.Array:
        N, L, C = x_NxLxC.shape
        kernel = self.param('kernel', nn.initializers.lecun_normal(), (self.size, C, self.channels))
        bias = self.param('bias', nn.initializers.zeros, (self.channels,))
        padded = jnp.pad(x_NxLxC, ((0, 0), (1, 1), (0, 0)))
        points = (L + 2 - self.size) // 2 + 1
        windows = [padded[:, i : i + 2 * points - 1 : 2] for i in range(self.size)]
        x = jnp.concatenate(windows, axis=-1).reshape(N * points, self.size * C)
        x = x @ kernel.reshape(self.size * C, -1).astype(self.dtype)
        return (x + bias.astype(self.dtype)[None]).reshape(N, points, self.channels)
