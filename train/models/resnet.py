"""Residual networks for CIFAR, of depth 6 n + 2."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models.widths import scaled

_CHANNELS = (16, 32, 64)  # a stage
_HE = nn.initializers.he_normal()


class ResNet(nn.Module):
    """ResNet v1: a convolution, three stages of residual blocks, a global mean, a linear layer.

    Source: He et al. 2015, arXiv:1512.03385, sec. 4.2. Deviation: shortcuts between stages are
    1 x 1 convolutions with batch normalisation (option B) and batch statistics decay by 0.997,
    as in the code of Renda, Frankle & Carbin 2020, arXiv:2003.02389.
    """

    blocks: int  # a stage
    num_classes: int
    dtype: DTypeLike = jnp.float32
    width: float = 1.0  # multiplies the channels of every stage

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images (N, H, W, C) to logits (N, num_classes), float32."""
        x = images.astype(self.dtype)
        widths = [scaled(channels, self.width) for channels in _CHANNELS]
        x = nn.relu(_ConvNorm(widths[0], dtype=self.dtype)(x, train))
        for stage, width in enumerate(widths):
            for block in range(self.blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _Block(width, stride, dtype=self.dtype)(x, train)
        x = x.mean(axis=(1, 2))
        logits = nn.Dense(self.num_classes, kernel_init=_HE, dtype=self.dtype)(x)
        return logits.astype(jnp.float32)


class _ConvNorm(nn.Module):
    """A convolution without bias, batch-normalised in float32."""

    width: int
    size: int = 3
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = nn.Conv(
            self.width,
            kernel_size=(self.size, self.size),
            strides=self.stride,
            padding=self.size // 2,
            use_bias=False,
            kernel_init=_HE,
            dtype=self.dtype,
        )
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.997, epsilon=1e-5)
        return norm(conv(x).astype(jnp.float32)).astype(self.dtype)


class _Block(nn.Module):
    """Two convolutions around which the input is added back, projected where its shape changes."""

    width: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(_ConvNorm(self.width, stride=self.stride, dtype=self.dtype)(x, train))
        y = _ConvNorm(self.width, dtype=self.dtype)(y, train)
        if x.shape != y.shape or self.has_variable('params', 'shortcut'):  # of any width
            shortcut = _ConvNorm(self.width, 1, self.stride, self.dtype, name='shortcut')
            x = shortcut(x, train)
        return nn.relu(x + y)


def resnet(depth: int) -> Callable[..., ResNet]:
    """Fixes the depth of a ResNet: `resnet(20)(num_classes=10)`.

    Args:
      depth: layers of weights, shortcuts apart: 6 n + 2 with n blocks a stage.

    Returns:
      What makes the model from `num_classes` and `dtype`.

    Raises:
      ValueError: `depth` is not 6 n + 2 with n at least 1.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f'depth={depth} must be 6 n + 2 with n >= 1: 8, 14, 20, ...')
    return partial(ResNet, blocks)
