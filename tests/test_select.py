"""Tests of the exact selection: against a stable sort, by hand, batched, sharded."""

import fractions
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprune import counting, select

SHAPES = ((7,), (3, 4), (), (0, 5), (2, 3, 5), (40, 30))
MIXED = (jnp.float32, jnp.bfloat16, jnp.float16)


def rest(value):
    return pytest.param(value, marks=pytest.mark.exhaustive)


def by_sort(leaves, keeps, groups):
    """Slow truth: a stable sort of each group's leaves, end to end."""
    masks = [np.zeros(leaf.shape, bool) for leaf in leaves]
    for g, keep in enumerate(keeps):
        mine = [i for i, h in enumerate(groups) if h == g]
        entries = [
            (-value, i, j)
            for i in mine
            for j, value in enumerate(np.asarray(leaves[i]).astype(np.float64).ravel() + 0.0)
        ]
        for _, i, j in sorted(entries)[:keep]:
            masks[i].reshape(-1)[j] = True
    return masks


def top(leaves, keeps, groups):
    return select.top(leaves, keeps, groups)


def check(leaves, keeps, groups):
    masks, expected = top(leaves, keeps, groups), by_sort(leaves, keeps, groups)
    for mask, truth in zip(masks, expected, strict=True):
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, truth)


