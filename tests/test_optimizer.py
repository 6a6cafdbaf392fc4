import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune as jp

pytestmark = pytest.mark.promotes  # optax does


def tree_of_weights(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        'kernel': jax.random.normal(keys[0], (6, 4), dtype),
        'bias': jax.random.normal(keys[1], (4,), dtype),
        'nested': (jax.random.normal(keys[2], (2, 3, 5), dtype), None),
    }


def half(params):
    return jp.masks.global_top(jp.scores.magnitude(params), 0.5)


def grads_like(params, seed):
    key = jax.random.key(seed)
    return jax.tree.map(lambda w: jax.random.normal(key, w.shape, w.dtype), params)


INNER = {
    'sgd': optax.sgd(0.1),
    'momentum': optax.sgd(0.1, momentum=0.9, nesterov=True),
    'adam': optax.adam(0.1),
    'adamw': optax.adamw(0.1, weight_decay=0.1),
    'noise': optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1)),
    'noise after': optax.chain(optax.sgd(0.1), optax.add_noise(0.1, 0.5, jax.random.key(0))),
    'l2': optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)),
    'inject': optax.inject_hyperparams(optax.adam)(optax.cosine_decay_schedule(0.1, 10)),
    'multi steps': optax.MultiSteps(optax.adam(0.1), 2),
    'lookahead of the rate': optax.adam(optax.linear_schedule(0.1, 0.0, 10)),
}


@pytest.mark.parametrize('name', INNER)
def test_pruned_weights_are_zero_after_each_update(name):
    params = tree_of_weights()  # dense, so the first update must land them on zero
    masks = half(params)
    tx = jp.pruned(optax.with_extra_args_support(INNER[name]), masks)
    state = tx.init(params)
    for seed in range(4):
        updates, state = tx.update(grads_like(params, seed), state, params)
        params = optax.apply_updates(params, updates)
        for mask, weight in zip(jax.tree.leaves(masks), prunable_leaves(params), strict=True):
            assert (np.asarray(weight)[~np.asarray(mask)] == 0).all()
            assert (np.asarray(weight)[np.asarray(mask)] != 0).any()


def prunable_leaves(params):
    return [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]


def test_kept_weights_follow_the_inner_optimizer():
    w, mask = np.linspace(-1, 1, 12).reshape(3, 4), np.arange(12).reshape(3, 4) % 3 > 0
    grads, rates = np.random.RandomState(0).normal(size=(5, 3, 4)), [0.1, 0.1, 0.1, 0.01, 0.01]
    schedule = optax.piecewise_constant_schedule(0.1, {3: 0.1})
    inner = optax.chain(optax.add_decayed_weights(0.05), optax.sgd(schedule, momentum=0.9))
    masked_start = np.where(mask, w, 0)
    tx = jp.pruned(inner, jnp.asarray(mask))
    params = jnp.asarray(masked_start, jnp.float32)
    state = tx.init(params)
    for gradient in grads:
        updates, state = tx.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
    expected = reference.sgd_with_momentum(
        masked_start, grads, mask, rates, momentum=0.9, decay=0.05
    )
    np.testing.assert_allclose(params, expected, rtol=1e-5, atol=1e-6)


