import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune import scores

SHARED = {
    'magnitude': scores.magnitude,
    'normalized_magnitude': scores.normalized_magnitude,
    'lamp': scores.lamp,
    'random': lambda params, **kw: scores.random(params, jax.random.key(0), **kw),
    'taylor': lambda params, **kw: scores.taylor(params, params, **kw),
    'snip': lambda params, **kw: scores.snip(params, params, **kw),
    'movement': lambda params, **kw: scores.movement(params, params, **kw),
    'fisher': lambda params, **kw: scores.fisher(params, params, **kw),
    'grasp': lambda params, **kw: scores.grasp(power, params, jnp.ones(2), **kw),
    'synflow': lambda params, **kw: scores.synflow(lambda p: power(p, 1.0), params, **kw),
}
every_score = pytest.mark.parametrize('score', SHARED.values(), ids=SHARED)


def power(params, scale):
    """Adds up cubes, whatever the leaves are."""
    leaves = [w for w in jax.tree.leaves(params) if jnp.issubdtype(w.dtype, jnp.floating)]
    return sum(jnp.sum(w.astype(float) ** 3) for w in leaves) * scale


def weights(seed, shape=(7, 9), *, ties=False, dtype=jnp.float32):
    w = jax.random.normal(jax.random.key(seed), shape)
    return (jnp.round(2 * w) / 2 if ties else w).astype(dtype)


def test_the_public_functions():
    for name in scores.__all__:
        assert getattr(scores, name).__doc__


def test_magnitude_by_hand():
    params = {'kernel': jnp.array([[-3.0, 2.0], [0.5, -0.0]], jnp.bfloat16), 'bias': jnp.ones(2)}
    found = scores.magnitude(params)
    assert found['bias'] is None
    assert found['kernel'].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found['kernel'].astype(np.float32), [[3, 2], [0.5, 0]])


def test_random_is_a_function_of_the_key_and_the_leaf():
    params = (jnp.ones((4, 5)), jnp.ones(3), jnp.ones((4, 5), jnp.bfloat16))
    a, none, b = scores.random(params, jax.random.key(0))
    again, _, _ = scores.random(params, jax.random.key(0))
    other, _, _ = scores.random(params, jax.random.key(1))
    assert none is None
    assert a.dtype == b.dtype == jnp.float32
    np.testing.assert_array_equal(a, again)
    assert not np.array_equal(a, other)
    assert not np.array_equal(a, b)
    assert ((a >= 0) & (a < 1)).all()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16], ids=['float32', 'bfloat16'])
def test_normalized_magnitude_against_a_loop(dtype):
    for seed in range(3):
        params = {'a': weights(seed, dtype=dtype), 'b': 50 * weights(seed + 9, (9, 7))}
        found = scores.normalized_magnitude(params)
        for name, w in params.items():
            assert found[name].dtype == jnp.float32
            expected = reference.normalized_magnitude(w)
            np.testing.assert_allclose(found[name], expected, rtol=1e-6)


