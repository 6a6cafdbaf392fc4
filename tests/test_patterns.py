"""Patterns, against loops over the units one at a time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import masks, patterns

SHAPE = (8, 12)
REDUCE = {'sum': np.sum, 'mean': np.mean, 'max': np.max}


def draw(seed, shape=SHAPE, dtype=jnp.float32):
    """Scores whose sums are exact in any order, with ties."""
    values = np.random.default_rng(seed).integers(-8, 9, shape) / 4
    return jnp.asarray(values, dtype)


def units_of(leaf, shape, reduce):
    """The score of each block, in row-major order, and a mask that is True inside it."""
    leaf = np.asarray(leaf, np.float64)
    shape = (1,) * (leaf.ndim - len(shape)) + tuple(shape)
    found = []
    corners = (range(0, n, b) for n, b in zip(leaf.shape, shape, strict=True))
    for corner in itertools.product(*corners):
        inside = np.zeros(leaf.shape, bool)
        inside[tuple(slice(c, c + b) for c, b in zip(corner, shape, strict=True))] = True
        found.append((REDUCE[reduce](leaf[inside]), inside))
    return found


def by_blocks(leaf, shape, reduce, kept):
    units = sorted(units_of(leaf, shape, reduce), key=lambda unit: -unit[0])  # stable
    return np.any([inside for _, inside in units[:kept]], axis=0)


@pytest.mark.parametrize('reduce', ['sum', 'mean', 'max'])
@pytest.mark.parametrize('shape', [(1, 4), (4, 1), (2, 3), (8, 12), (4,), (1, 1)])
def test_blocks_against_a_loop(shape, reduce):
    size = int(np.prod(shape))
    units = 96 // size
    for seed, dtype in itertools.product(range(3), (jnp.float32, jnp.bfloat16)):
        leaf = draw(seed, dtype=dtype)
        for kept in {1, units // 2 or 1, units}:
            found = masks.leaf_top(
                {'k': leaf}, kept / units, pattern=patterns.blocks(shape, reduce=reduce)
            )
            np.testing.assert_array_equal(found['k'], by_blocks(leaf, shape, reduce, kept))


def test_blocks_of_a_convolution_lie_in_its_last_axes():
    leaf = draw(0, (3, 3, 4, 8))
    found = masks.leaf_top(leaf, 0.25, pattern=patterns.blocks((1, 4)))
    np.testing.assert_array_equal(found, by_blocks(leaf, (1, 4), 'sum', 18))


@pytest.mark.parametrize('axis', [0, 1, -1, -2])
@pytest.mark.parametrize('reduce', ['sum', 'mean', 'max'])
def test_channels_against_a_loop(axis, reduce):
    leaf = draw(1, (6, 10))
    lines = np.moveaxis(np.asarray(leaf, np.float64), axis, 0)
    scores = [REDUCE[reduce](line) for line in lines]
    kept = sorted(range(len(scores)), key=lambda i: -scores[i])[: len(scores) // 2]
    expected = np.zeros_like(lines, bool)
    expected[kept] = True
    found = masks.leaf_top(leaf, 0.5, pattern=patterns.channels(axis, reduce=reduce))
    np.testing.assert_array_equal(found, np.moveaxis(expected, 0, axis))


def n_of_m_by_hand(leaf, n, m, axis, groups_pruned):
    """Prunes the groups whose m - n lowest scores sum to least; ties prune the later group."""
    lines = np.moveaxis(np.asarray(leaf, np.float64), axis, -1)
    shape = lines.shape
    grouped = lines.reshape(*shape[:-1], shape[-1] // m, m)
    mask = np.ones_like(grouped, bool)
    # units lie as in the leaf: the group index takes the place of the axis
    index = np.arange(grouped[..., 0].size).reshape(grouped.shape[:-1])
    places = np.moveaxis(index, -1, axis)
    order = {int(spot): i for i, spot in enumerate(places.ravel())}
    losses = []
    for spot in np.ndindex(grouped.shape[:-1]):
        lowest = sorted(range(m), key=lambda j: (grouped[spot][j], -j))[: m - n]
        losses.append((grouped[spot][lowest].sum(), -order[int(index[spot])], spot, lowest))
    for _, _, spot, lowest in sorted(losses, key=lambda loss: loss[:2])[:groups_pruned]:
        mask[spot][lowest] = False
    return np.moveaxis(mask.reshape(shape), -1, axis)


@pytest.mark.parametrize('axis', [0, 1, -1, -2])
@pytest.mark.parametrize(('n', 'm'), [(2, 4), (1, 4), (3, 4), (1, 2)])
def test_n_of_m_against_a_loop(n, m, axis):
    for seed in range(3):
        leaf = draw(seed)
        groups = leaf.size // m
        full = masks.n_of_m({'k': leaf}, n, m, axis)['k']
        np.testing.assert_array_equal(full, n_of_m_by_hand(leaf, n, m, axis, groups))
        counts = np.moveaxis(np.asarray(full), axis, -1).reshape(-1, m).sum(-1)
        assert (counts == n).all()
        for pruned in (1, groups // 3, groups - 1):
            density = 1 - pruned * (m - n) / leaf.size
            some = masks.leaf_top(leaf, density, pattern=patterns.n_of_m(n, m, axis=axis))
            np.testing.assert_array_equal(some, n_of_m_by_hand(leaf, n, m, axis, pruned))


def test_n_of_m_lies_along_the_inputs_of_a_convolution_by_default():
    leaf = draw(5, (3, 3, 8, 4))
    found = np.asarray(masks.n_of_m(leaf, 2, 4))
    assert (found.reshape(3, 3, 2, 4, 4).sum(3) == 2).all()


def test_n_of_m_near_dense_prunes_few_groups_only():
    """At a density of 0.99 a full 2 of 4 would be half of the weights."""
    leaf = draw(0, (40, 100))
    found = masks.leaf_top(leaf, 0.99, pattern=patterns.n_of_m(2, 4))
    assert jp.masks.density(found) == 0.99


def test_a_global_budget_over_units_of_different_sizes():
    scores = {'blocks': draw(0, (4, 8)), 'rows': draw(1, (3, 10)), 'single': draw(2, (5, 5))}
    found = masks.global_top(
        scores,
        0.5,
        pattern={'blocks': patterns.blocks((1, 4)), 'rows': patterns.channels(-2)},
    )
    left, units = round(0.5 * 87), []
    for name, shape in (('blocks', (1, 4)), ('rows', (1, 10)), ('single', (1, 1))):
        units += [(*unit, name) for unit in units_of(scores[name], shape, 'sum')]
    expected = {name: np.zeros(s.shape, bool) for name, s in scores.items()}
    units.sort(key=lambda unit: -unit[0])  # stable: ties in the order of leaves, then of places
    for _, equal in itertools.groupby(units, key=lambda unit: unit[0]):
        all_fit = True
        for _, inside, name in equal:
            if inside.sum() <= left:
                expected[name] |= inside
                left -= inside.sum()
            else:
                all_fit = False
        if not all_fit:
            break
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name], mask)


@pytest.mark.parametrize(
    'pattern',
    [
        patterns.blocks((1, 4)),
        patterns.blocks((2, 2), reduce='max'),
        patterns.channels(-1),
        patterns.n_of_m(2, 4),
        {'a': patterns.n_of_m(1, 4, axis=-1)},
        {'*': patterns.unstructured},
    ],
)
@pytest.mark.parametrize('select', [masks.global_top, masks.leaf_top])
def test_masks_of_lower_densities_are_nested(pattern, select):
    scores = {'a': jnp.abs(draw(0)), 'none': None, 'b': (jnp.abs(draw(1, (16, 8))),)}
    kept = None
    for progress in (0.0, 0.2, 0.5, 0.8, 1.0):
        new = select(scores, 0.5, kept, pattern=pattern, progress=progress, allow_empty=True)
        again = select(scores, 0.5, pattern=pattern, progress=progress, allow_empty=True)
        jax.tree.map(np.testing.assert_array_equal, new, again)
        if progress == 0:
            assert masks.density(new) == 1
        kept = new
    # channels of 16 and 8 weights may leave less than one unfilled
    assert 0.5 - 16 / 224 < masks.density(kept) <= 0.5


def test_the_mean_lets_channels_of_several_sizes_compete():
    scores = {'large': jnp.ones((100, 4)), 'small': jnp.ones((10, 4)) * 2}
    by = lambda reduce: masks.global_top(
        scores, 0.1, pattern=patterns.channels(reduce=reduce), allow_empty=True
    )
    assert by('mean')['small'].all() and not by('sum')['small'].any()


def test_a_unit_ranks_by_what_is_left_of_it():
    scores = jnp.array([[9.0, 1, 1, 1], [3, 3, 3, 3]])
    kept = jnp.array([[False, True, True, True], [True, True, True, True]])
    found = masks.leaf_top(scores, 0.5, kept, pattern=patterns.blocks((1, 4)))
    np.testing.assert_array_equal(found, [[False] * 4, [True] * 4])
    gone = jnp.array([[False] * 4, [True] * 4])
    low = masks.leaf_top(-jnp.abs(scores), 0.5, gone, pattern=patterns.blocks((1, 4)))
    np.testing.assert_array_equal(low, gone)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: patterns.blocks((0, 4)), r'whole sides of at least 1, got \(0, 4\)'),
        (lambda: patterns.blocks(()), r'whole sides of at least 1, got \(\)'),
        (lambda: patterns.blocks((2, 2), reduce='min'), "'sum', 'mean' or 'max', got 'min'"),
        (lambda: patterns.n_of_m(4, 4), '1 <= n < m, got 4 of 4'),
        (lambda: patterns.n_of_m(0, 4), '1 <= n < m, got 0 of 4'),
        (lambda: patterns.n_of_m(1.5, 4), 'must be whole'),
    ],
)
def test_patterns_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ('pattern', 'message'),
    [
        (patterns.blocks((3, 4)), r"3 × 4 do not fit leaf 'a/k' of shape \(8, 12\): choose sides"),
        (patterns.blocks((1, 1, 4)), "do not fit leaf 'a/k'"),
        (
            patterns.n_of_m(2, 5),
            "2 of 5 does not fit leaf 'a/k' .* 5 does not divide the 8 weights",
        ),
        (patterns.n_of_m(2, 4, axis=2), "leaf 'a/k' of shape .* has no axis 2"),
        (patterns.channels(-3), "leaf 'a/k' of shape .* has no axis -3"),
        ({'b*': patterns.channels()}, r"the rule 'b\*' matches no leaf among \['a/k'\]"),
        (
            {'a*': patterns.channels(), '*k': patterns.unstructured},
            "rules contradict each other at leaf 'a/k'",
        ),
    ],
)
def test_patterns_that_do_not_fit(pattern, message):
    with pytest.raises(ValueError, match=message):
        masks.leaf_top({'a': {'k': draw(0)}}, 0.5, pattern=pattern)


def test_the_path_itself_wins_over_a_pattern_of_paths():
    rules = {'a/k': patterns.channels(), '*': patterns.n_of_m(2, 4)}
    found = masks.leaf_top({'a': {'k': draw(0)}, 'b': draw(1)}, 0.5, pattern=rules)
    np.testing.assert_array_equal(found['b'], masks.n_of_m(draw(1), 2, 4))
    assert set(np.asarray(found['a']['k']).sum(0).tolist()) == {0, 8}


def test_a_density_that_n_of_m_cannot_reach():
    with pytest.raises(
        ValueError, match="asks for 19 weights of leaf 'k', fewer than the 48 that n"
    ):
        masks.leaf_top({'k': draw(0)}, 0.2, pattern=patterns.n_of_m(2, 4))


def test_a_budget_below_one_unit_leaves_a_leaf_with_nothing():
    with pytest.raises(ValueError, match="leaves leaf 'k' with none of its 96 weights"):
        masks.leaf_top({'k': draw(0)}, 0.1, pattern=patterns.channels(-2))
    found = masks.leaf_top({'k': draw(0)}, 0.1, pattern=patterns.channels(-2), allow_empty=True)
    assert not np.asarray(found['k']).any()
