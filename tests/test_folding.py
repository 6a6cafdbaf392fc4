"""Constants folded into biases, by hand, and what must not be folded; compaction by it."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structured_cases import drawn, images, linen, sequences, vectors

import jaxprune as jp
from jaxprune import structured

pytestmark = pytest.mark.promotes


def layers(*widths, seed=0):
    """Kernels `w0`, `w1`, ... and biases `b0`, `b1`, ... between widths."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    pairs = list(itertools.pairwise(widths))
    return {f'w{i}': draw(*pair) for i, pair in enumerate(pairs)} | {
        f'b{i}': draw(pair[1]) for i, pair in enumerate(pairs)
    }


def mlp(act):
    def fn(params, x):
        for i in range(len(params) // 2):
            x = (act(x) if i else x) @ params[f'w{i}'] + params[f'b{i}']
        return x

    return fn


def without(params, name, *units):
    """Sets the incoming weights of units to 0, but not their biases."""
    return params | {name: params[name].at[..., jnp.array(units)].set(0)}


def folded(fn, params, *args):
    """Folds; holds the function to what it was, on other inputs too."""
    result = structured.fold(structured.groups(fn, params, *args), params, *args)
    assert jax.tree.map(jnp.shape, result) == jax.tree.map(jnp.shape, params)
    for factor in (1, -3):
        inputs = [factor * x for x in args]
        np.testing.assert_allclose(fn(result, *inputs), fn(params, *inputs), rtol=1e-5, atol=1e-5)
    return result


def compacted(fn, params, *args):
    """Compacts; holds the function to what it was."""
    small, smaller = structured.compact(structured.groups(fn, params, *args), params, *args)
    np.testing.assert_allclose(smaller(small, *args), fn(params, *args), rtol=1e-5, atol=1e-5)
    return small


def changed(before, after):
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    return sorted(path for path, own in jp.tree.present(same) if not own)


@pytest.mark.parametrize('act', [jax.nn.relu, jnp.tanh, jax.nn.gelu, jax.nn.silu])
def test_a_constant_goes_into_the_next_bias(act):
    fn, params = mlp(act), without(layers(7, 6, 2), 'w0', 1, 4)
    after = folded(fn, params, vectors())
    assert changed(params, after) == ['b1', 'w1']
    constants = act(params['b0'])[jnp.array([1, 4])]
    by_hand = params['b1'] + constants @ params['w1'][jnp.array([1, 4])]
    np.testing.assert_allclose(after['b1'], by_hand, rtol=1e-6)
    np.testing.assert_array_equal(after['w1'], params['w1'].at[jnp.array([1, 4])].set(0))
    small = compacted(fn, params, vectors())
    assert jax.tree.map(jnp.shape, small) == {
        'w0': (7, 4), 'b0': (4,), 'w1': (4, 2), 'b1': (2,),
    }  # fmt: skip


def test_shapes_of_inputs_do():
    fn, params = mlp(jnp.tanh), without(layers(7, 6, 2), 'w0', 1)
    groups = structured.groups(fn, params, vectors())
    shape = jax.ShapeDtypeStruct((1, 7), jnp.float32)
    small, smaller = structured.compact(groups, params, shape)
    assert small['w0'].shape == (7, 5)
    np.testing.assert_allclose(smaller(small, vectors()), fn(params, vectors()), rtol=1e-5)


def test_nothing_to_fold_changes_nothing():
    params = layers(7, 6, 2)
    after = folded(mlp(jnp.tanh), params, vectors())
    assert all(after[name] is params[name] for name in params)


def test_constants_make_constants():
    """Unit 1 is constant, and unit 2 of the next layer reads it alone."""
    fn, params = mlp(jnp.tanh), without(layers(7, 6, 5, 2), 'w0', 1)
    params['w1'] = params['w1'].at[:, 2].set(0).at[1, 2].set(0.7)
    after = folded(fn, params, vectors())
    second = params['b1'] + jnp.tanh(params['b0'][1]) * params['w1'][1]
    np.testing.assert_allclose(after['b1'], second, rtol=1e-6)
    third = params['b2'] + jnp.tanh(second[2]) * params['w2'][2]
    np.testing.assert_allclose(after['b2'], third, rtol=1e-5)
    small = compacted(fn, params, vectors())
    assert (small['w0'].shape, small['w1'].shape, small['w2'].shape) == ((7, 5), (5, 4), (4, 2))


def test_a_unit_that_is_never_on_needs_no_bias():
    """relu of a negative bias is 0, which is found by its value."""
    fn = lambda p, x: jax.nn.relu(x @ p['w0'] + p['b0']) @ p['w1']
    params = without(layers(7, 6, 2), 'w0', 1, 2)
    params['b0'] = params['b0'].at[1].set(-0.5).at[2].set(0.5)
    del params['b1']
    after = folded(fn, params, vectors())
    assert changed(params, after) == ['w1'] and not after['w1'][1].any()
    assert compacted(fn, params, vectors())['w0'].shape == (7, 5)


def test_no_bias_in_the_reader():
    fn = lambda p, x: jnp.tanh(x @ p['w0'] + p['b0']) @ p['w1']
    params = without(layers(7, 6, 2), 'w0', 1)
    del params['b1']
    assert not changed(params, folded(fn, params, vectors()))
    assert compacted(fn, params, vectors())['w0'].shape == (7, 6)


def test_a_gated_unit():
    def fn(p, x):
        return (jnp.tanh(x @ p['w0'] + p['b0']) * (x @ p['gate'])) @ p['w1'] + p['b1']

    params = without(layers(7, 6, 2), 'w0', 1) | {'gate': jnp.ones((7, 6))}
    assert not changed(params, folded(fn, params, vectors()))


def test_a_bias_of_two_readers():
    def fn(p, x):
        h = jnp.tanh(x @ p['w0'] + p['b0'])
        return (h @ p['w1'] + p['b1']) * jnp.tanh(h @ p['other'] + p['b1'])

    params = without(layers(7, 6, 2), 'w0', 1) | {'other': jnp.ones((6, 2))}
    assert not changed(params, folded(fn, params, vectors()))


def test_a_bias_of_several_units():
    fn = lambda p, x: jnp.tanh(x @ p['w0'] + p['b0']) @ p['w1'] + p['b1'][0]
    params = without(layers(7, 6, 2), 'w0', 1)
    assert not changed(params, folded(fn, params, vectors()))
    fn = lambda p, x: jnp.tanh(x @ p['w0'] + p['b0']) @ p['w1'] + p['all']
    params = params | {'all': jnp.ones(())}
    assert not changed(params, folded(fn, params, vectors()))


def test_a_kernel_of_two_readers():
    def fn(p, x):
        h = jnp.tanh(x @ p['w0'] + p['b0'])
        return (h @ p['w1'] + p['b1']) + jnp.sin(h) @ p['w1']

    params = without(layers(7, 6, 2), 'w0', 1)
    assert not changed(params, folded(fn, params, vectors()))


def test_two_readers():
    def fn(p, x):
        h = jnp.tanh(x @ p['w0'] + p['b0'])
        return (h @ p['w1'] + p['b1']) * (h @ p['other'] + p['last'])

    params = without(layers(7, 6, 2), 'w0', 1)
    params |= {'other': jnp.ones((6, 2)), 'last': jnp.ones(2)}
    assert changed(params, folded(fn, params, vectors())) == ['b1', 'last', 'other', 'w1']
    assert compacted(fn, params, vectors())['w0'].shape == (7, 5)


def test_two_readers_one_without_a_bias():
    def fn(p, x):
        h = jnp.tanh(x @ p['w0'] + p['b0'])
        return (h @ p['w1'] + p['b1']) * (h @ p['other'])

    params = without(layers(7, 6, 2), 'w0', 1) | {'other': jnp.ones((6, 2))}
    assert changed(params, folded(fn, params, vectors())) == ['b1', 'w1']  # for this reader alone
    assert compacted(fn, params, vectors())['w0'].shape == (7, 6)


def test_a_reader_in_a_loop():
    def fn(p, x):
        h = jnp.tanh(x @ p['w0'] + p['b0'])
        step = lambda y, _: (jnp.tanh(y + h @ p['w1'] + p['b1']), None)
        return jax.lax.scan(step, jnp.zeros((len(x), 2)), None, length=3)[0]

    params = without(layers(7, 6, 2), 'w0', 1)
    assert not changed(params, folded(fn, params, vectors()))


def test_a_kernel_on_the_left_and_turned():
    def fn(p, x):
        h = jnp.tanh(jnp.einsum('nk,kf->fn', x, p['w0']) + p['b0'][:, None])
        return jnp.einsum('fn,fm->nm', h, p['w1']) + p['b1']

    params = without(layers(7, 6, 2), 'w0', 1)
    after = folded(fn, params, vectors())
    by_hand = params['b1'] + jnp.tanh(params['b0'][1]) * params['w1'][1]
    np.testing.assert_allclose(after['b1'], by_hand, rtol=1e-6)
    assert compacted(fn, params, vectors())['w0'].shape == (7, 5)


def test_a_residual_stream():
    """Unit 1 of the stream is constant where neither what begins it nor the branch moves it."""

    def fn(p, x):
        h = x @ p['w0'] + p['b0']
        h = h + jnp.tanh(h @ p['in'] + p['bin']) @ p['out'] + p['bout']
        return jnp.tanh(h) @ p['w1'] + p['b1']

    inner = layers(6, 5, 6, seed=1)
    params = without(layers(7, 6, 2), 'w0', 1)
    params |= {'in': inner['w0'], 'bin': inner['b0'], 'out': inner['w1'], 'bout': inner['b1']}
    assert changed(params, folded(fn, params, vectors())) == ['bin', 'in']
    assert compacted(fn, params, vectors())['w0'].shape == (7, 6)
    params = without(params, 'out', 1)
    after = folded(fn, params, vectors())
    assert changed(params, after) == ['b1', 'bin', 'in', 'w1']
    value = jnp.tanh(params['b0'][1] + params['bout'][1])
    np.testing.assert_allclose(after['b1'], params['b1'] + value * params['w1'][1], rtol=1e-6)
    small = compacted(fn, params, vectors())
    assert (small['w0'].shape, small['out'].shape) == ((7, 5), (5, 5))


def convolutions(padding, norm=False, groups=1):
    def network(x, train):
        x = nn.Conv(6, (3, 3), use_bias=not norm)(x)
        x = nn.BatchNorm(use_running_average=not train)(x) if norm else x
        x = nn.Conv(4, (3, 3), padding=padding, use_bias=not norm, feature_group_count=groups)(
            nn.relu(x)
        )
        x = nn.BatchNorm(use_running_average=not train)(x) if norm else x
        return nn.Dense(4)(nn.relu(x).mean(axis=(1, 2)))

    return linen(network, images())


def without_filters(variables, *units):
    kernel = variables['params']['Conv_0']['kernel'].at[..., jnp.array(units)].set(0)
    own = variables['params']
    return variables | {'params': own | {'Conv_0': own['Conv_0'] | {'kernel': kernel}}}


def test_a_convolution_without_padding():
    fn, variables, args, _ = convolutions('VALID')
    variables = without_filters(variables, 2, 5)
    before, after = variables['params']['Conv_1'], folded(fn, variables, *args)['params']['Conv_1']
    values = jnp.maximum(variables['params']['Conv_0']['bias'], 0)[jnp.array([2, 5])]
    taps = before['kernel'][:, :, jnp.array([2, 5])].sum(axis=(0, 1))
    np.testing.assert_allclose(after['bias'], before['bias'] + values @ taps, rtol=1e-6)
    small = compacted(fn, variables, *args)
    assert small['params']['Conv_0']['kernel'].shape == (3, 3, 3, 4)


@pytest.mark.parametrize('padding', ['SAME', ((0, 1), (0, 0))])
def test_a_convolution_with_padding(padding):
    fn, variables, args, _ = convolutions(padding)
    variables = without_filters(variables, 2, 5)
    assert not changed(variables, folded(fn, variables, *args))
    bias = variables['params']['Conv_0']['bias'].at[5].set(-0.3)
    variables['params']['Conv_0']['bias'] = bias  # never on: 0 at the borders too
    assert changed(variables, folded(fn, variables, *args)) == ['params/Conv_1/kernel']
    small = compacted(fn, variables, *args)
    assert small['params']['Conv_0']['kernel'].shape == (3, 3, 3, 5)


def test_borders_that_differ_are_no_constant():
    """A unit made of a constant by a padded convolution is another one at the borders."""

    def network(x, train):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.Conv(3, (3, 3), padding='VALID')(x).mean(axis=(1, 2))

    fn, variables, args, _ = linen(network, images())
    variables = without_filters(variables, 2)
    kernel = variables['params']['Conv_1']['kernel']
    kernel = kernel.at[..., 1].set(0).at[:, :, 2, 1].set(0.3)  # unit 1 reads unit 2 alone
    variables['params']['Conv_1']['kernel'] = kernel
    assert not changed(variables, folded(fn, variables, *args))


def test_a_grouped_convolution():
    fn, variables, args, _ = convolutions('VALID', groups=2)
    variables = without_filters(variables, 4)  # the second of the second group
    before, after = variables['params']['Conv_1'], folded(fn, variables, *args)['params']['Conv_1']
    gone = np.zeros((3, 3, 3, 4), bool)
    gone[:, :, 1, 2:] = True
    np.testing.assert_array_equal(after['kernel'], jnp.where(gone, 0, before['kernel']))
    assert np.flatnonzero(after['bias'] != before['bias']).tolist() == [2, 3]


def test_a_running_mean_is_a_bias():
    fn, variables, args, _ = convolutions('VALID', norm=True)
    variables = without_filters(variables, 2, 5)
    after = folded(fn, variables, *args)
    assert changed(variables, after) == ['batch_stats/BatchNorm_1/mean', 'params/Conv_1/kernel']
    small = compacted(fn, variables, *args)
    assert small['params']['Conv_0']['kernel'].shape == (3, 3, 3, 4)
    assert small['batch_stats']['BatchNorm_0']['mean'].shape == (4,)


def test_through_pooling_and_flattening():
    def network(x, train):
        x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(4)(x.reshape(len(x), -1))

    fn, variables, args, _ = linen(network, images())
    small = compacted(fn, without_filters(variables, 2, 5), *args)
    assert small['params']['Dense_0']['kernel'].shape == (3 * 3 * 4, 4)


def test_values_of_attention():
    """A constant value is not known to be one after attention, whose weights sum to 1."""

    def network(x, train):
        return nn.Dense(4)(nn.MultiHeadDotProductAttention(2, qkv_features=6)(x))

    fn, variables, args, _ = linen(network, sequences())
    own = variables['params']['MultiHeadDotProductAttention_0']
    own['value']['kernel'] = own['value']['kernel'].at[:, 0, 1].set(0)
    assert not changed(variables, folded(fn, variables, *args))
    own['out']['kernel'] = own['out']['kernel'].at[..., 3].set(0)
    assert changed(variables, folded(fn, variables, *args)) == [
        'params/Dense_0/bias',
        'params/Dense_0/kernel',
    ]


def test_half_precision():
    def network(x, train):
        x = nn.tanh(nn.Dense(6, dtype=jnp.bfloat16)(x))
        return nn.Dense(4, dtype=jnp.bfloat16)(x)

    fn, variables, args, _ = linen(network, vectors())
    own = variables['params']
    own['Dense_0']['kernel'] = own['Dense_0']['kernel'].at[:, 3].set(0)
    small, smaller = structured.compact(structured.groups(fn, variables, *args), variables, *args)
    assert small['params']['Dense_1']['kernel'].shape == (5, 4)
    before, after = (x.astype(jnp.float32) for x in (fn(variables, *args), smaller(small, *args)))
    np.testing.assert_allclose(after, before, atol=0.05)


@pytest.mark.parametrize('seed', range(3))
def test_a_network_pruned_to_a_few_weights_is_smaller(seed):
    x = vectors(16)
    fn, params = mlp(jnp.tanh), drawn(layers(16, 64, 32, 4), seed)
    masks = jp.masks.global_top(jp.scores.magnitude(params), 0.03, allow_empty=True)
    pruned = jp.masks.apply(params, masks)
    groups = structured.groups(fn, params, x)
    small = compacted(fn, pruned, x)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    unfolded = structured.narrow(pruned, groups, structured.dead(groups, pruned, x))
    assert count(small) < count(unfolded) < count(params)
    for kernel, reader in (('w0', 'w1'), ('w1', 'w2')):  # each unit is reached, and read
        assert small[kernel].any(axis=0).all() and small[reader].any(axis=1).all()