def test_dense_masks_change_nothing():
    params = tree_of_weights()
    plain, wrapped = optax.adamw(0.1), jp.pruned(optax.adamw(0.1))
    grads = grads_like(params, 0)
    expected, _ = plain.update(grads, plain.init(params), params)
    found, state = wrapped.update(grads, wrapped.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jp.masks.density(jp.get_masks(state)) == 1.0


@pytest.mark.parametrize('weights', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('gradients', [jnp.float32, jnp.bfloat16])
def test_mixed_dtypes_land_on_zero(weights, gradients):
    params = jax.random.normal(jax.random.key(0), (8, 8), weights)
    tx = jp.pruned(optax.sgd(0.1), half(params))
    updates, _ = tx.update(jnp.ones((8, 8), gradients), tx.init(params), params)
    after = optax.apply_updates(params, updates)
    assert after.dtype == weights
    assert int((after == 0).sum()) == 32


def test_a_nan_gradient_of_a_pruned_weight_does_no_harm():
    params, masks = jnp.ones((2, 2)), jnp.array([[True, False], [True, True]])
    tx = jp.pruned(optax.adam(0.1), masks)
    grads = jnp.array([[1.0, jnp.nan], [1.0, 1.0]])
    updates, state = tx.update(grads, tx.init(params), params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))


def test_extra_arguments_reach_the_inner_optimizer():
    tx = jp.pruned(optax.polyak_sgd(), half(params := tree_of_weights()))
    state = tx.init(params)
    small, _ = tx.update(params, state, params, value=jnp.float32(1))
    large, _ = tx.update(params, state, params, value=jnp.float32(2))
    np.testing.assert_allclose(large['bias'], 2 * small['bias'], rtol=1e-5)


DEPTHS = {
    'bare': lambda tx: tx,
    'chain': lambda tx: optax.chain(optax.clip(1.0), tx),
    'multi steps': lambda tx: optax.MultiSteps(tx, 2),
    'inject': lambda tx: optax.inject_hyperparams(
        lambda scale: optax.chain(tx, optax.scale(scale))
    )(scale=1.0),
    'if finite': lambda tx: optax.apply_if_finite(tx, 3),
}


@pytest.mark.parametrize('name', DEPTHS)
def test_masks_are_found_and_set_at_any_depth(name):
    params = tree_of_weights()
    tx = DEPTHS[name](jp.pruned(optax.adam(0.1)))
    state = tx.init(params)
    assert jp.masks.density(jp.get_masks(state)) == 1.0
    masks = half(params)
    changed = jp.set_masks(state, masks)
    jax.tree.map(np.testing.assert_array_equal, jp.get_masks(changed), masks)
    assert jax.tree.structure(changed) == jax.tree.structure(state)


def test_new_masks_do_not_compile_again():
    params = tree_of_weights()
    tx, traces = jp.pruned(optax.adam(0.1)), []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for density in (0.8, 0.5, 0.1):
        masks = jp.masks.global_top(jp.scores.magnitude(params), density)
        params, state = step(params, jp.set_masks(state, masks))
    assert len(traces) == 1


def test_in_a_flax_train_state():
    params = tree_of_weights()
    state = TrainState.create(apply_fn=None, params=params, tx=jp.pruned(optax.adam(0.1)))
    state = state.replace(opt_state=jp.set_masks(state.opt_state, half(params)))
    state = state.apply_gradients(grads=params)
    assert (
        int((state.params['kernel'] == 0).sum()) + int((state.params['nested'][0] == 0).sum()) == 27
    )


def test_in_an_nnx_optimizer():
    model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, jp.pruned(optax.adam(0.1)), wrt=nnx.Param)
    masks = half(nnx.state(model, nnx.Param))
    optimizer.opt_state = jp.set_masks(optimizer.opt_state, masks)
    grads = nnx.grad(lambda m: (m(jnp.ones((1, 8))) ** 2).sum())(model)
    optimizer.update(model, grads)
    assert int((model.kernel[...] == 0).sum()) == 32


def test_update_without_params_is_an_error():
    tx = jp.pruned(optax.sgd(0.1))
    state = tx.init(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match='needs the parameters'):
        tx.update(jnp.ones((2, 2)), state)


@pytest.mark.parametrize('inner', [1e-3, optax.sgd, None])
def test_what_is_wrapped_must_be_an_optimizer(inner):
    with pytest.raises(ValueError, match=r'expected an optax optimizer to wrap, .* optax\.sgd'):
        jp.pruned(inner)


def test_masks_unlike_the_parameters_are_an_error():
    masks = {'kernel': jnp.ones((3, 2), bool), 'bias': None}
    tx = jp.pruned(optax.sgd(0.1), masks)
    with pytest.raises(ValueError, match=r"shape \(3, 2\) at 'kernel' where params have \(2, 3\)"):
        tx.init({'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)})


@pytest.mark.parametrize(
    ('masks', 'message'),
    [
        ({'a': jnp.ones((2, 3), bool), 'b': None}, r"shape \(2, 3\) at 'a'"),
        ({'a': None, 'b': None}, "masks are None at 'a', where the state has bool"),
        ({'a': jnp.ones((2, 2)), 'b': None}, "masks are float32 at 'a', expected bool: compare"),
        ({'a': jnp.ones((2, 2)), 'b': jnp.ones(2)}, "masks are float32 at 'a', expected bool"),
        ({'a': jnp.ones((2, 2), bool), 'b': jnp.ones(2, bool)}, r"shape \(2,\) at 'b' .* None"),
        ({'a': jnp.ones((2, 2), bool)}, "masks have no leaf 'b'"),
    ],
)
def test_set_masks_refuses_other_masks(masks, message):
    state = jp.pruned(optax.sgd(0.1)).init({'a': jnp.ones((2, 2)), 'b': jnp.ones(2)})
    with pytest.raises(ValueError, match=message):
        jp.set_masks(state, masks)


@pytest.mark.parametrize(
    ('tx', 'found'),
    [
        (optax.adam(0.1), 'none'),
        (optax.chain(jp.pruned(optax.sgd(0.1)), jp.pruned(optax.sgd(0.1))), 'two with masks for'),
        (jp.pruned(jp.pruned(optax.sgd(0.1))), 'one inside another'),
    ],
)
def test_none_or_two_wrappers_are_an_error(tx, found):
    with pytest.raises(ValueError, match=f'expected one PrunedState .* found {found}'):
        jp.get_masks(tx.init(jnp.ones((2, 2))))


def test_masks_take_the_containers_of_the_parameters():
    params = (jnp.ones((2, 2)), jnp.ones(2))
    masks = [jnp.array([[True, False], [True, True]]), None]
    for state in (
        jp.pruned(optax.sgd(0.1), masks).init(params),
        jp.set_masks(jp.pruned(optax.sgd(0.1)).init(params), masks),
    ):
        updates, _ = jp.pruned(optax.sgd(0.1)).update(params, state, params)
        assert float(optax.apply_updates(params, updates)[0][0, 1]) == 0
