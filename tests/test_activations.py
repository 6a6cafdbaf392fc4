"""The activations that units have where layers read them, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structured_cases import NETWORKS, case, vectors

from jaxprune import structured

pytestmark = pytest.mark.promotes


def mlp(params, x):
    x = jax.nn.relu(x @ params['a'] + params['bias'])
    return x @ params['b']


def made():
    rng = np.random.default_rng(0)
    shapes = {'a': (7, 6), 'bias': (6,), 'b': (6, 2)}
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


def test_of_a_hidden_layer():
    params, x = made(), vectors()
    groups = structured.groups(mlp, params, x)
    hidden = np.maximum(np.asarray(x) @ np.asarray(params['a']) + np.asarray(params['bias']), 0)
    found = structured.activation(groups, params, x)
    np.testing.assert_allclose(found['a:1'], hidden.mean(0), rtol=1e-5)


def test_of_two_readers_and_inside_of_calls():
    """The mean over both readings: of x, and of twice x."""
    params, x = made(), vectors()
    fn = lambda p, x: jax.jit(lambda h: h @ p['b'] + (2 * h) @ p['b'])(jnp.tanh(x @ p['a']))
    params.pop('bias')
    hidden = np.abs(np.tanh(np.asarray(x) @ np.asarray(params['a']))).mean(0)
    found = structured.activation(structured.groups(fn, params, x), params, x)
    np.testing.assert_allclose(found['a:1'], 1.5 * hidden, rtol=1e-5)


def test_of_channels_that_are_flattened():
    """A unit is read at all its positions."""
    rng = np.random.default_rng(1)
    params = {'a': rng.normal(size=(1, 1, 3, 4)), 'b': rng.normal(size=(16, 2))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    x = jnp.asarray(rng.normal(size=(5, 2, 2, 3)), jnp.float32)

    def fn(params, x):
        names = ('NHWC', 'HWIO', 'NHWC')
        x = jax.lax.conv_general_dilated(x, params['a'], (1, 1), 'VALID', dimension_numbers=names)
        return jax.nn.relu(x).reshape(len(x), -1) @ params['b']

    channels = np.maximum(np.asarray(x) @ np.asarray(params['a'][0, 0]), 0)
    found = structured.activation(structured.groups(fn, params, x), params, x)
    np.testing.assert_allclose(found['a:3'], channels.mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize('name', ['attention', 'batch_norm', 'lstm', 'grouped_query', 'grouped'])
def test_of_every_kind(name):
    fn, params, args, _ = case(name)
    groups = structured.groups(fn, params, *args)
    found = structured.activation(groups, params, *args)
    for group, own in found.items():
        assert own.shape == (groups.named(group).size,) and np.isfinite(own).all() and own.max() > 0
    assert name in NETWORKS and structured.top(groups, found, 0.5)


def test_larger_inputs_have_larger_activations():
    params, x = made(), vectors()
    params['bias'] = jnp.zeros(6)
    groups = structured.groups(mlp, params, x)
    once, twice = (structured.activation(groups, params, n * x)['a:1'] for n in (1, 2))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)


def test_no_product_reads():
    params = {'a': jnp.ones((3, 4))}
    fn = lambda p, x: jnp.tanh(x @ p['a']).sum(axis=-1)
    groups = structured.groups(fn, params, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match='no group is read by a product'):
        structured.activation(groups, params, jnp.ones((2, 3)))


def test_values_that_are_not_finite_are_an_error():
    params = {'a': jnp.ones((3, 4)).at[0, 2].set(jnp.nan), 'b': jnp.ones((4, 2))}
    fn = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
    groups = structured.groups(fn, params, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"group 'a:1' are NaN or infinite at units \[2\]"):
        structured.activation(groups, params, jnp.ones((5, 3)))