def test_normalized_magnitude_by_hand():
    found = scores.normalized_magnitude({'a': jnp.array([[-3.0, 4.0]]), 'b': jnp.zeros((2, 2))})
    np.testing.assert_allclose(found['a'], [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_array_equal(found['b'], 0)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('ties', [False, True])
def test_lamp_against_a_loop(ties, dtype):
    for seed in range(3):
        w = weights(seed, ties=ties, dtype=dtype)
        found = scores.lamp({'w': w})['w']
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, reference.lamp(w), rtol=2e-6)
        assert jnp.max(found) == 1


def test_lamp_by_hand_with_ties_and_zeros():
    found = scores.lamp(
        {'w': jnp.array([[2.0, -1.0, 0.0], [-2.0, 1.0, -0.0]]), 'bias': jnp.ones(2)}
    )
    np.testing.assert_allclose(found['w'], [[1, 1 / 9, 0], [1 / 2, 1 / 10, 0]], rtol=1e-6)
    assert found['bias'] is None


def test_lamp_of_zeros_is_zero():
    np.testing.assert_array_equal(scores.lamp(jnp.zeros((3, 3))), 0)


@pytest.mark.parametrize('score', [scores.lamp, scores.normalized_magnitude])
@pytest.mark.parametrize('scale', [1e-30, 1e30])
def test_the_scale_of_a_leaf_does_not_matter(score, scale):
    w = weights(0)
    np.testing.assert_allclose(score(w * scale), score(w), rtol=1e-5)
    assert score(jnp.zeros((0, 3))).shape == (0, 3)


def test_lamp_sums_a_large_leaf_accurately_and_in_order():
    w = 1 + 0.5 * jax.random.uniform(jax.random.key(0), (512, 512))
    found = np.asarray(scores.lamp(w), np.float64).ravel()
    size = np.asarray(w, np.float64).ravel()
    order = np.argsort(-size, kind='stable')
    np.testing.assert_allclose(found[order], size[order] ** 2 / np.cumsum(size[order] ** 2), 1e-6)
    assert (np.diff(found[order]) <= 0).all()


def test_rounding_turns_no_ties_of_lamp_around():
    w = jnp.concatenate([jnp.ones(1), jnp.full(100_000, 1e-4)])  # their sums differ by rounding
    found = np.asarray(scores.lamp(w, where=lambda path, leaf: True))
    assert (np.diff(found) <= 0).all()


def test_no_global_selection_by_lamp_empties_a_leaf():
    params = {'large': 1e3 * weights(0, (30, 30)), 'small': 1e-3 * weights(1, (5, 5), ties=True)}
    masks = jp.masks.global_top(scores.lamp(params), 2 / 925)
    assert [int(m.sum()) for m in jax.tree.leaves(masks)] == [1, 1]
    by_magnitude = reference.top(list(params.values()), 2)
    assert [int(m.sum()) for m in by_magnitude] == [2, 0]


def test_within_a_leaf_lamp_keeps_what_magnitude_keeps():
    w = weights(3, ties=True)
    for density in (0.1, 0.4, 0.7):
        by_lamp, by_size = (
            jp.masks.leaf_top(s(w), density) for s in (scores.lamp, scores.magnitude)
        )
        np.testing.assert_array_equal(by_lamp, by_size)


@every_score
def test_none_where_not_prunable(score):
    params = {'a': weights(0), 'bias': jnp.ones(3), 'none': None, 'step': jnp.int32(3)}
    found = score(params)
    assert list(found) == list(params)
    assert found['bias'] is found['none'] is found['step'] is None
    assert found['a'].shape == (7, 9)
    assert jnp.any(found['a'] != 0)


@every_score
def test_where_sees_the_path_and_the_leaf_of_the_parameters(score):
    params = {'a': weights(0, dtype=jnp.bfloat16), 'b': jnp.ones(3)}
    found = score(params, where=lambda path, leaf: path == 'b' and leaf is params['b'])
    assert found['a'] is None
    assert found['b'].shape == (3,)


@every_score
def test_bfloat16_scores_are_those_of_its_values_in_float32(score):
    params = {'a': weights(0, dtype=jnp.bfloat16)}
    found, expected = score(params), score(jax.tree.map(lambda w: w.astype(jnp.float32), params))
    if score is not scores.magnitude:
        assert found['a'].dtype == jnp.float32
    np.testing.assert_allclose(found['a'].astype(jnp.float32), expected['a'], rtol=0.01)


@every_score
def test_float64_stays(score):
    with jax.enable_x64(True):
        w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))
        found = score({'a': w})['a']
        assert found.dtype == (jnp.float32 if score is SHARED['random'] else jnp.float64)


@every_score
def test_nothing_prunable_is_an_error(score):
    with pytest.raises(ValueError, match='nothing is prunable'):
        score({'bias': jnp.ones(3)})


@every_score
@pytest.mark.parametrize('dtype', [jnp.int32, jnp.complex64])
def test_only_floating_point_leaves_have_scores(score, dtype):
    params = {'a': weights(0), 'x': jnp.ones((2, 2), dtype)}
    with pytest.raises(ValueError, match=rf"leaf 'x' is {jnp.dtype(dtype)} .* where="):
        score(params, where=lambda path, leaf: True)


def every(params):
    return {name: score(params) for name, score in SHARED.items()}


def two_devices(kind):
    return jax.make_mesh((2,), ('x',), axis_types=(kind,), devices=jax.devices()[:2])


def placed(params, kind, *spec):
    sharding = NamedSharding(two_devices(kind), P(*spec))
    return jax.tree.map(lambda w: jax.device_put(w, sharding), params)


def twice(params):
    return jax.tree.map(lambda w: jnp.stack([-2 * w[::-1], w]), params)


def second(tree):
    return jax.tree.map(lambda x: x[1], tree)


def shard_map(params):
    rows = jax.tree.map(jnp.concatenate, twice(params))
    f = jax.shard_map(every, mesh=two_devices(AxisType.Auto), in_specs=P('x'), out_specs=P('x'))
    return jax.tree.map(lambda x: x[16:], jax.jit(f)(rows))


def scan(params):
    return second(jax.lax.scan(lambda _, p: (0, every(p)), 0, twice(params))[1])


CALLS = {
    'jit': jax.jit(every),
    'vmap': lambda params: second(jax.jit(jax.vmap(every))(twice(params))),
    'scan': scan,
    'pmap': lambda params: second(jax.pmap(every)(twice(params))),
    'shard_map': shard_map,
    'rows': lambda params: jax.jit(every)(placed(params, AxisType.Auto, 'x', None)),
    'columns': lambda params: jax.jit(every)(placed(params, AxisType.Auto, None, 'x')),
    'explicit rows': lambda params: jax.jit(every)(placed(params, AxisType.Explicit, 'x', None)),
    'explicit columns': lambda params: jax.jit(every)(placed(params, AxisType.Explicit, None, 'x')),
}


@pytest.fixture(scope='module')
def params_and_scores():
    params = {'a': weights(0, (16, 8), ties=True), 'b': weights(1, (16, 8), dtype=jnp.bfloat16)}
    return params, every(params)


@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
def test_the_same_however_it_is_called(call, params_and_scores):
    params, expected = params_and_scores
    found = call(params)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=2e-6)