def random_leaves(seed, dtype, *, ties=False, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    leaves = []
    for i, shape in enumerate(shapes):
        x = rng.standard_normal(shape).astype(np.float32)
        x = np.round(x) if ties else x
        leaves.append(jnp.asarray(x).astype(dtype or MIXED[i % 3]))
    return leaves


def test_top_by_hand():
    leaves = [jnp.array([[3.0, -1.0], [2.0, 2.0]]), jnp.array([2.0, 5.0, 0.5])]
    whole = [m.tolist() for m in top(leaves, [3], (0, 0))]
    assert whole == [[[True, False], [True, False]], [False, True, False]]
    each = [m.tolist() for m in top(leaves, [3, 1], (0, 1))]
    assert each == [[[True, False], [True, True]], [False, True, False]]
    swapped = [m.tolist() for m in top(leaves, [1, 3], (1, 0))]
    assert swapped == [[[True, False], [True, True]], [False, True, False]]


@pytest.mark.parametrize('dtype', [*map(rest, MIXED), None])
@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('groups', [(0,) * 6, tuple(range(6)), (0, 1, 0, 1, 1, 0)])
def test_top_is_the_start_of_a_stable_sort(dtype, ties, groups):
    for seed in range(3):
        leaves = random_leaves(seed, dtype, ties=ties)
        for density in (0, 0.1, 0.5, 0.9, 1):
            sizes = [0] * (max(groups) + 1)
            for leaf, g in zip(leaves, groups, strict=True):
                sizes[g] += leaf.size
            check(leaves, [round(density * n) for n in sizes], groups)


@pytest.mark.parametrize('value', [0.0, -0.0, 1.0, -2.5, float('inf'), float('-inf')])
def test_equal_entries_are_taken_in_order(value):
    leaves = [jnp.full((5, 7), value), jnp.full((3,), value), jnp.full((4, 9), value)]
    for keep in (0, 1, 34, 35, 36, 38, 39, 73, 74):
        masks = top(leaves, [keep], (0, 0, 0))
        flat = np.concatenate([m.ravel() for m in masks])
        assert flat[:keep].all() and not flat[keep:].any()


def by_weight(leaves, keeps, groups, sizes):
    """Slow truth for entries of several weights: score by score from the highest."""
    masks = [np.zeros(leaf.shape, bool) for leaf in leaves]
    values = [np.asarray(leaf).astype(np.float64).ravel() + 0.0 for leaf in leaves]
    for g, keep in enumerate(keeps):
        room = keep
        mine = [i for i, h in enumerate(groups) if h == g]
        for score in sorted({v for i in mine for v in values[i]}, reverse=True):
            tied = {i: [j for j, v in enumerate(values[i]) if v == score] for i in mine}
            fits = sum(len(js) * sizes[i] for i, js in tied.items()) <= room
            for i, js in tied.items():
                marked = js if fits else js[: room // sizes[i]]
                masks[i].reshape(-1)[marked] = True
                room -= len(marked) * sizes[i]
            if not fits:
                break
    return masks


def weights(leaves, groups, sizes):
    """The number of weights in each group."""
    totals = [0] * (max(groups) + 1)
    for leaf, g, size in zip(leaves, groups, sizes, strict=True):
        totals[g] += leaf.size * size
    return totals


WEIGHTS = [
    (1,) * 6,
    (4,) * 6,
    (1, 2, 3, 4, 5, 6),
    (9, 1, 100, 7, 64, 2),
    (2**17 + 3, 5, 1, 2**20, 70_000, 2**16),
    (2**33, 2**33, 2**34, 1, 2**35, 2**33),
    (2**33 + 1, 3, 2**40 + 7, 1, 2**45 + 2**31, 2**32 - 1),
]


@pytest.mark.parametrize('sizes', WEIGHTS, ids=str)
@pytest.mark.parametrize('ties', [rest(False), True])
@pytest.mark.parametrize('groups', [rest((0,) * 6), rest(tuple(range(6))), (0, 1, 0, 1, 1, 0)])
def test_entries_of_several_weights_against_loops(sizes, ties, groups):
    rng = np.random.default_rng(0)
    for seed in range(2):
        leaves = random_leaves(seed, None, ties=ties)
        totals = weights(leaves, groups, sizes)
        shares = [0, 1, *rng.random(6)]
        for keeps in ([min(n, int(share * n)) for n in totals] for share in shares):
            masks = select.top(leaves, keeps, groups, sizes)
            truth = by_weight(leaves, keeps, groups, sizes)
            for mask, expected in zip(masks, truth, strict=True):
                np.testing.assert_array_equal(mask, expected)
            marked = weights_of(masks, groups, sizes)
            assert all(m <= k for m, k in zip(marked, keeps, strict=True))
            if len(set(sizes)) == 1:
                assert marked == [k - k % sizes[0] for k in keeps]


def weights_of(masks, groups, sizes):
    """The number of marked weights in each group."""
    totals = [0] * (max(groups) + 1)
    for mask, g, size in zip(masks, groups, sizes, strict=True):
        totals[g] += int(np.sum(mask)) * size
    return totals


def test_entries_of_several_weights_by_hand():
    leaves = [jnp.array([3.0, 1.0, 1.0]), jnp.array([2.0, 1.0]), jnp.array([1.0, 1.0, 9.0])]
    at = lambda keep: [m.tolist() for m in select.top(leaves, [keep], (0, 0, 0), (4, 3, 1))]
    assert at(0) == [[False] * 3, [False] * 2, [False] * 3]
    assert at(4) == [[False] * 3, [False] * 2, [False, False, True]]  # 3.0 takes 4, 3 are left
    assert at(7) == [[True, False, False], [False] * 2, [False, False, True]]
    assert at(11) == [[True, False, False], [True, True], [False, False, True]]  # 4 do not fit
    assert at(12) == [[True, True, False], [True, False], [False, False, True]]
    assert at(13) == [[True, True, False], [True, False], [True, False, True]]
    assert at(15) == [[True, True, False], [True, True], [False, False, True]]
    assert at(20) == [[True, True, True], [True, True], [True, False, True]]
    assert at(21) == [[True] * 3, [True] * 2, [True] * 3]


@pytest.mark.exhaustive
def test_entries_of_several_weights_traced_batched_and_sharded():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('x', 'y'))
    shapes, sizes, groups = [(16, 32), (64, 8), (8, 8)], (7, 2**33, 2), (0, 0, 1)
    replicates = [random_leaves(seed, jnp.float32, ties=True, shapes=shapes) for seed in range(3)]
    totals = weights(replicates[0], groups, sizes)
    keeps = [[int(share * n) for n in totals] for share in (0.001, 0.3, 0.9)]
    counts = [
        jax.tree.map(lambda *n: jnp.stack(n), *[counting.from_int(k[g]) for k in keeps])
        for g in range(2)
    ]
    run = jax.jit(functools.partial(select.top, groups=groups, sizes=sizes))
    sharded = jax.jit(functools.partial(select.top, groups=groups, sizes=sizes))
    batched = jax.jit(jax.vmap(lambda x, k: select.top(x, k, groups, sizes)))
    together = batched(jax.tree.map(lambda *x: jnp.stack(x), *replicates), counts)
    for r, (leaves, keep) in enumerate(zip(replicates, keeps, strict=True)):
        count = jax.tree.map(lambda n, r=r: n[r], counts)
        split = jax.device_put(leaves, NamedSharding(mesh, PartitionSpec('y', 'x')))
        found = zip(run(leaves, count), sharded(split, count), together, strict=True)
        for (a, b, c), truth in zip(found, by_weight(leaves, keep, groups, sizes), strict=True):
            np.testing.assert_array_equal(a, truth)
            np.testing.assert_array_equal(b, truth)
            np.testing.assert_array_equal(c[r], truth)
    assert run._cache_size() == sharded._cache_size() == batched._cache_size() == 1
    device = Mesh(np.array(jax.devices()), ('d',))
    x = jnp.round(jnp.asarray(np.random.default_rng(0).standard_normal((8, 5, 9)), jnp.float32))
    own = lambda x: select.top([x[0], x[1]], [31], (0, 0), (3, 2))
    rule = PartitionSpec('d')
    mapped = jax.shard_map(
        lambda x: jnp.stack(own(x[0]))[None], mesh=device, in_specs=rule, out_specs=rule
    )
    for masks, leaves in zip(jax.jit(mapped)(x), x, strict=True):
        for mask, truth in zip(masks, by_weight(leaves[:2], [31], (0, 0), (3, 2)), strict=True):
            np.testing.assert_array_equal(mask, truth)


def test_sizes_of_one_change_nothing():
    leaves = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((30, 40), (7,))]
    texts = [
        jax.jit(functools.partial(select.top, groups=(0, 0), sizes=sizes))
        .lower(leaves, [counting.from_int(1)])
        .as_text()
        for sizes in (None, (1, 1))
    ]
    assert texts[0] == texts[1]


