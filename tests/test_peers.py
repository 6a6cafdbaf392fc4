"""Where other pruning libraries are known to fail: one test a failure."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune import gradual, masks, patterns, scores

pytestmark = pytest.mark.promotes  # optax does

KEY = jax.random.key(0)
METHODS = {
    'static': lambda inner, **options: gradual.static(inner, 0.5, KEY, **options),
    'set': lambda inner, **options: gradual.sparse_evolution(
        inner, 0.5, KEY, schedule=gradual.periodic(2, begin=1), **options
    ),
    'rigl': lambda inner, **options: gradual.rigl(inner, 0.5, KEY, every=2, end=9, **options),
    'magnitude': lambda inner, **options: gradual.prune(
        inner, 0.5, gradual.cubic(0, 4, 2), **options
    ),
    'straight through': lambda inner, **options: gradual.straight_through(
        inner, 0.5, gradual.periodic(2), **options
    ),
}
SOME = [name if name == 'rigl' else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


def parameters():
    keys = jax.random.split(KEY, 3)
    return {
        'first': {'kernel': jax.random.normal(keys[0], (8, 16)), 'bias': jnp.ones(16)},
        'second': {'kernel': jax.random.normal(keys[1], (16, 4)), 'bias': jnp.ones(4)},
    }


def loss(params, x):
    first, second = params['first'], params['second']
    hidden = jax.nn.relu(x @ first['kernel'] + first['bias'])
    return ((hidden @ second['kernel'] + second['bias']) ** 2).mean()


def train(tx, params, *, steps=6, dtype=jnp.float32, **extra_args):
    """The plain loop: nothing is called before or after the update."""
    params, state = gradual.start(tx, params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params, jnp.ones((4, 8)))
        grads = jax.tree.map(lambda g: g.astype(dtype), grads)
        updates, state = tx.update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    kept = jp.get_masks(state)
    assert masks.density(kept) == 0.5
    jax.tree.map(np.testing.assert_array_equal, params, masks.apply(params, kept))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    return params, kept


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('method', SOME)
def test_biases_in_the_tree_and_packed_masks(method, packed):
    _, kept = train(METHODS[method](optax.adam(0.01), packed=packed), parameters())
    assert kept['first']['bias'] is None


@pytest.mark.parametrize('method', SOME)
def test_bfloat16_gradients_with_float32_adam(method):
    params, _ = train(METHODS[method](optax.adam(0.01)), parameters(), dtype=jnp.bfloat16)
    assert params['first']['kernel'].dtype == jnp.float32


@pytest.mark.parametrize('method', SOME)
def test_extra_arguments_of_the_optimizer(method):
    train(METHODS[method](optax.polyak_sgd(0.01)), parameters(), value=jnp.float32(1))


@pytest.mark.parametrize('method', SOME)
@pytest.mark.parametrize(
    'inner',
    [optax.rmsprop(0.01), optax.inject_hyperparams(optax.sgd)(0.01)],
    ids=['rmsprop', 'inject_hyperparams'],
)
def test_any_state_of_the_optimizer(method, inner):
    train(METHODS[method](inner), parameters())


@pytest.mark.parametrize('method', SOME)
def test_tuples_nnx_states_and_nnx_optimizers(method):
    tx = METHODS[method](optax.adam(0.01))
    params = tuple(jax.tree.leaves(parameters()))
    params, state = gradual.start(tx, params)
    updates, state = tx.update(params, state, params)
    assert isinstance(optax.apply_updates(params, updates), tuple)
    model = nnx.Sequential(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.Linear(16, 4, rngs=nnx.Rngs(1)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(5):
        grads = nnx.grad(lambda m: (m(jnp.ones((4, 8))) ** 2).mean())(model)
        optimizer.update(model, grads)
    weights = nnx.state(model, nnx.Param)
    kept = jp.get_masks(optimizer.opt_state)
    assert masks.density(kept) == 0.5
    jax.tree.map(np.testing.assert_array_equal, weights, masks.apply(weights, kept))


def test_a_masked_nan_is_healed():
    params = jnp.array([[1.0, jnp.nan], [2.0, 3.0]])
    kept = jnp.array([[True, False], [True, True]])
    np.testing.assert_array_equal(masks.apply(params, kept), [[1, 0], [2, 3]])


def test_the_cubic_schedule_lands():
    """A change every 4 steps from 2 to 14, to a sparsity of 0.8: 0.79954 elsewhere."""
    params = jax.random.normal(KEY, (100, 100))
    tx = gradual.prune(optax.sgd(0.0), 0.2, gradual.cubic(2, 14, 4))
    state = tx.init(params)
    step = jax.jit(lambda s: tx.update(jnp.ones_like(params), s, params)[1])
    found = []
    for _ in range(20):
        state = step(state)
        found.append(masks.density(jp.get_masks(state)))
    assert found[:6] == [1.0] * 6  # nothing goes at its first step, where progress is 0
    assert found[13] > 0.2
    assert found[14:] == [0.2] * 6


def test_n_of_m_is_not_complete_at_once():
    magnitudes = jnp.abs(jax.random.normal(KEY, (40, 100)))
    kept = masks.leaf_top(magnitudes, 0.99, pattern=patterns.n_of_m(1, 4))
    assert masks.density(kept) == pytest.approx(0.99, abs=3 / 4000)


@pytest.mark.exhaustive
def test_a_hundred_million_weights_keep_exactly_a_tenth():
    """10,000,002 elsewhere, where counts are float32."""
    weights = [jax.random.normal(jax.random.key(i), (5000, 5000)) for i in range(4)]
    kept = masks.global_top(scores.magnitude(weights), 0.1)
    assert sum(int(np.asarray(mask).sum()) for mask in kept) == 10_000_000


@pytest.mark.parametrize('method', ['static', 'set', 'rigl'])
def test_the_first_forward_pass_is_sparse(method):
    params, _ = gradual.start(METHODS[method](optax.adam(0.01)), parameters())
    for layer in params.values():
        assert int((layer['kernel'] == 0).sum()) == layer['kernel'].size // 2


def test_the_count_is_not_off_by_one():
    """Keeping what exceeds the n-th lowest prunes n + 1, and more where there are ties."""
    kept = masks.global_top(jnp.array([1.0, 2, 2, 2, 3]), 0.6)
    np.testing.assert_array_equal(kept, [False, True, True, False, True])


def sharded_selection():
    mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
    weights = jax.device_put(jnp.ones((64, 32)), NamedSharding(mesh, P('x')))
    select = jax.jit(functools.partial(masks.global_top, density=0.1))
    return select.lower([weights] * 3).compile().as_text()


@pytest.mark.usefixtures('counts_as_accelerators')
def test_a_sharded_selection_gathers_and_sorts_nothing():
    program = sharded_selection()
    assert 'all-reduce' in program
    assert 'all-gather' not in program
    assert ' sort(' not in program


def test_a_sharded_selection_on_cpu_gathers_counts_alone_and_sorts_nothing():
    program = sharded_selection()
    gathered = re.findall(r'= (\S+) all-gather\(', program)
    assert gathered
    assert all(shape.startswith('u32[8,1]') for shape in gathered)  # a count from each device
    assert ' sort(' not in program
