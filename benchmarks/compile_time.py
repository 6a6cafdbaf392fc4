"""CPU seconds that one training step takes to compile, on a small network: what masks add.

python -m benchmarks.compile_time
"""

import itertools
import time

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from benchmarks import timing
from jaxprune import gradual

WIDTHS = (64, 128, 64, 10)  # 17,024 weights in three kernels


def loss(params, x):
    for layer in params:
        x = jax.nn.relu(x @ layer['kernel'] + layer['bias'])
    return (x**2).mean()


def compiled_in(tx, params):
    def step(params, state, x):
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step).lower(params, tx.init(params), jnp.ones((64, WIDTHS[0])))
    began = time.process_time()
    lowered.compile()
    return time.process_time() - began


def main():
    key, adam = jax.random.key(0), optax.adamw(1e-3)
    params = [
        {'kernel': jax.random.normal(key, sides), 'bias': jnp.zeros(sides[1])}
        for sides in itertools.pairwise(WIDTHS)
    ]
    steps = {
        'dense': adam,
        'pruned': jp.pruned(adam),
        'gradual.prune': gradual.prune(adam, 0.1, gradual.cubic(10, 50, 10)),
        'gradual.rigl': gradual.rigl(adam, 0.1, key, every=10, end=50),
    }
    print(timing.hardware())
    for name, tx in steps.items():
        print(f'{name:20s} {compiled_in(tx, params):6.1f} s of CPU')


if __name__ == '__main__':
    main()