def test_zeros_of_both_signs_are_equal():
    leaves = [jnp.array([-0.0, 0.0, -0.0]), jnp.array([0.0, -1.0, 1.0])]
    for keep in range(7):
        check(leaves, [keep], (0, 0))


@pytest.mark.parametrize('dtype', MIXED)
def test_extreme_values_keep_their_order(dtype):
    info = jnp.finfo(dtype)
    tiny, subnormal = float(info.tiny), float(info.smallest_subnormal)
    values = [np.inf, float(info.max), 1, tiny, tiny - subnormal, 2 * subnormal, subnormal, 0]
    x = np.array([*(-v for v in values), *values], np.float32)[[*range(1, 16, 2), *range(0, 16, 2)]]
    leaf = jnp.asarray(x.astype(jnp.dtype(dtype)))
    for keep in range(17):
        check([leaf], [keep], (0,))
        check([leaf, jnp.ones(2, jnp.float32)], [keep], (0, 0))


def test_float64_is_compared_in_full():
    with jax.enable_x64(True):
        x = jnp.array([1.0, 1.0 + 1e-15, 1.0 - 1e-15, -1.0, -1.0 - 1e-15], jnp.float64)
        for keep in range(6):
            check([x, jnp.ones(2, jnp.float32)], [keep], (0, 0))
        masks = [x > 0, jnp.ones((3, 3), bool)]
        assert counting.to_int(counting.count(masks)) == 12
        assert counting.to_int(counting.share(0.5, 2**33 + 1)) == 2**32


def test_lower_densities_are_nested():
    for seed in range(3):
        leaves = random_leaves(seed, jnp.bfloat16)
        total = sum(leaf.size for leaf in leaves)
        before = top(leaves, [total], (0,) * 6)
        for keep in range(total, 0, -97):
            masks = top(leaves, [keep], (0,) * 6)
            assert counting.to_int(counting.count(masks)) == keep
            assert not any(jnp.any(m & ~b) for m, b in zip(masks, before, strict=True))
            before = masks


