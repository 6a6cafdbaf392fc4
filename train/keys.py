"""Random keys: all that is random in a run is drawn from its seed, and depends on nothing else."""

import jax
import jax.numpy as jnp
import ml_collections


def of_draw(config: ml_collections.ConfigDict) -> jax.Array:
    """Makes the keys that the networks are drawn from, (R,): one a replicate."""
    return fold_in(_of_replicates(config), 0)


def of_segment(config: ml_collections.ConfigDict, level: int) -> jax.Array:
    """Makes the keys of a training, (R,): fresh at each level, shared by the techniques."""
    return fold_in(_of_replicates(config), 1 + level)


def fold_in(keys: jax.Array, number: int) -> jax.Array:
    """Folds a number into each key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _of_replicates(config: ml_collections.ConfigDict) -> jax.Array:
    key, numbers = jax.random.key(config.seed), jnp.arange(config.replicates)
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
