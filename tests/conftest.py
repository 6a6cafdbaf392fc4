"""Eight virtual CPU devices; implicit promotion of dtypes and ranks is an error.

Programs are compiled in haste: compiling takes most of the time, and what they compute is small.
"""

import atexit
import os
import shutil
import tempfile

os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=8'
    + ' --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)
# The workers, and the runs that tests start, share what they compile; each session starts afresh,
# unless it is told where others left what they compiled.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='jaxprune-tests-')
    atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'

import jax
import pytest

from jaxprune import counting


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """Holds our code to explicit dtypes and ranks; tests that run optax's are marked `promotes`."""
    if request.node.get_closest_marker('promotes'):
        yield
        return
    with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
        yield


@pytest.fixture
def counts_as_accelerators(monkeypatch):
    """Programs compiled for CPU count as those for several TPUs and GPUs do, by sums."""
    monkeypatch.setattr(counting, '_tally_together', counting._tally_apart)
    jax.clear_caches()
    yield
    jax.clear_caches()