def test_top_of_no_leaves_and_of_empty_leaves():
    assert select.top([], [], ()) == []
    assert top([jnp.zeros((0, 3))], [0], (0,))[0].shape == (0, 3)


@pytest.mark.exhaustive
def test_large_leaves_are_counted_and_indexed_in_parts(monkeypatch):
    """With words of five bits, small leaves take the way of leaves past 2**32 entries."""
    leaves = [
        jnp.round(2 * jnp.asarray(np.random.default_rng(i).standard_normal(s), jnp.float32))
        for i, s in enumerate([(5, 6, 7), (31,), (9, 4, 3, 2), (30, 30)])
    ]
    expected = {keep: top(leaves, [keep], (0,) * 4) for keep in (1, 100, 500, 800, 1100)}
    monkeypatch.setattr(counting, 'LARGE', 2**5)
    assert select.ties._spans((5, 6, 7)) == [(0, 2), (2, 3)]
    assert select.ties._spans((9, 4, 3, 2)) == [(0, 1), (1, 4)]
    assert select.ties._spans((31,)) == [(0, 1)]
    jax.clear_caches()
    for keep, masks in expected.items():
        for a, b in zip(top(leaves, [keep], (0,) * 4), masks, strict=True):
            np.testing.assert_array_equal(a, b)
    monkeypatch.undo()
    jax.clear_caches()


@pytest.mark.exhaustive
def test_vmap_over_replicates_with_their_own_counts():
    replicates = [random_leaves(seed, jnp.float32, ties=True) for seed in range(3)]
    leaves = jax.tree.map(lambda *x: jnp.stack(x), *replicates)
    groups, keeps = (0, 0, 0, 1, 1, 1), [(3, 1000), (20, 5), (0, 1230)]
    counts = [
        jax.tree.map(lambda *n: jnp.stack(n), *[counting.from_int(k[g]) for k in keeps])
        for g in range(2)
    ]
    masks = jax.jit(jax.vmap(lambda x, k: select.top(x, k, groups)))(leaves, counts)
    twice = jax.vmap(jax.vmap(lambda x, k: select.top(x, k, groups)))(
        *jax.tree.map(lambda x: x[None], (leaves, counts))
    )
    for r, (x, k) in enumerate(zip(replicates, keeps, strict=True)):
        for mask, again, truth in zip(masks, twice, by_sort(x, k, groups), strict=True):
            np.testing.assert_array_equal(mask[r], truth)
            np.testing.assert_array_equal(again[0, r], truth)


def test_jit_and_scan_and_a_traced_density():
    leaves = random_leaves(0, jnp.float32)
    total = sum(leaf.size for leaf in leaves)
    traces = []

    @jax.jit
    def at(leaves, density):
        traces.append(1)
        return select.top(leaves, [counting.share(density, total)], (0,) * 6)

    densities = [0.0, 0.1, 0.5, 1.0]
    _, scanned = jax.lax.scan(lambda c, d: (c, at(leaves, d)), 0, jnp.array(densities))
    for i, density in enumerate(densities):
        keep = round(fractions.Fraction(float(np.float32(density))) * total)
        expected = by_sort(leaves, [keep], (0,) * 6)
        found = zip(at(leaves, density), scanned, expected, strict=True)
        for mask, in_scan, truth in found:
            np.testing.assert_array_equal(mask, truth)
            np.testing.assert_array_equal(in_scan[i], truth)
    assert len(traces) == 2  # one for the Python float, one in the scan


def test_new_counts_do_not_compile_anew():
    leaves = [jnp.arange(12.0).reshape(3, 4), jnp.ones((2, 2))]
    top(leaves, [3], (0, 0))
    compiled = []
    listen = lambda name, seconds, **_: 'backend_compile' in name and compiled.append(name)
    jax.monitoring.register_event_duration_secs_listener(listen)
    for keep in range(17):
        top(leaves, [keep], (0, 0))
    jax.monitoring.clear_event_listeners()
    assert compiled == []
