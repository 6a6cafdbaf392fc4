"""LeNet-300-100: the multilayer perceptron of the pruning literature."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class LeNet300(nn.Module):
    """Two hidden layers of 300 and 100 units over flattened images; 266,610 weights on 28 x 28.

    Source: LeCun et al. 1998, doi:10.1109/5.726791. Deviation: ReLU and a linear last layer, as
    pruning papers have it (Han et al. 2015, arXiv:1506.02626).
    """

    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images (N, H, W, C) to logits (N, num_classes), float32."""
        del train
        x = images.reshape(len(images), -1).astype(self.dtype)
        for width in (300, 100):
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
