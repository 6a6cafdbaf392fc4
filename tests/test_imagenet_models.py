"""The networks of the paper: their sizes, which tensors are prunable, and those for ImageNet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import tree
from train import models
from train.models import resnet_imagenet

# Published, for 1000 classes, with scales and biases of batch normalisation. For CIFAR: 269,722,
# 853,018 and 1,727,962 with shortcuts that pad, and 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64 = 2,752
# for the two that project.
SIZES = {
    'resnet20': 272_474,
    'resnet34': 21_797_672,
    'resnet50': 25_557_032,
    'resnet56': 855_770,
    'resnet110': 1_730_714,
}
PRUNABLE = {'resnet20': 22, 'resnet34': 37, 'resnet50': 54, 'resnet56': 58, 'resnet110': 112}
IMAGENET = ('resnet34', 'resnet50')
THIN = 1 / 16


@functools.cache
def shapes(name, dtype=jnp.float32):
    """Model and variables, without computing them."""
    imagenet = name in IMAGENET
    model = models.MODELS[name](num_classes=1000 if imagenet else 10, dtype=dtype)
    side = 224 if imagenet else 32
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    return model, jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), images), images


@functools.cache
def thin(name):
    """A narrow network with everything in it drawn at random, scales and variances positive."""
    model = models.MODELS[name](num_classes=3, width=THIN)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), images)
    rng = np.random.default_rng(0)

    def draw(leaf):
        if leaf.ndim == 1:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        deviation = np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(rng.normal(0, deviation, leaf.shape), jnp.float32)

    return model, jax.tree.map(draw, variables), images


def convolutions(name, dtype=jnp.float32):
    """Kernel, strides, output and dtype of each."""
    model, variables, images = shapes(name, dtype)
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, False))(variables, images)
    return [
        (
            eqn.invars[1].aval.shape,
            eqn.params['window_strides'],
            eqn.outvars[0].aval.shape,
            eqn.outvars[0].aval.dtype,
        )
        for eqn in jaxpr.eqns
        if eqn.primitive.name == 'conv_general_dilated'
    ]


# -- sizes and prunable tensors


@pytest.mark.parametrize('name', SIZES)
def test_parameters_are_as_many_as_published(name):
    _, variables, _ = shapes(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == SIZES[name]


def expected_kernels(name):
    """Every convolution, from the first on, the shortcuts that project, and the linear layer."""
    imagenet = name in IMAGENET
    stages = (3, 4, 6, 3) if imagenet else (((int(name[6:]) - 2) // 6),) * 3
    size, inputs = (7, 64) if imagenet else (3, 16)
    expected = {'_ConvNorm_0': (size, size, 3, inputs)}
    block, channels = 0, inputs
    for stage, blocks in enumerate(stages):
        narrow = inputs * 2**stage
        for _ in range(blocks):
            if name == 'resnet50':
                here = f'_Bottleneck_{block}'
                kernels = [(1, 1, channels, narrow), (3, 3, narrow, narrow)]
                kernels.append((1, 1, narrow, 4 * narrow))
            else:
                here = f'_Block_{block}'
                kernels = [(3, 3, channels, narrow), (3, 3, narrow, narrow)]
            expected |= {f'{here}/_ConvNorm_{i}': shape for i, shape in enumerate(kernels)}
            if channels != kernels[-1][-1]:
                expected[f'{here}/shortcut'] = (1, 1, channels, kernels[-1][-1])
            block, channels = block + 1, kernels[-1][-1]
    expected = {f'{path}/Conv_0/kernel': shape for path, shape in expected.items()}
    return expected | {'Dense_0/kernel': (channels, 1000 if imagenet else 10)}


@pytest.mark.parametrize('name', SIZES)
def test_prunable_are_all_convolutions_and_the_linear_layer(name):
    _, variables, _ = shapes(name)
    leaves = tree.named_leaves(variables['params'])
    found = {path: leaf.shape for path, leaf in leaves if tree.prunable(path, leaf)}
    assert found == expected_kernels(name)
    assert len(found) == PRUNABLE[name]


# -- the networks for ImageNet


def convolve(x, kernel, stride):
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


def normalise(x, params, stats):
    scaled = (x - stats['mean'].reshape(1, 1, 1, -1)) / jnp.sqrt(
        stats['var'].reshape(1, 1, 1, -1) + 1e-5
    )
    return scaled * params['scale'].reshape(1, 1, 1, -1) + params['bias'].reshape(1, 1, 1, -1)


def reference(variables, x, bottleneck):
    """The network again, written out."""

    def conv_norm(x, path, stride):
        params, stats = variables['params'], variables['batch_stats']
        for key in path:
            params, stats = params[key], stats[key]
        x = convolve(x, params['Conv_0']['kernel'], stride)
        return normalise(x, params['BatchNorm_0'], stats['BatchNorm_0'])

    x = jax.nn.relu(conv_norm(x, ['_ConvNorm_0'], 2))
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-jnp.inf)
    rows, columns = (x.shape[i] // 2 for i in (1, 2))
    corners = [
        padded[:, i:, j:][:, ::2, ::2][:, :rows, :columns] for i in range(3) for j in range(3)
    ]
    x = jnp.stack(corners).max(0)
    block = 0
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for place in range(blocks):
            here = f'_Bottleneck_{block}' if bottleneck else f'_Block_{block}'
            stride = 2 if stage and not place else 1
            strides = (1, stride, 1) if bottleneck else (stride, 1)
            y = x
            for i, s in enumerate(strides):
                y = conv_norm(y, [here, f'_ConvNorm_{i}'], s)
                y = y if i == len(strides) - 1 else jax.nn.relu(y)
            if 'shortcut' in variables['params'][here]:
                x = conv_norm(x, [here, 'shortcut'], stride)
            x, block = jax.nn.relu(x + y), block + 1
    dense = variables['params']['Dense_0']
    return x.mean((1, 2)) @ dense['kernel'] + dense['bias'].reshape(1, -1)


@pytest.mark.slow
@pytest.mark.parametrize('name', IMAGENET)
def test_logits_are_those_of_the_network_written_out(name):
    model, variables, images = thin(name)
    logits = jax.jit(model.apply, static_argnums=2)(variables, images, False)
    expected = jax.jit(reference, static_argnums=2)(variables, images, name == 'resnet50')
    assert logits.shape == (2, 3) and jnp.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', IMAGENET)
def test_strides_are_in_the_convolutions_of_three_by_three(name):
    strided = [kernel[0] for kernel, strides, *_ in convolutions(name) if strides == (2, 2)]
    assert sorted(strided) == [1, 1, 1, 3, 3, 3, 7]  # those of one by one are shortcuts
    _, _, output, _ = convolutions(name)[-1]
    assert output == (2, 7, 7, 2048 if name == 'resnet50' else 512)


@pytest.mark.parametrize('name', IMAGENET)
def test_in_bfloat16_variables_and_logits_stay_float32(name):
    model, variables, images = shapes(name, jnp.bfloat16)
    assert {dtype for *_, dtype in convolutions(name, jnp.bfloat16)} == {jnp.dtype('bfloat16')}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    logits, updates = jax.eval_shape(
        lambda v, x: model.apply(v, x, True, mutable=['batch_stats']), variables, images
    )
    assert logits.shape == (2, 1000) and logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('block', [resnet_imagenet._Block, resnet_imagenet._Bottleneck])
def test_blocks_begin_as_their_shortcuts(block):
    channels = 2 if block is resnet_imagenet._Bottleneck else 8
    module = block(channels, 1, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    y, variables = module.init_with_output(jax.random.key(1), x, True)
    np.testing.assert_array_equal(y, jax.nn.relu(x))
    named = tree.named_leaves(variables['params'])
    scales = [bool(scale.all()) for path, scale in named if path.endswith('scale')]
    assert scales == [True] * (len(scales) - 1) + [False]  # the last one alone


def test_batch_statistics_decay_by_nine_tenths():
    module = resnet_imagenet._ConvNorm(5, 7, 2)
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    variables = module.init(jax.random.key(1), images, False)
    _, updates = module.apply(variables, images, True, mutable=['batch_stats'])
    x = convolve(images, variables['params']['Conv_0']['kernel'], 2)
    stats = updates['batch_stats']['BatchNorm_0']
    np.testing.assert_allclose(stats['mean'], 0.1 * x.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-4)


def test_width_multiplies_every_hidden_width():
    _, variables, _ = thin('resnet50')
    kernels = {
        path: leaf.shape for path, leaf in tree.named_leaves(variables['params']) if leaf.ndim > 1
    }
    assert kernels.pop('_ConvNorm_0/Conv_0/kernel') == (7, 7, 3, 4)
    assert kernels.pop('Dense_0/kernel') == (128, 3)
    full = expected_kernels('resnet50')
    for path, (*size, inputs, outputs) in kernels.items():
        assert full[path] == (*size, inputs * 16, outputs * 16)
    tiny = models.MODELS['resnet34'](num_classes=3, width=1e-3)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: tiny.init(jax.random.key(0), x, False), images)
    assert variables['params']['Dense_0']['kernel'].shape == (1, 3)


def test_depths_that_are_not_of_the_paper():
    with pytest.raises(ValueError, match='depth=18 must be 34 or 50'):
        models.imagenet_resnet(18)
