"""`jax.jit` for tests of many small programs, which take longer to compile than to run."""

import functools

import jax

hasty = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
