"""Selection as it runs in a process with one device: ties by row, replicates in turn."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_select import by_sort, random_leaves

from jaxprune import counting, masks, select

SHAPES = ((3, 1024), (1024,), (1025,), (5, 700), (0, 3), (2, 3, 341), ())


@pytest.fixture(autouse=True, scope='module')
def one_device():
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'device_count', lambda: 1)
        yield
    jax.clear_caches()


@functools.cache
def compiled(groups):
    return jax.jit(lambda leaves, keeps: select.top(leaves, keeps, groups))


@pytest.mark.parametrize('groups', [(0,) * 7, tuple(range(7)), (0, 1, 0, 1, 1, 0, 1)])
@pytest.mark.parametrize(
    'dtype', [pytest.param(jnp.float32, marks=pytest.mark.exhaustive), jnp.bfloat16]
)
@pytest.mark.parametrize('ties', [False, True])
def test_top_is_the_start_of_a_stable_sort(groups, dtype, ties):
    leaves = random_leaves(0, dtype, ties=ties, shapes=SHAPES)
    sizes = [
        sum(x.size for x, h in zip(leaves, groups, strict=True) if g == h)
        for g in range(max(groups) + 1)
    ]
    for density in (0, 0.01, 0.3, 0.5, 0.77, 0.999, 1):
        keeps = [round(density * n) for n in sizes]
        found = compiled(groups)(leaves, [counting.from_int(k) for k in keeps])
        for mask, truth in zip(found, by_sort(leaves, keeps, groups), strict=True):
            np.testing.assert_array_equal(mask, truth)


@pytest.mark.parametrize('value', [0.0, -2.5, float('inf')])
def test_equal_entries_are_taken_in_order_across_rows(value):
    leaves = [jnp.full((3, 1000), value), jnp.full((1025,), value), jnp.full((7,), value)]
    for keep in (0, 1, 1023, 1024, 1025, 2999, 3000, 3001, 4024, 4025, 4026, 4031, 4032):
        found = compiled((0, 0, 0))(leaves, [counting.from_int(keep)])
        flat = np.concatenate([mask.ravel() for mask in found])
        assert flat[:keep].all() and not flat[keep:].any()


@pytest.mark.exhaustive
def test_leaves_past_32_bits_go_by_places(monkeypatch):
    """With words of ten bits, leaves of more entries take the way by places."""
    leaves = random_leaves(1, jnp.float32, ties=True, shapes=SHAPES[:4])
    expected = masks.leaf_top(leaves, 0.3)
    monkeypatch.setattr(counting, 'LARGE', 2**10)
    jax.clear_caches()
    found = masks.leaf_top(leaves, 0.3)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    monkeypatch.undo()
    jax.clear_caches()


@pytest.mark.parametrize(
    'dtype', [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize('function', [masks.global_top, masks.leaf_top])
def test_replicates_in_turn_are_those_alone(function, dtype):
    run = jax.jit(functools.partial(function, density=0.3))
    replicates = [
        random_leaves(seed, dtype, ties=seed > 0, shapes=((3, 700), (40,))) for seed in range(6)
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *replicates)
    once = jax.jit(jax.vmap(run))(stacked)
    nested = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), stacked)
    twice = jax.jit(jax.vmap(jax.vmap(run)))(nested)
    for i, leaves in enumerate(replicates):
        for a, b, c in zip(run(leaves), once, twice, strict=True):
            np.testing.assert_array_equal(b[i], a)
            np.testing.assert_array_equal(c[i // 3, i % 3], a)


@pytest.mark.exhaustive
def test_replicates_of_one_tree_with_their_own_densities():
    leaves = random_leaves(0, jnp.float32, ties=True, shapes=((3, 700), (40,)))
    densities = jnp.array([0.1, 0.5, 0.9], jnp.float32)
    found = jax.vmap(lambda d: masks.global_top(leaves, d))(densities)
    for i, density in enumerate(densities):
        alone = masks.global_top(leaves, density)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a, b[i]), alone, found)


def test_gradients_pass_by():
    """Masks have none, and the loop over replicates would refuse them."""

    def loss(w):
        return (masks.apply([w], masks.global_top([jnp.abs(w)], 0.5))[0] ** 2).sum()

    w = jnp.array([[1.0, -2.0], [3.0, 0.5]])
    np.testing.assert_array_equal(jax.grad(loss)(w), [[0, -4], [6, 0]])
    two = jax.vmap(jax.grad(loss))(jnp.stack([w, -w]))
    np.testing.assert_array_equal(two[1], [[0, 4], [-6, 0]])


def test_no_copy_of_the_scores_is_held():
    for dtype in (jnp.float32, jnp.bfloat16):
        leaves = [jax.ShapeDtypeStruct(s, dtype) for s in ((500, 1000), (3, 3, 200, 300))]
        for groups in ((0, 0), (0, 1)):
            run = jax.jit(functools.partial(select.top, groups=groups))
            program = run.lower(leaves, [counting.from_int(1)] * (max(groups) + 1)).compile()
            assert program.memory_analysis().temp_size_in_bytes < 0.1 * 1_040_000
            assert not re.search(r' sort\(', program.as_text())
