"""A training step with `pruned(adamw)` against the dense step: 8 dense layers of 1024², batch 64.

python -m benchmarks.pruned_step
"""

import functools

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from benchmarks import timing

LAYERS, WIDTH, BATCH = 8, 1024, 64


def loss(params, x):
    for kernel in params:
        x = jax.nn.relu(x @ kernel)
    return (x**2).mean()


def make_step(tx, params):
    """Trains for real: each call goes on from the one before, in the same memory."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x):
        grads = jax.grad(loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    now = jax.tree.map(jnp.copy, (params, tx.init(params)))
    x = jnp.ones((BATCH, WIDTH))

    def call():
        nonlocal now
        now = step(*now, x)
        return now

    return call


def main():
    keys = jax.random.split(jax.random.key(0), LAYERS)
    params = [jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH**0.5 for key in keys]
    masks = jp.masks.global_top(jp.scores.magnitude(params), 0.1)
    steps = {
        'dense adamw': make_step(optax.adamw(1e-3), params),
        'pruned(adamw)': make_step(jp.pruned(optax.adamw(1e-3), masks), params),
    }
    print(timing.table(timing.interleave(steps, turns=100), reference='dense adamw'))


if __name__ == '__main__':
    main()
