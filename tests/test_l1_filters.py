"""The one-shot filter settings of Li et al. 2017, arXiv:1608.08710, table 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import patterns
from train import l1_filters, models

# Filters that stay, of each convolution pruned, by the number that the paper gives it.
KEPT = {
    'resnet56_a': dict.fromkeys((2, 4, 6, 8, 10, 12, 14, 18), 14)
    | dict.fromkeys((22, 24, 26, 28, 30, 32, 34, 36), 28)
    | dict.fromkeys((40, 42, 44, 46, 48, 50, 52), 57),
    'resnet56_b': dict.fromkeys((2, 4, 6, 8, 10, 12, 14), 6)
    | dict.fromkeys((22, 24, 26, 28, 30, 32, 36), 22)
    | dict.fromkeys((40, 42, 44, 46, 48, 50, 52), 57),
    'resnet110_a': dict.fromkeys(range(2, 36, 2), 8),
    'resnet110_b': dict.fromkeys(range(2, 36, 2), 8)
    | dict.fromkeys(range(40, 74, 2), 19)
    | dict.fromkeys(range(76, 110, 2), 44),
    'resnet34_a': dict.fromkeys((4, 6), 44)
    | dict.fromkeys((10, 12), 89)
    | dict.fromkeys((18, 20, 22, 24), 179),
    'resnet34_b': dict.fromkeys((4, 6), 32)
    | dict.fromkeys((10, 12), 51)
    | dict.fromkeys((18, 20, 22, 24), 153),
}
# Share of all parameters that goes, in %, as published.
PUBLISHED = {
    'resnet56_a': 9.4,
    'resnet56_b': 13.7,
    'resnet110_a': 2.3,
    'resnet110_b': 32.4,
    'resnet34_a': 7.6,
    'resnet34_b': 10.8,
}


MASKED = [  # the other ones take longer to compile
    name if name == 'resnet34_b' else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in KEPT
]


@functools.cache
def shapes(name):
    imagenet = name.startswith('resnet34')
    model = models.MODELS[name.split('_')[0]](num_classes=1000 if imagenet else 10)
    images = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, False))['params']


def kernel_of(params, number):
    """The first convolution of a block, by the number that the paper gives it."""
    return params[f'_Block_{number // 2 - 1}']['_ConvNorm_0']['Conv_0']['kernel']


@pytest.mark.parametrize('name', KEPT)
def test_densities_are_of_the_convolutions_that_the_paper_numbers(name):
    densities = l1_filters.densities(name)
    assert list(densities) == [
        f'_Block_{number // 2 - 1}/_ConvNorm_0/Conv_0/kernel' for number in sorted(KEPT[name])
    ]
    for density, (number, kept) in zip(densities.values(), sorted(KEPT[name].items()), strict=True):
        assert 0 <= density * kernel_of(shapes(name), number).shape[-1] - kept < 1


@pytest.mark.parametrize('name', MASKED)
def test_the_filters_of_lowest_l1_norm_go(name):
    draw, densities = np.random.default_rng(0).standard_normal, l1_filters.densities(name)
    params = jax.tree.map(lambda leaf: draw(leaf.shape, np.float32), shapes(name))
    scores = jp.scores.magnitude(params, where=lambda path, leaf: path in densities)
    choose = jax.jit(lambda x: jp.masks.leaf_top(x, densities, pattern=patterns.channels()))
    masks = choose(scores)
    assert len(jax.tree.leaves(masks)) == len(KEPT[name])
    for number, kept in KEPT[name].items():
        norms = np.abs(kernel_of(params, number).astype(np.float64)).sum((0, 1, 2))
        expected = np.zeros(norms.shape, bool)
        expected[np.argsort(-norms)[:kept]] = True
        mask = kernel_of(masks, number)
        np.testing.assert_array_equal(mask, np.broadcast_to(expected, mask.shape))


@pytest.mark.parametrize('name', KEPT)
def test_the_share_of_parameters_is_the_published_one(name):
    """With a filter go the inputs that read it and its scale and bias of batch normalisation."""
    params = shapes(name)
    total, gone = sum(leaf.size for leaf in jax.tree.leaves(params)), 0
    for number, kept in KEPT[name].items():
        block = params[f'_Block_{number // 2 - 1}']
        (*size, inputs, filters), (*_, outputs) = (
            block[f'_ConvNorm_{i}']['Conv_0']['kernel'].shape for i in range(2)
        )
        gone += (filters - kept) * (np.prod(size) * (inputs + outputs) + 2)
    assert abs(100 * gone / total - PUBLISHED[name]) < 0.15  # they round parameters to 3 digits


def test_an_unknown_setting():
    with pytest.raises(ValueError, match=r"named 'resnet20_a'; they are .*'resnet56_b'"):
        l1_filters.densities('resnet20_a')
