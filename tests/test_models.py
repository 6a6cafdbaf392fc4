import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import tree
from train import models

TEXT = ('decoder', 'lstm', 'transformer')
PROMOTING = (*TEXT, 'vit_b16', 'vit_tiny')  # by flax's LSTM, JAX's attention
INPUTS = {
    **dict.fromkeys(TEXT, (2, 8)),
    **dict.fromkeys(('conv1d', 'mlp1d', 'mlp256'), (2, 40, 1)),
    'lenet300': (2, 28, 28, 1),
    'convnet': (2, 8, 8, 1),
}
CONVNET = models.build('convnet', num_classes=10)
RESNET8 = models.resnet(8)(num_classes=10)


def _shape(name):
    return INPUTS.get(name, (2, 32, 32, 3))


def _variables(model, shape):
    """Shapes and dtypes of the variables, without computing them."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


@functools.cache
def _init(model):
    init = jax.jit(lambda key, x: model.init(key, x, train=False))
    return init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def _count(leaves):
    return sum(leaf.size for leaf in jax.tree.leaves(leaves))


def _resnet_size(depth, num_classes=10):
    """Weights by the layers: kernels, batch norm's scale and bias, the dense layer."""
    n = (depth - 2) // 6
    count = 9 * 3 * 16 + 2 * 16
    inputs = 16
    for width in (16, 32, 64):
        count += 9 * inputs * width + (2 * n - 1) * 9 * width**2 + 2 * n * 2 * width
        if inputs != width:
            count += inputs * width + 2 * width
        inputs = width
    return count + 64 * num_classes + num_classes


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[pytest.mark.promotes] if name in PROMOTING else [])
        for name in sorted(models.MODELS)
    ],
)
def test_logits_and_variables_are_float32(name, train, dtype):
    model, shape = models.build(name, num_classes=7, dtype=dtype), _shape(name)
    variables = _variables(model, shape)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    logits, updates = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=train, mutable=['batch_stats']), variables, images
    )
    assert logits.shape == ((2, 8, 7) if name in TEXT else (2, 7))
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    normalised = name.startswith(('convnet', 'mobilenet', 'resnet'))
    assert set(variables) == ({'params', 'batch_stats'} if normalised else {'params'})
    assert jax.tree.structure(updates) == jax.tree.structure(
        {key: value for key, value in variables.items() if key == 'batch_stats'}
    )


@pytest.mark.parametrize('name', ['conv1d', 'lenet300', 'convnet', 'mlp1d', 'resnet20'])
def test_the_dtype_is_that_of_the_computation(name):
    model, shape = models.build(name, num_classes=10, dtype=jnp.bfloat16), _shape(name)
    variables, images = _variables(model, shape), jax.ShapeDtypeStruct(shape, jnp.float32)
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)
    products = [
        eqn.invars[0].aval.dtype
        for eqn in jaxpr.eqns
        if eqn.primitive.name in ('dot_general', 'conv_general_dilated')
    ]
    kernels = [leaf for leaf in jax.tree.leaves(variables['params']) if leaf.ndim > 1]
    assert len(products) == len(kernels) and set(products) == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ('name', 'params', 'prunable'),
    [
        ('lenet300', 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10, 3),
        ('convnet', 9 * (16 + 16 * 32 + 32 * 32) + 2 * (16 + 32 + 32) + 32 * 10 + 10, 4),
        ('resnet20', _resnet_size(20), 19 + 2 + 1),
        ('resnet56', _resnet_size(56), 55 + 2 + 1),
        ('resnet110', _resnet_size(110), 109 + 2 + 1),
    ],
)
def test_parameters_and_prunable_kernels(name, params, prunable):
    variables = _variables(models.build(name, num_classes=10), _shape(name))
    assert _count(variables['params']) == params
    kernels = tree.map_prunable(lambda path, leaf: path, variables['params'])
    paths = jax.tree.leaves(kernels)
    assert len(paths) == prunable and all(path.endswith('kernel') for path in paths)


def test_published_sizes():
    assert _count(_variables(models.build('lenet300', num_classes=10), (1, 28, 28, 1))) == 266_610
    millions = [_resnet_size(depth) / 1e6 for depth in (20, 56, 110)]
    assert [round(size, 2) for size in millions] == [0.27, 0.86, 1.73]  # published 0.27 0.85 1.7


def test_resnet_starts_with_he_normal_kernels():
    params = _init(RESNET8)['params']
    large = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4 and leaf.size > 9000]
    assert len(large) == 3
    for leaf in large:
        inputs = np.prod(leaf.shape[:-1])
        np.testing.assert_allclose(leaf.std(), np.sqrt(2 / inputs), rtol=0.05)


@pytest.mark.parametrize('model', [CONVNET, RESNET8], ids=['convnet', 'resnet8'])
def test_batch_statistics_move_in_training_only(model):
    @functools.partial(jax.jit, static_argnames='train')
    def apply(variables, images, train):
        return model.apply(variables, images, train=train, mutable=['batch_stats'])

    variables = _init(model)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1)) + 1
    logits, evaluated = apply(variables, images, train=False)
    other_logits, trained = apply(variables, images, train=True)
    jax.tree.map(np.testing.assert_array_equal, evaluated['batch_stats'], variables['batch_stats'])
    moved = jax.tree.map(lambda x, y: (x != y).any(), trained, evaluated)
    assert all(jax.tree.leaves(moved))
    assert jnp.abs(logits - other_logits).max() > 1e-3

    alone, _ = apply(variables, images.at[1:].set(0), train=False)
    np.testing.assert_allclose(alone[0], logits[0], atol=1e-5)


def test_the_convnet_learns_32_random_examples_by_heart():
    model = CONVNET
    images = jax.random.normal(jax.random.key(1), (32, 8, 8, 1))
    labels = jax.random.randint(jax.random.key(2), (32,), 0, 10)
    tx = optax.sgd(0.1, momentum=0.9)

    def loss_of(params, stats):
        logits, updates = model.apply(
            {'params': params, 'batch_stats': stats}, images, train=True, mutable=['batch_stats']
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updates['batch_stats']

    def step(carry, _):
        params, stats, opt_state = carry
        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params, stats)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state), loss

    variables = _init(model)
    params, stats = variables['params'], variables['batch_stats']
    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=60))(
        (params, stats, tx.init(params))
    )
    assert losses[0] > 1 and losses[-1] < 0.05


def test_an_unknown_name_lists_the_names():
    with pytest.raises(
        ValueError, match=r"no model is named 'resnet18'; .*'convnet', 'decoder', 'lenet300'"
    ):
        models.build('resnet18', num_classes=10)


@pytest.mark.parametrize('depth', [2, 18, 21])
def test_a_depth_that_is_not_six_n_plus_two(depth):
    with pytest.raises(ValueError, match=f'depth={depth} must be 6 n'):
        models.resnet(depth)
