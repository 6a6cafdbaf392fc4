"""Removal against zeroing: the smaller network computes what the zeroed one did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structured_cases import NETWORKS, case

from jaxprune import structured, tree

pytestmark = pytest.mark.promotes


def zeroed(params, groups, keep):
    """Sets what `keep` removes to zero, by the slow definition: position by position."""
    cuts = {path: [] for path, _ in tree.present(params)}
    for group in groups.groups:
        stays = np.asarray(keep.get(group.name, np.ones(group.size, bool)))
        for cut in group.slices:
            gone = [i for i, unit in enumerate(cut.units) if unit >= 0 and not stays[unit]]
            cuts[cut.path].append((cut.axis, gone))

    def visit(path, leaf):
        leaf = np.array(leaf)
        for axis, gone in cuts[tree.path_name(path)]:
            leaf[(slice(None),) * axis + (gone,)] = 0
        return jnp.asarray(leaf)

    return jax.tree_util.tree_map_with_path(visit, params)


def difference(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max() / np.abs(a).max()


def keeps(groups, seed=0):
    """Makes keep sets: a third of each group gone alone, and then of all of them at once."""
    rng = np.random.default_rng(seed)
    exact = [group for group in groups.groups if not group.inexact]
    of = lambda group: rng.permutation(group.size) >= max(1, group.size // 3)
    return [{group.name: of(group)} for group in exact], {group.name: of(group) for group in exact}


def output(fn, params, args):
    return jax.tree.leaves(fn(params, *args))[0]


def hold_gradient(fn, smaller, groups, *, params, small, args, keep):
    """Asserts that outputs and gradients are those of the zeroed network."""
    before = zeroed(params, groups, keep)
    wanted = output(fn, before, args)
    assert difference(wanted, output(smaller, small, args)) < 1e-5
    direction = jnp.asarray(np.random.default_rng(5).normal(size=wanted.shape), wanted.dtype)
    grad = lambda fn: jax.jit(jax.grad(lambda params: (output(fn, params, args) * direction).sum()))
    slopes = dict(tree.present(structured.narrow(grad(fn)(before), groups, keep)))
    own = dict(tree.present(grad(smaller)(small)))
    largest = max(np.abs(slope).max() for slope in slopes.values())
    for path, slope in slopes.items():
        assert np.abs(slope - own[path]).max() < 1e-5 * largest, path


@pytest.mark.parametrize('name', NETWORKS)
def test_removed_is_as_zeroed(name):
    fn, params, args, train = case(name)
    groups = structured.groups(fn, params, *args)
    assert not groups.barriers and not groups.unused
    _, together = keeps(groups)
    small, smaller = structured.shrink(params, groups, together)
    whole = {'params': params, 'small': small, 'args': args, 'keep': together}
    hold_gradient(fn, smaller, groups, **whole)
    smaller = structured.rewritten(train, groups, together)
    hold_gradient(train, smaller, groups, **whole)


IN_CI = ('fused_attention', 'residual', 'stacked')


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=pytest.mark.slow if name in IN_CI else pytest.mark.exhaustive)
        for name in NETWORKS
    ],
)
def test_each_group_alone_is_removed_as_zeroed(name):
    fn, params, args, _ = case(name)
    groups = structured.groups(fn, params, *args)
    whole = jax.jit(fn)
    for keep in keeps(groups)[0]:
        small, smaller = structured.shrink(params, groups, keep)
        wanted = whole(zeroed(params, groups, keep), *args)
        assert difference(wanted, jax.jit(smaller)(small, *args)) < 1e-5
