"""Models for signals and text, the widths of all models, and their training under vmap."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import tree
from train import models

TEXT = ('decoder', 'lstm', 'transformer')
SHAPES = {
    **dict.fromkeys(TEXT, (2, 8)),
    **dict.fromkeys(('conv1d', 'mlp1d', 'mlp256'), (2, 40, 1)),
    **dict.fromkeys(('convnet', 'lenet300'), (2, 8, 8, 1)),
}
GATES = {'ii', 'if', 'ig', 'io', 'hi', 'hf', 'hg', 'ho'}


def _build(name, num_classes=10, **options):
    return models.build(name, num_classes=97 if name in TEXT else num_classes, **options)


def _inputs(name):
    shape = SHAPES.get(name, (2, 32, 32, 3))
    if name in TEXT:
        return jax.random.randint(jax.random.key(0), shape, 0, 97)
    return jax.random.normal(jax.random.key(0), shape)


def _params(name, inputs=None, **options):
    """The shapes of the parameters by path."""
    inputs = _inputs(name) if inputs is None else inputs
    model = _build(name, **options)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), inputs)
    return dict(tree.present(shapes['params']))


def _count(params):
    return sum(leaf.size for leaf in params.values())


@functools.cache
def _init(name):
    model, inputs = _build(name), _inputs(name)
    init = jax.jit(lambda key: model.init(key, inputs, train=False)['params'])
    return model, init(jax.random.key(1)), inputs


def _dense(inputs, outputs):
    return inputs * outputs + outputs


@pytest.mark.parametrize(
    ('name', 'expected', 'prunable'),
    [
        ('mlp1d', 40 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10, 3),  # published: 15,210
        ('mlp256', _dense(40, 256) + _dense(256, 128) + _dense(128, 10), 3),
        ('conv1d', 5 * 25 + 25 + 2 * (3 * 25 * 25 + 25) + _dense(5 * 25, 10), 4),  # 5,210
        ('lstm', 97 * 64 + 4 * (64 * 128 + 128 * 128 + 128) + _dense(128, 97), 1 + 8 + 1),
        (
            'transformer',
            97 * 64
            + 64 * 64  # positions
            + 2 * (64 * 3 * 64 + 64 * 64 + _dense(64, 256) + _dense(256, 64) + 2 * 2 * 64)
            + 2 * 64
            + _dense(64, 97),
            2 + 2 * 4 + 1,
        ),
    ],
)
def test_parameters_and_prunable_leaves(name, expected, prunable):
    inputs = jnp.zeros((1, 64), jnp.int32) if name in TEXT else None
    params = _params(name, inputs)
    assert _count(params) == expected
    published = {'mlp1d': 15_210, 'conv1d': 5_210, 'lstm': 117_537, 'transformer': 116_193}
    assert expected == published.get(name, expected)
    paths = {path for path, leaf in params.items() if tree.prunable(path, leaf)}
    assert len(paths) == prunable
    assert all(path.endswith(('kernel', 'embedding', 'positions')) for path in paths)
    others = {path.rsplit('/')[-1] for path in params.keys() - paths}
    assert others <= {'bias', 'scale'}
    assert name != 'lstm' or GATES <= {path.split('/')[-2] for path in paths}


def _close(a, b):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_mlp1d_against_its_equations():
    model, params, x = _init('mlp1d')
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    layer = lambda x, n: x @ p[f'Dense_{n}']['kernel'] + p[f'Dense_{n}']['bias']
    h = np.maximum(layer(np.asarray(x).reshape(2, 40), 0), 0)
    h = h + np.maximum(layer(h, 1), 0)
    _close(model.apply({'params': params}, x, train=True), layer(h, 2))


def test_conv1d_against_convolutions():
    model, params, signals = _init('conv1d')
    x = signals
    for n, size in enumerate((5, 3, 3)):
        conv = nn.Conv(25, (size,), 2, padding=1)
        x = nn.relu(conv.apply({'params': params[f'_Conv_{n}']}, x))
    assert x.shape == (2, 5, 25)
    expected = nn.Dense(10).apply({'params': params['Dense_0']}, x.reshape(2, -1))
    _close(model.apply({'params': params}, signals, train=False), expected)


def test_lstm_against_its_equations():
    model, params, tokens = _init('lstm')
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    (cell,) = (p[key] for key in p if 'LSTM' in key)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    h = c = np.zeros((2, 128))
    outputs = []
    for x in np.moveaxis(p['Embed_0']['embedding'][np.asarray(tokens)], 1, 0):
        i, f, g, o = (
            x @ cell[f'i{gate}']['kernel']
            + h @ cell[f'h{gate}']['kernel']
            + cell[f'h{gate}']['bias']
            for gate in 'ifgo'
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h @ p['Dense_0']['kernel'] + p['Dense_0']['bias'])
    _close(model.apply({'params': params}, tokens, train=False), np.stack(outputs, 1))


@pytest.mark.promotes
@pytest.mark.parametrize('name', TEXT)
def test_a_token_changes_its_own_logits_and_later_ones_only(name):
    model, params, tokens = _init(name)
    apply = jax.jit(lambda tokens: model.apply({'params': params}, tokens, train=False))
    before = apply(tokens)
    for place in (0, 3, 7):
        after = apply(tokens.at[0, place].add(1) % 97)
        moved = np.abs(after - before).max(-1)
        assert (moved[0, :place] == 0).all() and (moved[0, place:] > 1e-5).all()
        assert (moved[1] == 0).all()


@pytest.mark.promotes
@pytest.mark.parametrize('name', TEXT)
def test_tokens_may_be_bytes(name):
    model, params, tokens = _init(name)
    given = [model.apply({'params': params}, tokens.astype(t), train=True) for t in ('u1', 'i4')]
    np.testing.assert_array_equal(*given)


def test_the_transformer_knows_positions():
    model, params, _ = _init('transformer')
    logits = model.apply({'params': params}, jnp.full((1, 8), 5), train=False)
    assert np.abs(logits[0, 1:] - logits[0, :1]).max(-1).min() > 1e-4


# -- widths


@pytest.mark.parametrize('name', sorted(models.MODELS.keys() - {'conv1d'}))  # 25 is odd
def test_a_width_scales_every_hidden_width(name):
    whole, half = _params(name), _params(name, width=0.5)
    assert whole.keys() == half.keys()
    ends = {10, 97, 1, 3, 5, 7, 8, 40, 64 * (name == 'lenet300')}  # classes, inputs, kernel sizes
    heads_and_patches = {'decoder': {2, 4}, 'vit_b16': {12, 16}, 'vit_tiny': {2, 4, 16 * 16 + 1}}
    ends |= heads_and_patches.get(name, set())
    for path, leaf in whole.items():
        for units, scaled in zip(leaf.shape, half[path].shape, strict=True):
            assert scaled in (units // 2, round(units / 2)) or (units == scaled and units in ends)
    assert 0.2 < _count(half) / _count(whole) < 0.56


@pytest.mark.parametrize(
    ('name', 'width', 'expected'),
    [
        ('mlp1d', 0.334, _dense(40, 33) + _dense(33, 33) + _dense(33, 10)),
        ('mlp256', 2.0, _dense(40, 512) + _dense(512, 256) + _dense(256, 10)),
        ('lenet300', 1e-9, _dense(64, 1) + _dense(1, 1) + _dense(1, 10)),
        ('conv1d', 0.4, _dense(5, 10) + 2 * _dense(30, 10) + _dense(50, 10)),
        ('lstm', 0.1, 97 * 6 + 4 * (6 * 13 + 13 * 13 + 13) + _dense(13, 97)),
        (
            'transformer',  # 2 heads of 3 units
            0.1,
            97 * 6 + 8 * 6 + 2 * (6 * 18 + 36 + _dense(6, 24) + _dense(24, 6) + 24) + 12 + 7 * 97,
        ),
        ('convnet', 0.5, 9 * (8 + 8 * 16 + 16 * 16) + 2 * (8 + 16 + 16) + _dense(16, 10)),
    ],
)
def test_sizes_at_other_widths(name, width, expected):
    assert _count(_params(name, width=width)) == expected


@pytest.mark.parametrize('width', [0.0, -1.0, float('inf'), float('nan')])
def test_a_width_that_is_no_factor(width):
    with pytest.raises(ValueError, match=f'width={width} must be positive and finite'):
        models.build('mlp1d', num_classes=10, width=width)


# -- training


def _train(model, inputs, labels, params, steps):
    tx = optax.adam(0.01)

    def loss_of(params):
        logits = model.apply({'params': params}, inputs, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, _):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return params, losses


@pytest.mark.promotes
@pytest.mark.parametrize(
    'name',
    [
        *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ('conv1d', 'lstm', 'mlp1d')),
        pytest.param('transformer', marks=pytest.mark.exhaustive),
        'mlp256',
    ],
)
def test_replicates_side_by_side_learn_by_heart_as_each_alone(name):
    model, inputs = _build(name, width=0.5), _inputs(name)
    shape = inputs.shape if name in TEXT else inputs.shape[:1]
    labels = jax.random.randint(jax.random.key(2), shape, 0, 10)
    init = lambda key: model.init(key, inputs, train=False)['params']
    params = jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(3), 2))
    run = lambda params: _train(model, inputs, labels, params, 60)
    _, losses = jax.jit(jax.vmap(run))(params)
    assert (losses[:, 0] > 1).all() and (losses[:, -1] < 0.1).all()
    _, alone = jax.jit(run)(jax.tree.map(lambda leaf: leaf[1], params))
    np.testing.assert_allclose(losses[1, :10], alone[:10], rtol=1e-3)
    assert np.abs(losses[0, :10] - losses[1, :10]).max() > 1e-2
