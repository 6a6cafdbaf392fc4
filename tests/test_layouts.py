"""Explicit axes, which meshes of `jax.make_mesh` have: the same bits, laid out as the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune import layouts, tree

pytestmark = pytest.mark.promotes  # optax does
KEY = jax.random.key(0)
WEIGHTS = {
    'a': jax.random.normal(KEY, (16, 8)),
    'b': jnp.round(2 * jax.random.normal(KEY, (8, 24))) / 2,
    'bias': jnp.ones(8),
}
SPECS = {'a': P('x', 'y'), 'b': P('y', 'x'), 'bias': P()}


def scored(params):
    return jp.scores.magnitude(params)


def packed_step(params):
    tx = jp.pruned(optax.adam(0.01), masks=half(params), packed=True)
    return optax.apply_updates(params, tx.update(params, tx.init(params), params)[0])


def half(params):
    return jp.tree.map_prunable(lambda _, w: jnp.abs(w) > 0.5, params)


CALLS = {
    'blocks': lambda w: jp.masks.global_top(scored(w), 0.5, pattern=jp.patterns.blocks((2, 4))),
    'n of m': lambda w: jp.masks.n_of_m(scored(w), 2, 8),
    'n of m along the last axis': lambda w: jp.masks.n_of_m(scored(w), 1, 4, axis=-1),
    'within masks': lambda w: jp.masks.leaf_top(scored(w), 0.2, half(w)),
    'floor': lambda w: jp.masks.global_top(scored(w), 0.2, floor=0.1),
    'shuffle': lambda w: jp.masks.shuffle(half(w), KEY),
    'packed': lambda w: jp.masks.unpack(jp.masks.pack(half(w))),
    'apply packed': lambda w: jp.masks.apply(w, jp.masks.pack(half(w))),
    'packed step': packed_step,
    'lamp': jp.scores.lamp,
}


@pytest.mark.parametrize('jitted', [False, True], ids=['eager', 'jit'])
@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
def test_the_same_on_explicit_axes(call, jitted):
    mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=(AxisType.Explicit,) * 2)
    place = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):  # new arrays, such as moments, are made on it
        found = (jax.jit(call) if jitted else call)(jax.tree.map(place, WEIGHTS, SPECS))
    expected = call(WEIGHTS)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), (_, b) in zip(tree.present(found), tree.present(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-6)
        if a.dtype == bool:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        if jitted and call is not CALLS['packed']:  # of bytes an axis may be too short
            assert a.sharding.is_equivalent_to(NamedSharding(mesh, SPECS[path]), a.ndim)


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [((16, 8), P('x', 'y')), ((2, 8), P(None, 'y')), ((16, 7), P('x', None))],
)
def test_an_axis_that_devices_do_not_divide_is_whole(shape, expected):
    mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=(AxisType.Explicit,) * 2)
    assert layouts.fitting(NamedSharding(mesh, P('x', 'y')), shape).spec == expected
