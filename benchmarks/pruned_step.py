"""Training steps with masks against the dense step: 8 dense layers of 1024², AdamW.

Of the methods that change masks, the steps between two changes; packed masks are one bit a weight.

python -m benchmarks.pruned_step         # batches of 64, where the optimizer is the larger part
python -m benchmarks.pruned_step 512
"""

import functools
import sys

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from benchmarks import timing
from jaxprune import gradual

LAYERS, WIDTH = 8, 1024
LATER = 10**6  # no masks change while this runs


def loss(params, x):
    for kernel in params:
        x = jax.nn.relu(x @ kernel)
    return (x**2).mean()


def make_step(tx, params, x, masks=None):
    """Trains for real: each call goes on from the one before, in the same memory."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x):
        grads = jax.grad(loss)(params, x)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    now = jax.tree.map(jnp.copy, (params, state if masks is None else jp.set_masks(state, masks)))

    def call():
        nonlocal now
        now = step(*now, x)
        return now

    return call


def wrappers(inner, key):
    """Each method, by name; none is due before LATER."""
    cubic = gradual.cubic(LATER, 2 * LATER, LATER)
    return {
        'pruned': functools.partial(jp.pruned, inner),
        'gradual.prune': functools.partial(gradual.prune, inner, 0.1, cubic),
        'gradual.sparse_evolution': functools.partial(
            gradual.sparse_evolution, inner, 0.1, key, schedule=gradual.periodic(LATER, LATER)
        ),
        'gradual.rigl': functools.partial(
            gradual.rigl, inner, 0.1, key, every=LATER, end=2 * LATER
        ),
    }


def main():
    batch = int(sys.argv[1]) if sys.argv[1:] else 64
    keys = jax.random.split(jax.random.key(0), LAYERS)
    params = [jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH**0.5 for key in keys]
    masks = jp.masks.global_top(jp.scores.magnitude(params), 0.1)
    x, inner = jnp.ones((batch, WIDTH)), optax.adamw(1e-3)
    steps = {'dense': make_step(inner, params, x)}
    for name, wrap in wrappers(inner, keys[0]).items():
        steps[name] = make_step(wrap(), params, x, masks)
        steps[f'{name}, packed'] = make_step(wrap(packed=True), params, x, masks)
    print(f'batch {batch}')
    print(timing.table(timing.interleave(steps, turns=60), reference='dense'))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(jp.masks.pack(masks)))
    print(f'packed masks: {held / LAYERS / WIDTH**2:.4f} bytes a weight')


if __name__ == '__main__':
    main()
