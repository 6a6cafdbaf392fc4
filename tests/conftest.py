"""Eight virtual CPU devices; implicit promotion of dtypes and ranks is an error."""

import os

os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """Holds our code to explicit dtypes and ranks; tests that run optax's are marked `promotes`."""
    if request.node.get_closest_marker('promotes'):
        yield
        return
    with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
        yield
