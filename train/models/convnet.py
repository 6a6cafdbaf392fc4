"""A small convolutional network for images of 8 x 8 to 32 x 32 pixels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models.widths import scaled


class ConvNet(nn.Module):
    """Three blocks of convolution, batch normalisation and ReLU; a global mean; a linear layer.

    The second and third convolution have stride 2, so that 8 x 8 pixels end as 2 x 2.
    """

    num_classes: int
    dtype: DTypeLike = jnp.float32
    width: float = 1.0  # multiplies the channels

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images (N, H, W, C) to logits (N, num_classes), float32."""
        x = images.astype(self.dtype)
        for channels, stride in ((16, 1), (32, 2), (32, 2)):
            units = scaled(channels, self.width)
            x = nn.Conv(units, (3, 3), stride, use_bias=False, dtype=self.dtype)(x)
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9)
            x = nn.relu(norm(x.astype(jnp.float32))).astype(self.dtype)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
