"""Small trainings on dyadic numbers: all sums are exact, so bits agree whatever XLA fuses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from compiling import hasty

import jaxprune as jp

INNER = optax.sgd(0.25, momentum=0.5)  # as reference_gradual.momentum_step
SHAPES = {'a': (8, 6), 'b': (4, 8), 'bias': (6,)}


def dyadic(seed, shapes=None):
    random = np.random.RandomState(seed)
    shapes = SHAPES if shapes is None else shapes
    return {
        k: (random.randint(-16, 17, shape) / 8).astype(np.float32) for k, shape in shapes.items()
    }


def gradients(steps, shapes=None):
    return [dyadic(100 + step, shapes) for step in range(steps)]


def prunable(weights):
    return {k: w for k, w in weights.items() if np.ndim(w) > 1}


def dense(weights):
    return {k: np.ones(w.shape, bool) for k, w in prunable(weights).items()}


def stepper(tx):
    """One step of training; jit it, or let another transformation take it."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(tx, params, grads, state=None):
    """Trains, and returns for each step the parameters and masks after it, and the last state."""
    if state is None:
        params, state = jp.gradual.start(tx, jax.tree.map(jnp.asarray, params))
    step, history = hasty(stepper(tx)), []
    for each in grads:
        g = each(params) if callable(each) else each
        params, state = step(params, state, g)
        masks = {k: np.asarray(m) for k, m in jp.get_masks(state).items() if m is not None}
        history.append(({k: np.asarray(w) for k, w in params.items()}, masks))
    return history, state


def agree(found, expected, **tolerance):
    """Asserts that masks are the same at each step, and weights too or to a tolerance."""
    assert len(found) == len(expected)
    for (params, masks), (weights, truth) in zip(found, expected, strict=True):
        assert masks.keys() == truth.keys()
        for k, mask in masks.items():
            np.testing.assert_array_equal(mask, truth[k])
            assert (params[k][~mask] == 0).all()
        for k, w in params.items():
            np.testing.assert_allclose(w, weights[k], **({'rtol': 0} | tolerance))


def counts(history):
    return [sum(int(m.sum()) for m in masks.values()) for _, masks in history]


def assert_nested(history):
    for (_, before), (_, after) in itertools.pairwise(history):
        assert all((after[k] <= before[k]).all() for k in after)
