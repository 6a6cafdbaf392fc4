"""Functions on which groups, zeros and states are easily mistaken."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import jaxprune as jp
from jaxprune import structured

pytestmark = pytest.mark.promotes


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = drawn(4, 5)
PARAMS = {'W': drawn(5, 6, seed=1), 'V': drawn(6, 3, seed=2)}
KEEP = {'W:1': np.arange(6) > 1}


def outer(combine, repeat):
    """Sums over all pairs of units, of which one side is repeated along a new axis."""
    return lambda p, x: combine(repeat(x @ p['W'], 2), repeat(x @ p['W'], 1)).sum((1, 2))


def repeated(h, axis):
    return jnp.repeat(jnp.expand_dims(h, axis), 6, axis)


def broadcast(h, axis):
    return jnp.broadcast_to(jnp.expand_dims(h, axis), (len(h), 6, 6))


def broadcast_in_dim(h, axis):
    return lax.broadcast_in_dim(h, (len(h), 6, 6), (0, 3 - axis))


def gathered(p, x):
    table = p['T'][jnp.arange(6)]
    return (x @ p['W']).sum(1) * jnp.abs(table - table.T).sum()


def exact_or_named(fn, params, x, keep):
    """Removed is as zeroed, or the group is told to be not exact."""
    groups = structured.groups(fn, params, x)
    small, smaller = structured.shrink(params, groups, keep)
    zeroed = fn(structured.widen(small, groups, keep), x)
    same = np.allclose(zeroed, smaller(small, x), rtol=1e-5, atol=1e-5)
    return all(same or groups.named(name).inexact for name in keep)


@pytest.mark.parametrize('repeat', [repeated, broadcast, broadcast_in_dim])
@pytest.mark.parametrize('combine', [jnp.maximum, jnp.add, lambda a, b: jnp.abs(a - b)])
def test_axes_that_repeat_a_row(combine, repeat):
    assert exact_or_named(outer(combine, repeat), PARAMS, X, KEEP)


def test_axes_of_indices():
    params = {'T': drawn(10, 6), 'W': PARAMS['W']}
    groups = structured.groups(gathered, params, X)
    assert all(
        exact_or_named(gathered, params, X, {group.name: np.arange(group.size) > 1})
        for group in groups.groups
    )


@pytest.mark.parametrize('power', [-2, -1, 0, 1, 2])
def test_integer_powers(power):
    fn = lambda p, x: jnp.tanh(lax.integer_pow(x @ p['W'], power)).sum(1)
    assert exact_or_named(fn, PARAMS, X, KEEP)
    inexact = structured.groups(fn, PARAMS, X).named('W:1').inexact
    assert bool(inexact) == (power <= 0)


def test_a_state_with_random_keys():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(5, 8, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.b = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.b(self.dropout(nnx.relu(self.a(x))))

    net = Net(nnx.Rngs(0))
    net.eval()
    definition, state = nnx.split(net)
    fn = lambda state, x: nnx.merge(definition, state)(x)
    kernel = state['a']['kernel']
    state['a']['kernel'] = kernel.replace(kernel.get_value().at[:, :3].set(0))
    small, smaller = structured.compact(structured.groups(fn, state, X), state, X)
    np.testing.assert_allclose(smaller(small, X), fn(state, X), atol=1e-6)
    assert small['a']['kernel'].shape == (5, 5)
    assert jp.cost.total(jp.cost.layers(fn, state, X)).macs == 4 * (5 * 8 + 8 * 3)


def test_a_function_that_holds_a_key():
    key = jax.random.key(0)

    def fn(p, x):
        return ((x @ p['W']) * jax.random.bernoulli(key, 0.5, (4, 6))) @ p['V']

    assert structured.groups(fn, PARAMS, X)


def test_packed_masks():
    fn = lambda p, x: jnp.tanh(x @ p['W']) @ p['V']
    groups = structured.groups(fn, PARAMS, X)
    masks = jax.tree.map(lambda w: jnp.ones(w.shape, bool), PARAMS)
    packed = jp.packing.pack(masks)
    expected = structured.masks_of(groups, KEEP, masks)
    found = structured.masks_of(groups, KEEP, packed)
    assert isinstance(found['W'], jp.packing.Packed)
    jax.tree.map(np.testing.assert_array_equal, jp.packing.unpack(found), expected)
    np.testing.assert_array_equal(structured.kept_by(groups, found)['W:1'], KEEP['W:1'])
    wide = structured.widen(structured.narrow(packed, groups, KEEP), groups, KEEP)
    jax.tree.map(np.testing.assert_array_equal, jp.packing.unpack(wide), expected)


def test_a_state_of_which_nothing_would_be_cut():
    fn = lambda v, x: jnp.tanh(x @ v['params']['W']) @ v['params']['V']
    groups = structured.groups(fn, {'params': PARAMS}, X)
    keep = {'params/W:1': KEEP['W:1']}
    state = optax.adam(1.0).init(PARAMS)
    with pytest.raises(ValueError, match='no leaf of the state has the path of a parameter'):
        structured.narrow(state, groups, keep)
    assert structured.narrow(state, groups, keep, under='params')[0].mu['W'].shape == (5, 4)


def test_parameters_that_are_one_array():
    fn = lambda w, x: jnp.tanh(x @ w).sum(1)
    groups = structured.groups(fn, PARAMS['W'], X)
    keep = {groups.groups[0].name: KEEP['W:1']}
    state = structured.narrow(optax.adam(1.0).init(PARAMS['W']), groups, keep)
    assert state[0].mu.shape == (5, 4)


@pytest.mark.parametrize('share', [0.07, 0.14, 0.28, 0.55, 0.56])
def test_a_floor_as_large_as_the_density(share):
    params = {'W': drawn(5, 100), 'V': drawn(100, 3)}
    fn = lambda p, x: jax.nn.relu(x @ p['W']) @ p['V']
    groups = structured.groups(fn, params, X)
    keep = structured.top(groups, {'W:1': np.arange(100.0)}, share, floor=share)
    assert keep['W:1'].sum() == round(100 * share)


def test_values_that_are_refused():
    fn = lambda p, x: jax.nn.relu(x @ p['W']) @ p['V']
    groups = structured.groups(fn, PARAMS, X)
    ranked = {'W:1': np.arange(6.0)}
    with pytest.raises(ValueError, match="scope='layer' must be"):
        structured.top(groups, ranked, 0.5, scope='layer')
    with pytest.raises(ValueError, match="reduce='max' must be"):
        structured.importance(groups, PARAMS, reduce='max')
    with pytest.raises(ValueError, match='budget is NaN'):
        structured.within(groups, ranked, float('nan'), structured.parameters(groups))
    with pytest.raises(ValueError, match='cannot be met'):
        structured.within(groups, ranked, 10, lambda keep: float('nan'))
    with pytest.raises(ValueError, match="leaf 'extra'"):
        structured.shrink(PARAMS | {'extra': X}, groups, KEEP)
    with pytest.raises(ValueError, match='depends on values'):
        structured.groups(lambda p, x: x[x > 0] * p['W'].sum(), PARAMS, X)


def test_a_kernel_without_entries():
    params = {'W': jnp.zeros((5, 0))}
    assert jp.cost.layers(lambda p, x: x @ p['W'], params, X)[0].macs == 0


def test_a_function_of_a_value_that_is_traced_can_be_called_again():
    """Its program holds a tracer, which means nothing in the next trace."""
    params = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2))}
    factor = [jnp.float32(1)]
    fn = lambda p, x: jnp.tanh(x @ p['a'] * factor[0]) @ p['b']
    x = jnp.ones((5, 3))
    groups = structured.groups(fn, params, x)
    small, smaller = structured.shrink(params, groups, {'a:1': np.arange(4) < 2})

    @jax.jit
    def scaled(value, x):
        factor[0] = value
        return smaller(small, x)

    for value in (1.0, 2.0):
        factor[0] = jnp.float32(value)
        jax.clear_caches()
        expected = jnp.tanh(x @ small['a'] * value) @ small['b']
        np.testing.assert_allclose(scaled(jnp.float32(value), x), expected, rtol=1e-6)
