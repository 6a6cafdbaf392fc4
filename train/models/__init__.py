"""Flax models for images: `build(name, num_classes=10).apply(variables, images, train=False)`."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models.convnet import ConvNet
from train.models.lenet import LeNet300
from train.models.resnet import ResNet, resnet
from train.models.resnet_imagenet import imagenet_resnet

__all__ = ['MODELS', 'ConvNet', 'LeNet300', 'ResNet', 'build', 'resnet']

MODELS: dict[str, Callable[..., nn.Module]] = {
    'convnet': ConvNet,
    'lenet300': LeNet300,
    'resnet20': resnet(20),
    'resnet34': imagenet_resnet(34),
    'resnet50': imagenet_resnet(50),
    'resnet56': resnet(56),
    'resnet110': resnet(110),
}
"""Names a config may use, and what makes the model from `num_classes` and `dtype`."""


def build(name: str, *, num_classes: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """Builds a model by its name.

    Args:
      name: a key of `MODELS`.
      num_classes: width of the logits.
      dtype: of the computation; parameters, batch statistics and logits are float32.

    Returns:
      A module called as `module.apply(variables, images, train)`: images (N, H, W, C) floating,
      logits (N, num_classes) float32. Where it has batch normalisation, the statistics are the
      collection 'batch_stats', which training updates: pass `mutable=['batch_stats']`.

    Raises:
      ValueError: there is no such name.
    """
    if name not in MODELS:
        raise ValueError(f'no model is named {name!r}; the names are {sorted(MODELS)}')
    return MODELS[name](num_classes=num_classes, dtype=dtype)
