"""Selection over several devices: the same masks, and counts alone are exchanged."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_select import check, rest

from jaxprune import counting, select

SPECS = [
    PartitionSpec('x'),
    PartitionSpec(None, 'y'),
    PartitionSpec('y', 'x'),
    PartitionSpec(('x', 'y')),
    PartitionSpec(None, ('y', 'x')),
    PartitionSpec(),
]


def three_leaves(ties=False):
    """Leaves that eight devices share, and a mesh of these."""
    rng = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape).astype(np.float32))
    leaves = [draw(shape) for shape in [(16, 32), (64, 8), (8, 8)]]
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('x', 'y'))
    return [jnp.round(x) if ties else x for x in leaves], mesh


def program_of(leaves, mesh, spec, groups):
    keeps = [counting.from_int(9)] * (max(groups) + 1)
    run = jax.jit(functools.partial(select.top, groups=groups))
    sharded = jax.device_put(leaves, NamedSharding(mesh, spec))
    return run.lower(sharded, keeps).compile().as_text()


@pytest.mark.parametrize('spec', [SPECS[0], *map(rest, SPECS[1:])], ids=str)
@pytest.mark.parametrize('groups', [(0, 0, 0), (0, 1, 2)])
def test_sharded_equals_single_device_and_moves_counts_only(spec, groups):
    for ties in (False, True):
        leaves, mesh = three_leaves(ties)
        keeps = [counting.from_int(n) for n in ((333,) if max(groups) == 0 else (111, 500, 7))]
        alone = select.top(leaves, keeps, groups)
        sharding = NamedSharding(mesh, spec)
        masks = select.top(jax.device_put(leaves, sharding), keeps, groups)
        for a, b in zip(alone, masks, strict=True):
            assert b.sharding.is_equivalent_to(sharding, 2)
            np.testing.assert_array_equal(a, b)
    text = program_of(leaves, mesh, spec, groups)
    assert not re.search(r'all-to-all|collective-permute', text)
    moved = re.findall(r'= (.*) (?:all-reduce|all-gather)(?:-start)?\(', text)
    assert (len(moved) > 0) == (spec != PartitionSpec())
    assert all(entries(shape) <= 8 for shape in moved)  # a count from each device


@pytest.mark.usefixtures('counts_as_accelerators')
@pytest.mark.parametrize('spec', [SPECS[0], *map(rest, SPECS[1:])], ids=str)
@pytest.mark.parametrize('groups', [(0, 0, 0), rest((0, 1, 2))], ids=str)
def test_accelerators_all_reduce_counts_and_gather_nothing(spec, groups):
    leaves, mesh = three_leaves()
    text = program_of(leaves, mesh, spec, groups)
    assert not re.search(r'all-gather|all-to-all|collective-permute', text)
    moved = re.findall(r'= (.*) all-reduce(?:-start)?\(', text)
    assert (len(moved) > 0) == (spec != PartitionSpec())
    assert all(entries(shape) <= 3 * 7 * len(leaves) for shape in moved)
    keeps = [333] if max(groups) == 0 else [111, 500, 7]
    for ties in (False, True):
        leaves, _ = three_leaves(ties)
        check(jax.device_put(leaves, NamedSharding(mesh, spec)), keeps, groups)


def entries(shape):
    """The number of entries in an HLO shape such as `(u32[7]{0}, u32[])`."""
    sizes = [[int(n) for n in dims.split(',') if n] for dims in re.findall(r'\[([\d,]*)\]', shape)]
    return sum(int(np.prod(dims)) for dims in sizes)


@pytest.mark.exhaustive
def test_vmap_over_sharded_replicates():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('x', 'y'))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 16)).astype(np.float32))
    keep = jax.vmap(lambda d: counting.share(d, 128))(jnp.array([0.0, 0.25, 0.5, 1.0]))
    run = jax.vmap(lambda x, k: select.top([x], [k], (0,))[0])
    for spec in (PartitionSpec('x', 'y'), PartitionSpec('y', None, 'x'), PartitionSpec('x')):
        sharded = jax.device_put(x, NamedSharding(mesh, spec))
        np.testing.assert_array_equal(run(x, keep), jax.jit(run)(sharded, keep))


def test_inside_shard_map_and_pmap_each_device_selects_its_own():
    mesh = Mesh(np.array(jax.devices()), ('d',))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 5, 9)).astype(np.float32))
    own = lambda x: select.top([x], [11], (0,))[0]
    expected = jax.vmap(own)(x)
    np.testing.assert_array_equal(jax.pmap(own)(x), expected)
    split = PartitionSpec('d')
    mapped = jax.shard_map(lambda x: own(x[0])[None], mesh=mesh, in_specs=split, out_specs=split)
    np.testing.assert_array_equal(jax.jit(mapped)(x), expected)
