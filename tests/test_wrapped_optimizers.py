"""Masks through the wrappers of optax, with `pruned` and the gradual methods inside them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import hasty
from every_optimizer import LABELS, NO_BIAS, gradients, weights

import jaxprune as jp
from jaxprune import gradual

pytestmark = pytest.mark.promotes  # optax does

METHODS = {
    'pruned': jp.pruned,
    'packed': lambda tx: jp.pruned(tx, packed=True),
    'prune': lambda tx: gradual.prune(tx, 0.5, gradual.cubic(0, 2, 1)),
    'rigl': lambda tx: gradual.rigl(tx, 0.5, jax.random.key(0), every=1, end=4),
}
QUICK = [
    name if name in ('packed', 'rigl') else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in METHODS
]


def two_groups(method):
    groups = {'a': method(optax.adam(0.1)), 'b': method(optax.sgd(0.1))}
    return optax.multi_transform(
        groups | {'c': optax.sgd(0.1)}, {'kernel': 'a', 'bias': 'c', 'nested': 'b'}
    )


def injected(method):
    make = lambda learning_rate: method(optax.adam(learning_rate))
    return optax.inject_hyperparams(make)(optax.linear_schedule(0.1, 0.01, 5))


WRAPPERS = {
    'chain': lambda method: optax.chain(optax.clip(0.1), method(optax.adam(0.1))),
    'named chain': lambda method: optax.named_chain(
        ('clip', optax.clip(0.1)), ('pruned', method(optax.adam(0.1)))
    ),
    'inject': injected,
    'multi steps': lambda method: optax.MultiSteps(method(optax.adam(0.1)), 2),
    'masked': lambda method: optax.chain(
        optax.masked(method(optax.adam(0.1)), NO_BIAS),
        optax.masked(optax.sgd(0.1), jax.tree.map(lambda m: not m, NO_BIAS)),
    ),
    'one group': lambda method: optax.multi_transform(
        {'a': method(optax.adam(0.1)), 'b': optax.sgd(0.1)}, LABELS
    ),
    'two groups': two_groups,
    'if finite': lambda method: optax.apply_if_finite(method(optax.adam(0.1)), 3),
    'conditionally': lambda method: optax.conditionally_transform(
        method(optax.adam(0.1)), lambda step: step >= 0
    ),
}


def zeros_where_pruned(masks, params):
    for (path, mask), (_, weight) in zip(
        jp.tree.named_leaves(masks), jp.tree.named_leaves(params), strict=True
    ):
        if mask is not None:
            assert (np.asarray(weight)[~np.asarray(mask)] == 0).all(), path


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize('method', QUICK)
def test_masks_hold_and_go_round_inside(method, wrapper):
    tx = WRAPPERS[wrapper](METHODS[method])
    params, state = gradual.start(tx, weights())
    masks = jp.get_masks(state)
    if 'prune' in method or method == 'packed':
        masks = jp.masks.leaf_top(jp.scores.magnitude(params), 0.8)
        params, state = jp.masks.apply(params, masks), jp.set_masks(state, masks)
        jax.tree.map(np.testing.assert_array_equal, jp.get_masks(state), masks)

    @hasty
    def step(params, state, seed):
        updates, state = tx.update(gradients('', params, seed), state, params)
        return optax.apply_updates(params, updates), state

    first = params
    for seed in range(6):
        params, state = step(params, state, jnp.int32(seed))
        zeros_where_pruned(jp.get_masks(state), params)
    assert (params['kernel'] != first['kernel']).any()
    assert (params['bias'] != first['bias']).all()

    masks = jp.get_masks(state)
    assert masks['bias'] is None
    expected = {'rigl': 0.5, 'prune': 0.5}.get(method, (19 + 24) / 54)
    np.testing.assert_allclose(jp.masks.density(masks), expected, rtol=1e-6)
    found = {record.path: record.kept for record in jp.report.records(params, masks)}
    assert found['kernel'] == int(masks['kernel'].sum())
    again = jp.set_masks(state, masks)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert jax.tree.structure(again) == jax.tree.structure(state)


@pytest.mark.parametrize('packed', [False, True])
def test_masks_may_cover_a_leaf_that_is_hidden(packed):
    params = weights()
    masks = jp.masks.leaf_top(jp.scores.magnitude(params), 0.5)
    hide = {'kernel': True, 'bias': True, 'nested': (False,)}
    tx = optax.masked(jp.pruned(optax.adam(0.1), masks, packed=packed), hide)
    state = tx.init(params)
    shown = jp.get_masks(state)
    assert shown['nested'] == (None,)
    updates, _ = tx.update(gradients('', params), state, params)
    params = optax.apply_updates(params, updates)
    assert int((params['kernel'] == 0).sum()) == 12
    with pytest.raises(ValueError, match="at 'nested/0' where the masks in the state have None"):
        jp.set_masks(state, masks)


def test_a_step_that_is_not_finite_is_left_out():
    params = weights()
    masks = jp.masks.leaf_top(jp.scores.magnitude(params), 0.5)
    tx = optax.apply_if_finite(jp.pruned(optax.adam(0.1), masks), 3)
    state, params = tx.init(params), jp.masks.apply(params, masks)
    broken = jax.tree.map(lambda w: jnp.full_like(w, jnp.nan), params)
    updates, state = tx.update(broken, state, params)
    jax.tree.map(np.testing.assert_array_equal, optax.apply_updates(params, updates), params)
    updates, state = tx.update(gradients('', params), state, params)
    params = optax.apply_updates(params, updates)
    zeros_where_pruned(masks, params)


@pytest.mark.parametrize('wrapper', ['multi steps', 'conditionally'])
def test_steps_left_out_are_zeros_and_the_next_lands(wrapper):
    params = weights()
    masks = jp.masks.leaf_top(jp.scores.magnitude(params), 0.5)
    inner = jp.pruned(optax.adam(0.1), masks)
    odd = lambda step: step % 2 == 1
    tx = {
        'multi steps': optax.MultiSteps(inner, 2),
        'conditionally': optax.conditionally_mask(inner, odd),
    }[wrapper]
    state = tx.init(params)
    updates, state = tx.update(gradients('', params), state, params)
    assert all((u == 0).all() for u in jax.tree.leaves(updates))
    updates, state = tx.update(gradients('', params), state, params)
    zeros_where_pruned(masks, optax.apply_updates(params, updates))


DTYPES = {
    'adam': lambda dtype: optax.adam(0.1, mu_dtype=dtype),
    'adamw': lambda dtype: optax.adamw(0.1, mu_dtype=dtype),
    'momentum': lambda dtype: optax.sgd(0.1, momentum=0.9, accumulator_dtype=dtype),
    'lion': lambda dtype: optax.lion(0.1, mu_dtype=dtype),
    'adafactor': lambda dtype: optax.adafactor(0.1, momentum=0.9, dtype_momentum=dtype),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize('moments', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('gradient', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('weight', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('name', DTYPES)
def test_dtypes_mix_and_pruned_weights_are_zero(name, weight, gradient, moments):
    params = weights(dtype=weight)
    masks = jp.masks.leaf_top(jp.scores.magnitude(params), 0.5)
    inner = DTYPES[name](moments)
    tx = jp.pruned(inner, masks)
    state = tx.init(params)
    cast = lambda tree: jax.tree.map(lambda g: g.astype(gradient), tree)
    for seed in range(2):
        grads = cast(gradients('', params, seed))
        plain, _ = inner.update(grads, state.inner_state, params)
        updates, state = tx.update(grads, state, params)
        for mine, its in zip(jax.tree.leaves(updates), jax.tree.leaves(plain), strict=True):
            wide = jnp.promote_types(its.dtype, weight) if its.ndim >= 2 else its.dtype
            assert mine.dtype == wide
        params = optax.apply_updates(params, updates)
        assert {w.dtype for w in jax.tree.leaves(params)} == {jnp.dtype(weight)}
        zeros_where_pruned(masks, params)
    after = jax.tree.leaves(jax.tree.map(lambda x: x.dtype, state))
    assert after == jax.tree.leaves(jax.tree.map(lambda x: x.dtype, tx.init(weights(dtype=weight))))


@pytest.mark.parametrize('weight', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('gradient', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('method', ['prune', 'rigl'])
def test_dtypes_mix_where_masks_change(method, gradient, weight):
    tx = METHODS[method](optax.adam(0.1, mu_dtype=jnp.bfloat16))
    params, state = gradual.start(tx, weights(dtype=weight))
    before = jax.tree.map(lambda x: x.dtype, state)

    @hasty
    def step(params, state, seed):
        grads = jax.tree.map(lambda g: g.astype(gradient), gradients('', params, seed))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for seed in range(4):
        params, state = step(params, state, jnp.int32(seed))
        zeros_where_pruned(jp.get_masks(state), params)
    assert jax.tree.map(lambda x: x.dtype, state) == before
    assert {w.dtype for w in jax.tree.leaves(params)} == {jnp.dtype(weight)}


@pytest.mark.parametrize('method', QUICK)
def test_two_wrappers_one_inside_the_other_are_refused(method):
    tx = jp.pruned(METHODS[method](optax.sgd(0.1)))
    with pytest.raises(ValueError, match='one inside another: wrap the optimizer once'):
        jp.get_masks(tx.init(weights()))
    with pytest.raises(ValueError, match='one inside another: wrap the optimizer once'):
        gradual.start(tx, weights())
