"""A plain pmapped Flax loop, pruned by wrapping its optimizer: digits over all devices.

    python examples/pmap_loop.py

On two CPU cores it takes half a minute, and splits the one device into eight virtual ones. What
pruning adds to the loop is marked.
"""

import os

if 'JAX_PLATFORMS' not in os.environ or os.environ['JAX_PLATFORMS'] == 'cpu':
    os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.jax_utils import replicate, unreplicate
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import jaxprune as jp

STEPS, BATCH = 200, 256

model = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(64), nn.relu, nn.Dense(10)])


def create_state(x):
    schedule = optax.piecewise_constant_schedule(0.1, {STEPS // 2: 0.1})
    tx = jp.pruned(optax.sgd(schedule, momentum=0.9))  # wrapped
    params = model.init(jax.random.key(0), x)
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@functools.partial(jax.pmap, axis_name='devices')
def train_step(state, x, y):
    def loss_fn(params):
        logits = state.apply_fn(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    grads = jax.lax.pmean(jax.grad(loss_fn)(state.params), 'devices')
    return state.apply_gradients(grads=grads)


def train(state, x, y, seed):
    devices, rng = jax.local_device_count(), np.random.default_rng(seed)
    for _ in range(STEPS):
        now = rng.integers(len(x), size=(devices, BATCH // devices))
        state = train_step(state, x[now], y[now])
        jax.block_until_ready(state)  # virtual devices share their threads: a step at a time
    return state


def prune_and_rewind(state, density):
    """Each device prunes its own copy, to the same bits; the learning rate begins anew."""
    scores = jp.scores.magnitude(state.params)
    masks = jp.masks.global_top(scores, density, jp.get_masks(state.opt_state))
    opt_state = jp.rewind_schedule(jp.set_masks(state.opt_state, masks))
    return state.replace(params=jp.masks.apply(state.params, masks), opt_state=opt_state)


def main(levels=8):
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))  # writers come one after another
    x, y = (images[order] / 8 - 1).astype(np.float32), labels[order].astype(np.int32)
    train_x, test_x, train_y, test_y = x[:1437], x[1437:], y[:1437], y[1437:]
    state = replicate(create_state(jnp.asarray(train_x[:1])))
    for level in range(levels + 1):
        if level:
            density = 0.6**level
            state = jax.pmap(lambda state, d=density: prune_and_rewind(state, d))(state)  # pruned
        state = train(state, train_x, train_y, level)
        one = unreplicate(state)
        right = (model.apply(one.params, test_x).argmax(-1) == test_y).mean()
        kept = jp.masks.density(jp.get_masks(one.opt_state))
        print(f'level {level}  density {kept:7.2%}  test {right:7.2%}')
    return state


if __name__ == '__main__':
    main()
