"""Costs by layer, by hand and against published figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structured_cases import case, sequences

import jaxprune as jp
from benchmarks import cost_table
from jaxprune import cost, structured

pytestmark = pytest.mark.promotes


def macs(fn, params, *args, **options):
    return {layer.path: layer.macs for layer in cost.layers(fn, params, *args, **options)}


def convolve(x, kernel, **options):
    names = ('NHWC', 'HWIO', 'NHWC')
    given = {'window_strides': (1, 1), 'padding': 'SAME', 'dimension_numbers': names} | options
    return jax.lax.conv_general_dilated(x, kernel, **given)


def test_a_dense_layer():
    params = {'kernel': jnp.ones((7, 3)), 'bias': jnp.ones(3)}
    bias, kernel = cost.layers(lambda p, x: x @ p['kernel'] + p['bias'], params, jnp.ones((5, 7)))
    assert kernel == ('kernel', (7, 3), 21, 21, 5 * 7 * 3, 5 * 7 * 3, 84, 4 * (35 + 21 + 15))
    assert bias == ('bias', (3,), 3, 3, 0, 0, 12, 0)
    assert cost.total([bias, kernel]) == ('total', None, 24, 24, 105, 105, 96, 284)


@pytest.mark.parametrize(
    ('shape', 'options', 'expected'),
    [
        ((3, 3, 4, 6), {}, 64 * 6 * 9 * 4),
        ((3, 3, 4, 6), {'window_strides': (2, 2)}, 16 * 6 * 9 * 4),
        ((3, 3, 4, 6), {'rhs_dilation': (2, 2)}, 64 * 6 * 9 * 4),
        ((3, 3, 4, 6), {'padding': 'VALID'}, 36 * 6 * 9 * 4),
        ((3, 3, 2, 6), {'feature_group_count': 2}, 64 * 6 * 9 * 2),
        ((3, 3, 1, 4), {'feature_group_count': 4}, 64 * 4 * 9),
    ],
)
def test_convolutions(shape, options, expected):
    fn = lambda p, x: convolve(x, p, **options)
    assert macs(fn, jnp.ones(shape), jnp.ones((1, 8, 8, 4))) == {'': expected}


def test_calls_count_for_the_leaf_that_goes_in():
    params = {'a': jnp.ones((4, 4)), 'b': jnp.ones((4, 4))}
    inner = jax.jit(lambda w, x: jax.nn.relu(x @ w.T))
    again = jax.checkpoint(lambda w, x: jnp.sin(x @ w.astype(jnp.float32)))
    fn = lambda p, x: again(p['b'], inner(p['a'], x))
    assert macs(fn, params, jnp.ones((2, 4))) == {'a': 32, 'b': 32}


@pytest.mark.parametrize(
    'through',
    [
        jax.jit(lambda w: w.T),
        jax.checkpoint(jax.jit(jnp.transpose)),
        lambda w: jax.lax.cond(w.shape[0] > 1, jnp.transpose, lambda w: w.T, w),
    ],
)
def test_a_leaf_that_comes_back_from_a_call_counts(through):
    layers = cost.layers(
        lambda p, x: x @ through(p), jnp.ones((4, 4)), jnp.ones((2, 4)), masks=jnp.eye(4) > 0
    )
    assert [(layer.path, layer.macs, layer.kept_macs) for layer in layers] == [('', 32, 8)]


def test_what_branches_make_differently_is_nobodys():
    params = {'a': jnp.ones((4, 4)), 'b': jnp.ones((4, 4))}
    fn = lambda p, x: x @ jax.lax.cond(x.sum() > 0, lambda p: p['a'], lambda p: p['b'], p)
    found = macs(fn, params, jnp.ones((2, 4)))
    assert found['a'] == found['b'] == 0 and sum(found.values()) == 32


def test_ragged_products():
    sizes = jnp.array([2, 4])
    experts = lambda p, x: jax.lax.ragged_dot(x, p, sizes)
    assert macs(experts, jnp.ones((2, 4, 3)), jnp.ones((6, 4))) == {'': 6 * 4 * 3}
    summed = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    gradient = lambda p, x: jax.lax.ragged_dot_general(x, p, sizes, summed)
    assert macs(gradient, jnp.ones((6, 3)), jnp.ones((6, 4))) == {'': 6 * 4 * 3}


def test_a_leaf_that_is_no_array_is_named():
    for count in (cost.layers, structured.groups):
        with pytest.raises(ValueError, match=r"leaf 'scale' is 2\.0, a float: make it an array"):
            count(lambda p, x: x @ p['w'] * p['scale'], {'w': jnp.eye(3), 'scale': 2.0}, jnp.eye(3))


def test_products_of_a_smaller_function_are_where_the_whole_one_has_them():
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=(8, 8))) for name in ('q', 'k', 'o')}

    def attend(p, x):
        return jax.nn.softmax((x @ p['q']) @ (x @ p['k']).T) @ x @ p['o']

    groups = structured.groups(attend, params, jnp.ones((5, 8)))
    keep = structured.top(groups, structured.importance(groups, params), 0.5)
    small, smaller = structured.shrink(params, groups, keep)
    places = lambda layers: [layer.path for layer in layers if layer.shape is None]
    whole = places(cost.layers(attend, params, jnp.ones((5, 8))))
    assert whole and all('test_cost.py' in place for place in whole)
    assert places(cost.layers(smaller, small, jnp.ones((5, 8)))) == whole


def test_a_scan_counts_each_turn():
    params = jnp.ones((3, 4, 4))
    fn = lambda p, x: jax.lax.scan(lambda x, w: (x @ w, None), x, p)[0]
    assert macs(fn, params, jnp.ones((2, 4))) == {'': 3 * 2 * 16}


def test_a_conditional_counts_its_dearest_branch():
    fn = lambda p, x: jax.lax.cond(x.sum() > 0, lambda x: x @ p @ p, lambda x: x @ p, x)
    assert macs(fn, jnp.ones((4, 4)), jnp.ones((2, 4))) == {'': 2 * 2 * 16}


def test_joined_leaves_share():
    params = {'a': jnp.ones((4, 1)), 'b': jnp.ones((4, 3))}
    fn = lambda p, x: x @ jnp.concatenate([p['a'], p['b']], axis=1)
    assert macs(fn, params, jnp.ones((2, 4))) == {'a': 8, 'b': 24}


def test_parts_of_a_leaf_count_for_it():
    takes = (
        lambda p: jnp.split(p, 2, axis=1)[1],
        lambda p: jnp.unstack(p.reshape(4, 2, 3), axis=1)[1],
        lambda p: next(iter(p.reshape(2, 4, 3))),
        lambda p: jnp.tile(p[:, :1], (1, 3)),
    )
    for take in takes:
        fn = lambda p, x, take=take: x @ take(p)
        assert macs(fn, jnp.ones((4, 6)), jnp.ones((2, 4))) == {'': 24}


def test_attention_is_a_layer_of_its_own():
    fn, params, args, _ = case('fused_attention')
    found = macs(fn, params, *args)
    (place,) = {path for path in found if '/' not in path}
    assert place.startswith('dot_general (structured_cases.py:')
    N, L, _ = args[0].shape
    assert found[place] == 2 * N * 4 * L * L * 3
    assert found['params/Dense_0/kernel'] == N * L * 7 * 36


def test_a_tied_embedding_is_multiplied_once():
    fn, params, args, _ = case('tied_embedding')
    N, L = args[0].shape
    assert macs(fn, params, *args)['params/Embed_0/embedding'] == N * L * 8 * 11


def test_masks():
    params = {'a': jnp.ones((4, 4)), 'bias': jnp.ones(4)}
    masks = {'a': jnp.arange(16).reshape(4, 4) < 4, 'bias': None}
    for own in (masks, jp.packing.pack(masks)):
        a, bias = cost.layers(
            lambda p, x: x @ p['a'] + p['bias'], params, jnp.ones((2, 4)), masks=own
        )
        assert (a.kept, a.macs, a.kept_macs) == (4, 32, 8)
        assert bias.kept == 4
    with pytest.raises(ValueError, match='masks have no leaf'):
        cost.layers(lambda p, x: x @ p['a'], params, jnp.ones((2, 4)), masks={'a': masks['a']})


def test_half_the_channels():
    fn, params, args, _ = case('batch_norm')
    groups = structured.groups(fn, params, *args)
    keep = {group.name: np.arange(group.size) < group.size // 2 for group in groups.groups}
    small, smaller = structured.shrink(params, groups, keep)
    found = macs(smaller, small, *args)
    assert found['params/Conv_0/kernel'] == 5 * 36 * 9 * 3 * 4
    assert found['params/Conv_1/kernel'] == 5 * 36 * 9 * 4 * 4


def test_a_recurrent_network():
    fn, params, _, _ = case('lstm')
    found = macs(fn, params, sequences())
    assert found['params/OptimizedLSTMCell_0/hf/kernel'] == 3 * 5 * 36
    assert found['params/OptimizedLSTMCell_0/if/kernel'] == 3 * 5 * 42


@pytest.mark.parametrize('name', cost_table.PUBLISHED)
def test_models_as_published(name):
    """Of torchvision's documentation of its models, for one image of 224²."""
    parameters, macs = cost_table.counted(name)
    published, ops = cost_table.PUBLISHED[name]
    assert parameters == published
    assert macs / 1e9 == pytest.approx(ops, rel=0.003)


def test_the_table():
    text = cost.table(cost.layers(lambda p, x: x @ p, jnp.ones((30, 40)), jnp.ones((2, 30))))
    assert '1,200' in text and '2,400' in text and 'total' in text


def test_latency():
    found = cost.latency(lambda x: x + 1, jnp.ones(3), repeats=5)
    assert len(found.times) == 5 and 0 < found.low <= found.median <= found.high
    assert found.device
    with pytest.raises(ValueError, match='repeats=0'):
        cost.latency(lambda x: x, jnp.ones(3), repeats=0)


def test_bad_functions():
    with pytest.raises(ValueError, match='depends on values'):
        cost.layers(lambda p, x: x @ p if p.sum() > 0 else x, jnp.ones((3, 3)), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match='returns no array'):
        cost.layers(lambda p, x: None, jnp.ones((3, 3)), jnp.ones((2, 3)))
