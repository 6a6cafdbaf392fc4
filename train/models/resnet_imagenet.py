"""Residual networks for ImageNet: ResNet-34 and ResNet-50."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models.widths import wide

_BLOCKS = (3, 4, 6, 3)  # of each stage, in both depths


class ImageNetResNet(nn.Module):
    """ResNet v1.5: 7 x 7 convolution, pooling, four stages of residual blocks, a linear layer.

    Source: He et al. 2015, arXiv:1512.03385, table 1, with what the code of Renda, Frankle &
    Carbin 2020, arXiv:2003.02389, adds for TPUs: strides in the 3 x 3 convolutions (v1.5), the
    last scale of each block initialised to 0, batch statistics that decay by 0.9, kernels drawn
    with variance 1 / inputs and those of the linear layer with deviation 0.01. Deviation: where
    a block keeps its shape, its shortcut is the identity; their ResNet-34 projects the first.
    """

    bottleneck: bool
    """Blocks of 1 x 1, 3 x 3 and four times as wide 1 x 1, rather than of two 3 x 3."""
    num_classes: int
    dtype: DTypeLike = jnp.float32
    width: float = 1.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images (N, H, W, C) to logits (N, num_classes), float32."""
        block = _Bottleneck if self.bottleneck else _Block
        x = images.astype(self.dtype)
        x = nn.relu(_ConvNorm(self._channels(0), 7, 2, dtype=self.dtype)(x, train))
        x = nn.max_pool(x, (3, 3), (2, 2), padding='SAME')
        for stage, blocks in enumerate(_BLOCKS):
            for place in range(blocks):
                stride = 2 if stage > 0 and place == 0 else 1
                x = block(self._channels(stage), stride, dtype=self.dtype)(x, train)
        x = x.mean(axis=(1, 2))
        dense = nn.Dense(
            self.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )
        return dense(x).astype(jnp.float32)

    def _channels(self, stage: int) -> int:
        return max(1, round(self.width * 64 * 2**stage))


class _ConvNorm(nn.Module):
    """A convolution without bias, batch-normalised in float32 or wider."""

    channels: int
    size: int = 3
    stride: int = 1
    scale: float = 1.0  # initial, of the normalisation
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = nn.Conv(
            self.channels,
            kernel_size=(self.size, self.size),
            strides=self.stride,
            padding=self.size // 2,
            use_bias=False,
            dtype=self.dtype,
        )
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            scale_init=nn.initializers.constant(self.scale),
        )
        return norm(conv(x).astype(wide(self.dtype))).astype(self.dtype)


class _Block(nn.Module):
    """Two convolutions around which the input is added back, projected where its shape changes."""

    channels: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = partial(_ConvNorm, dtype=self.dtype)
        y = nn.relu(conv(self.channels, stride=self.stride)(x, train))
        y = conv(self.channels, scale=0.0)(y, train)
        return nn.relu(_shortcut(self, conv, x, y, train) + y)


class _Bottleneck(nn.Module):
    """Three convolutions, the middle one narrow and strided, around which the input is added."""

    channels: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = partial(_ConvNorm, dtype=self.dtype)
        y = nn.relu(conv(self.channels, 1)(x, train))
        y = nn.relu(conv(self.channels, stride=self.stride)(y, train))
        y = conv(4 * self.channels, 1, scale=0.0)(y, train)
        return nn.relu(_shortcut(self, conv, x, y, train) + y)


def _shortcut(
    block: _Block | _Bottleneck,
    conv: Callable[..., nn.Module],
    x: jax.Array,
    y: jax.Array,
    train: bool,
) -> jax.Array:
    """The input, projected where the block changes its shape, at its full widths."""
    if x.shape == y.shape and not block.has_variable('params', 'shortcut'):
        return x
    projected: jax.Array = conv(y.shape[-1], 1, block.stride, name='shortcut')(x, train)
    return projected


def imagenet_resnet(depth: int) -> Callable[..., ImageNetResNet]:
    """Fixes the depth of a ResNet: `imagenet_resnet(50)(num_classes=1000)`.

    Args:
      depth: layers of weights, shortcuts apart: 34 or 50.

    Returns:
      What makes the model from `num_classes`, `dtype` and `width`.

    Raises:
      ValueError: `depth` is neither.
    """
    if depth not in (34, 50):
        raise ValueError(f'depth={depth} must be 34 or 50, the networks of the paper')
    return partial(ImageNetResNet, depth == 50)
