"""MobileNetV2, a network of depthwise convolutions for phones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models.widths import scaled, wide

# Expansion, channels, blocks and stride of the first block of each stage: table 2.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_FIRST, _LAST = 32, 1280


class MobileNetV2(nn.Module):
    """Inverted residuals of depthwise convolutions; 3,504,872 weights for 1000 classes.

    Source: Sandler et al. 2018, arXiv:1801.04381, table 2. Deviation: there is no dropout; channels
    under `width` are rounded to integers, not to multiples of 8.
    """

    num_classes: int
    dtype: DTypeLike = jnp.float32
    width: float = 1.0  # multiplies the channels

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images (N, H, W, C) to logits (N, num_classes), float32."""
        x = images.astype(self.dtype)
        x = nn.relu6(_ConvNorm(scaled(_FIRST, self.width), 3, 2, dtype=self.dtype)(x, train))
        for expansion, channels, blocks, stride in _STAGES:
            units = scaled(channels, self.width)
            for place in range(blocks):
                first = stride if place == 0 else 1
                x = _Block(expansion, units, first, residual=place > 0, dtype=self.dtype)(x, train)
        x = nn.relu6(_ConvNorm(scaled(_LAST, self.width), 1, dtype=self.dtype)(x, train))
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class _ConvNorm(nn.Module):
    """A convolution without bias, batch-normalised in float32 or wider."""

    channels: int
    size: int
    stride: int = 1
    groups: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = nn.Conv(
            self.channels,
            (self.size, self.size),
            self.stride,
            padding=self.size // 2,
            feature_group_count=self.groups,
            use_bias=False,
            dtype=self.dtype,
        )
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
        return norm(conv(x).astype(wide(self.dtype))).astype(self.dtype)


class _Block(nn.Module):
    """Widen, filter each channel, narrow; the input is added where the shapes are the same."""

    expansion: int
    channels: int
    stride: int
    residual: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = x
        if self.expansion > 1:
            widened = self.expansion * x.shape[-1]
            y = nn.relu6(_ConvNorm(widened, 1, dtype=self.dtype, name='widen')(y, train))
        depth = y.shape[-1]
        filtered = _ConvNorm(depth, 3, self.stride, depth, self.dtype, name='filter')(y, train)
        y = _ConvNorm(self.channels, 1, dtype=self.dtype, name='narrow')(nn.relu6(filtered), train)
        return x + y if self.residual else y
