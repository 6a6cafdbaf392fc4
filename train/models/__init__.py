"""Flax models: `build(name, num_classes=10).apply(variables, inputs, train=False)`."""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models.conv1d import Conv1D
from train.models.convnet import ConvNet
from train.models.decoder import Decoder
from train.models.lstm import LSTM
from train.models.mlp import MLP, ResidualMLP
from train.models.mobilenet import MobileNetV2
from train.models.resnet import ResNet, resnet
from train.models.resnet_imagenet import imagenet_resnet
from train.models.transformer import Transformer
from train.models.vit import ViT

__all__ = [
    'LSTM',
    'MLP',
    'MODELS',
    'Conv1D',
    'ConvNet',
    'Decoder',
    'MobileNetV2',
    'ResNet',
    'ResidualMLP',
    'Transformer',
    'ViT',
    'build',
    'resnet',
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    'conv1d': Conv1D,
    'convnet': ConvNet,
    'decoder': Decoder,
    'lenet300': partial(MLP, (300, 100)),
    'lstm': LSTM,
    'mlp1d': ResidualMLP,
    'mlp256': partial(MLP, (256, 128)),
    'mobilenet_v2': MobileNetV2,
    'resnet20': resnet(20),
    'resnet34': imagenet_resnet(34),
    'resnet50': imagenet_resnet(50),
    'resnet56': resnet(56),
    'resnet110': resnet(110),
    'transformer': Transformer,
    'vit_b16': partial(ViT, patch=16, layers=12, heads=12, head_units=64),
    'vit_tiny': ViT,
}
"""Names a config may use, and what makes the model from `num_classes`, `dtype` and `width`."""


def build(
    name: str, *, num_classes: int, dtype: DTypeLike = jnp.float32, width: float = 1.0
) -> nn.Module:
    """Builds a model by its name.

    Args:
      name: a key of `MODELS`.
      num_classes: width of the logits; of models of tokens also of the embedding.
      dtype: of the computation; parameters, batch statistics and logits are float32.
      width: multiplies every hidden width, to the nearest integer and at least 1; positive.

    Returns:
      A module called as `module.apply(variables, inputs, train)`. Of 'lstm', 'transformer' and
      'decoder' the inputs are tokens (N, L), integers below num_classes, and the logits
      (N, L, num_classes); of
      'conv1d' signals (N, L, C), of the multilayer perceptrons any (N, ...), of the others images
      (N, H, W, C), all floating, and the logits (N, num_classes). Logits are float32. Where it has
      batch normalisation, the statistics are the collection 'batch_stats', which training updates:
      pass `mutable=['batch_stats']`.

    Raises:
      ValueError: there is no such name; `width` is not positive and finite.
    """
    if name not in MODELS:
        raise ValueError(f'no model is named {name!r}; the names are {sorted(MODELS)}')
    if not 0 < width < math.inf:
        raise ValueError(f'width={width} must be positive and finite: it multiplies hidden widths')
    return MODELS[name](num_classes=num_classes, dtype=dtype, width=width)
