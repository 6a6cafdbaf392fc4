"""Multilayer perceptrons over flattened inputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from train.models.widths import scaled


class MLP(nn.Module):
    """Hidden layers with ReLU, then a linear one; 266,610 weights for 300 and 100 on 28 x 28.

    Prunable are all kernels. With 300 and 100 units it is the LeNet-300-100 of the pruning papers.

    Source: LeCun et al. 1998, doi:10.1109/5.726791. Deviation: ReLU and a linear last layer, as
    pruning papers have it (Han et al. 2015, arXiv:1506.02626).
    """

    hidden: tuple[int, ...]
    num_classes: int
    dtype: DTypeLike = jnp.float32
    width: float = 1.0  # multiplies the hidden widths

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps inputs (N, ...) to logits (N, num_classes), float32."""
        del train
        x = inputs.reshape(len(inputs), -1).astype(self.dtype)
        for units in self.hidden:
            x = nn.relu(nn.Dense(scaled(units, self.width), dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class ResidualMLP(nn.Module):
    """Two hidden layers of equal width, the first added to the second; 15,210 weights on 40 x 1.

    Prunable are all three kernels.

    Source: Greydanus 2020, arXiv:2011.14439, the baseline `MLPBase` of its code. Deviation: Flax's
    initial weights (normal kernels of variance 1 / inputs, biases 0) instead of PyTorch's.
    """

    num_classes: int
    hidden: int = 100
    dtype: DTypeLike = jnp.float32
    width: float = 1.0  # multiplies the hidden width

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """Maps inputs (N, ...) to logits (N, num_classes), float32."""
        del train
        units = scaled(self.hidden, self.width)
        x = inputs.reshape(len(inputs), -1).astype(self.dtype)
        x = nn.relu(nn.Dense(units, dtype=self.dtype)(x))
        x = x + nn.relu(nn.Dense(units, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
