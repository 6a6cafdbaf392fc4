"""The rewritten program and the module at its own widths agree; so do models of the trainer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from structured_cases import drawn
from test_structured_oracle import difference, hold_gradient, keeps

from jaxprune import structured
from train import models

pytestmark = pytest.mark.promotes

SMALL = {
    'lenet300': {},
    'conv1d': {},
    'convnet': {},
    'decoder': {'width': 0.5},
    'lstm': {'width': 0.1},
    'mlp1d': {},
    'mobilenet_v2': {'width': 0.1},
    'resnet20': {'width': 0.5},
    'resnet50': {'width': 0.06},
    'transformer': {'width': 0.25},
    'vit_tiny': {'width': 0.5},
}
"""Models of the trainer, and how they are made small."""
TOKENS = ('decoder', 'lstm', 'transformer')
NATIVE = ('lenet300', 'convnet', 'lstm', 'mlp1d', 'mobilenet_v2', 'resnet20')
MEANS = {'decoder': 'Embed_0/embedding', 'vit_tiny': 'patches/kernel'}
"""Of those that normalise over the width of the residual stream, what it is first cut in."""


def inputs(name):
    if name in TOKENS:
        return jnp.arange(10).reshape(2, 5) % 7
    shapes = {'conv1d': (3, 40, 1), 'mlp1d': (3, 40, 1), 'mobilenet_v2': (8, 64, 64, 3)} | {
        'resnet50': (8, 64, 64, 3)
    }
    shape = shapes.get(name, (4, 8, 8, 3))
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


@functools.cache
def made(name):
    model, x = models.build(name, num_classes=7, **SMALL[name]), inputs(name)
    init = lambda x: model.init(jax.random.key(0), x, train=False)
    variables = drawn(jax.eval_shape(init, x))
    scale = lambda w: w / np.sqrt(np.prod(w.shape[:-1])) if w.ndim > 1 else w
    variables = jax.tree.map(scale, variables)
    fn = lambda variables, x: model.apply(variables, x, train=False)
    return model, variables, x, fn, structured.groups(fn, variables, x)


DEEP = ('mobilenet_v2', 'resnet50')


@pytest.mark.parametrize('name', [name for name in SMALL if name not in DEEP])
def test_removed_is_as_zeroed(name):
    model, variables, x, _, groups = made(name)
    hold(model, variables, x, groups)


@pytest.mark.exhaustive
@pytest.mark.parametrize('name', DEEP)
def test_removed_is_as_zeroed_in_deep_networks(name):
    """In float64: batch norms over few positions amplify the rounding of float32 past 1e-5."""
    model, variables, x, _, groups = made(name)
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
        hold(model.clone(dtype=jnp.float64), wide(variables), wide(x), groups)


def hold(model, variables, x, groups):
    """Asserts that units removed are as units zeroed, in evaluation and in training."""
    assert not groups.barriers and not groups.unused
    _, keep = keeps(groups)
    small = structured.narrow(variables, groups, keep)
    whole = {'params': variables, 'small': small, 'args': (x,), 'keep': keep}
    moving = [name for name in variables if name != 'params']
    evaluate = lambda variables, x: model.apply(variables, x, train=False)
    train = lambda variables, x: model.apply(variables, x, train=True, mutable=moving)
    for fn in (evaluate, train) if moving else (evaluate,):
        hold_gradient(fn, structured.rewritten(fn, groups, keep), groups, **whole)


@pytest.mark.parametrize('name', [*NATIVE, *MEANS])
def test_the_module_agrees(name):
    model, variables, x, _, groups = made(name)
    _, keep = keeps(groups)
    if name in MEANS:  # the library's attention divides by the root of the features of a head
        whole = f'params/{MEANS[name]}'
        keep = {at: m for at, m in keep.items() if at[:-2] != whole and at[-2:] != ':2'}
        keep = {at: m for at, m in keep.items() if not (name == 'decoder' and m.size == 4)}
    small, smaller = structured.shrink(variables, groups, keep)
    native = structured.resized(model)
    logits = jax.jit(lambda small, x: native(small, x, train=False))(small, x)
    assert difference(jax.jit(smaller)(small, x), logits) < 1e-5


def test_means_differ_by_nature():
    """A mean over channels: the program divides by their old number, the module by the new."""
    model, variables, x, _, groups = made('vit_tiny')
    name = 'params/patches/kernel:3'
    keep = {name: np.arange(groups.named(name).size) % 2 == 0}
    small, smaller = structured.shrink(variables, groups, keep)
    assert difference(smaller(small, x), structured.resized(model)(small, x, train=False)) > 1e-2


def test_a_module_of_fixed_widths_refuses():
    model, variables, x, _, groups = made('transformer')
    keep = {groups.groups[0].name: np.arange(groups.groups[0].size) > 1}
    small, _ = structured.shrink(variables, groups, keep)
    with pytest.raises(ValueError, match='Transformer makes a parameter at a width of its own'):
        structured.resized(model)(small, x, train=False)


def test_the_decoder_sees_the_past_only():
    _, variables, x, fn, _ = made('decoder')
    logits = jax.jit(fn)
    changed = logits(variables, x.at[:, 3].set(6)) - logits(variables, x)
    assert (np.asarray(changed[:, :3]) == 0).all() and (np.abs(changed[:, 3:]) > 0).any()


def test_rotary_positions_are_relative():
    """Two equal tokens in a row: their order changes nothing but through the mask."""
    _, variables, _, fn, _ = made('decoder')
    one, two = (jax.jit(fn)(variables, jnp.full((1, length), 3)) for length in (1, 2))
    np.testing.assert_allclose(one[:, 0], two[:, 1], rtol=1e-5)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.deep = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.dense = nnx.Linear(8, 6, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(2, 6, 8, decode=False, rngs=rngs)
        self.last = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.deep(jax.nn.relu(self.norm(self.conv(x)))))
        x = self.dense(x.reshape(len(x), -1, x.shape[-1]))
        return self.last(self.attend(x)).mean(1)


def test_nnx_modules_are_rebuilt():
    module, x = Net(nnx.Rngs(0)), inputs('convnet')[:, :4, :4]
    definition, state = nnx.split(module)
    fn = lambda state, x: nnx.merge(definition, state)(x)
    groups = structured.groups(fn, state, x)
    _, keep = keeps(groups)
    keep = {name: mask for name, mask in keep.items() if not name.startswith('attend')}
    small, smaller = structured.shrink(state, groups, keep)
    new = structured.rebuilt(module, small)
    assert difference(smaller(small, x), new(x)) < 1e-5
    assert (new.conv.out_features, new.norm.num_features, new.deep.feature_group_count) == (6, 6, 6)
    assert (new.deep.in_features, new.dense.in_features, new.dense.out_features) == (6, 6, 4)
    assert new.attend.in_features == 4 and module.conv.out_features == 8


class Grouped(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.last = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(self.norm(self.first(x)))


@pytest.mark.parametrize('features', [6, 5])
def test_normalised_groups_stay_as_many(features):
    module = Grouped(nnx.Rngs(0))
    state = jax.tree.map(
        lambda w: w[tuple(slice(features if n == 8 else n) for n in w.shape)], nnx.split(module)[1]
    )
    if features % 2:
        with pytest.raises(ValueError, match='8 channels in 2 groups cannot be rebuilt with 5'):
            structured.rebuilt(module, state)
    else:
        new = structured.rebuilt(module, state)
        assert (new.norm.num_groups, new.norm.group_size) == (2, 3)
        assert np.isfinite(new(jnp.ones((2, 3)))).all()
