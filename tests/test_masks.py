import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import jaxprune as jp


def scores_of(seed, *, ties=False, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    leaves = [
        jax.random.normal(k, s) for k, s in zip(keys, [(7, 9), (3, 4, 5), (11, 2)], strict=True)
    ]
    if ties:
        leaves = [jnp.round(leaf) for leaf in leaves]
    return {
        'a': leaves[0].astype(dtype),
        'bias': None,
        'b': tuple(leaf.astype(dtype) for leaf in leaves[1:]),
    }


def leaves_of(tree):
    return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree)]


def test_absolute_is_a_boolean():
    with pytest.raises(ValueError, match=r'absolute must be True or False, got 0\.3'):
        jp.masks.leaf_top({'a': jnp.ones((2, 2))}, 0.5, absolute=0.3)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('density', [0.01, 0.2, 0.5, 0.8, 1.0])
def test_global_top_against_a_stable_sort(density, ties, dtype):
    for seed in range(5):
        scores = scores_of(seed, ties=ties, dtype=dtype)
        masks = jp.masks.global_top(scores, density, allow_empty=True)
        expected = reference.top(leaves_of(scores), round(density * 145))
        assert masks['bias'] is None
        for found, wanted in zip(jax.tree.leaves(masks), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize(
    'options',
    [
        {},
        {'allow_empty': True, 'floor': 0.1},
        {'pattern': jp.patterns.channels()},
        {'rules': {'a': 0.5}},
    ],
    ids=['plain', 'floor', 'channels', 'rules'],
)
def test_absolute_values_rank_as_magnitudes(ties, dtype, options):
    weights = scores_of(3, ties=ties, dtype=dtype)
    magnitudes = jax.tree.map(jnp.abs, weights)
    before = jp.masks.global_top(magnitudes, 0.6)
    for masks in (None, before):
        found = jp.masks.global_top(weights, 0.3, masks, absolute=True, **options)
        expected = jp.masks.global_top(magnitudes, 0.3, masks, **options)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    if not options:
        found = jp.masks.leaf_top(weights, 0.3, absolute=True)
        jax.tree.map(np.testing.assert_array_equal, found, jp.masks.leaf_top(magnitudes, 0.3))


@pytest.mark.parametrize('density', [0.1, 0.5, 1.0])
def test_leaf_top_against_a_stable_sort(density):
    scores = scores_of(0, ties=True)
    masks = jp.masks.leaf_top(scores, density)
    for found, leaf in zip(jax.tree.leaves(masks), leaves_of(scores), strict=True):
        [expected] = reference.top([leaf], round(density * leaf.size))
        np.testing.assert_array_equal(found, expected)


def test_ties_keep_the_lower_leaf_then_the_lower_index():
    masks = jp.masks.global_top([jnp.zeros((2, 2)), jnp.zeros((2, 3))], 0.6)
    np.testing.assert_array_equal(masks[0], [[True, True], [True, True]])
    np.testing.assert_array_equal(masks[1], [[True, True, False], [False, False, False]])


def test_a_bare_array():
    np.testing.assert_array_equal(jp.masks.global_top(jnp.array([3.0, 1, 2]), 1 / 3), [1, 0, 0])


def test_levels_are_nested():
    scores = scores_of(1, ties=True)
    before = jax.tree.map(lambda s: jnp.ones_like(s, bool), scores)
    for level in range(1, 15):
        masks = jp.masks.global_top(scores, 0.8**level, before, allow_empty=True)
        again = jp.masks.global_top(scores, 0.8**level, allow_empty=True)
        jax.tree.map(np.testing.assert_array_equal, masks, again)
        assert not any(
            (m & ~b).any() for m, b in zip(*map(jax.tree.leaves, (masks, before)), strict=True)
        )
        assert jp.masks.density(masks) == round(0.8**level * 145) / 145
        before = masks


def test_pruned_weights_do_not_come_back_whatever_their_score():
    masks = {'k': jnp.array([[False, True], [True, True]])}
    found = jp.masks.global_top({'k': jnp.array([[9.0, 1.0], [2.0, 3.0]])}, 0.5, masks)
    np.testing.assert_array_equal(found['k'], [[False, False], [True, True]])
    found = jp.masks.leaf_top({'k': jnp.array([[9.0, 1.0], [2.0, 3.0]])}, 0.75, masks)
    np.testing.assert_array_equal(found['k'], masks['k'])


def test_a_traced_density_above_that_of_the_masks_brings_nothing_back():
    masks = jnp.arange(10) >= 7
    found = jax.jit(lambda d: jp.masks.global_top(jnp.arange(10.0), d, masks))(0.9)
    np.testing.assert_array_equal(found, masks)


def test_minus_infinity_still_ranks_above_what_is_pruned():
    scores, masks = jnp.array([-jnp.inf, -jnp.inf, 1, 2]), jnp.array([False, True, True, True])
    found = jax.jit(lambda s: jp.masks.global_top(s, 0.75, masks))(scores)
    np.testing.assert_array_equal(found, masks)


def test_apply_by_hand_heals_what_is_not_finite():
    params = {'k': jnp.array([[1.0, jnp.nan], [-jnp.inf, -2.0]]), 'b': jnp.array([jnp.nan])}
    masks = {'k': jnp.array([[True, False], [False, True]]), 'b': None}
    once = jp.masks.apply(params, masks)
    np.testing.assert_array_equal(once['k'], [[1, 0], [0, -2]])
    assert jnp.isnan(once['b'][0])
    twice = jp.masks.apply(once, masks)
    np.testing.assert_array_equal(twice['k'], once['k'])


def test_density_is_exact():
    masks = (jnp.array([True, False, True]), None, jnp.zeros((2, 2), bool))
    assert jp.masks.density(masks) == 2 / 7


@pytest.mark.exhaustive
def test_density_is_exact_beyond_2_to_the_31():
    leaf = jnp.ones(2**28, bool)
    odd = leaf.at[5].set(False)
    assert jp.masks.density([leaf] * 9 + [odd]) == (10 * 2**28 - 1) / (10 * 2**28)


@pytest.mark.slow
def test_selection_is_exact_beyond_2_to_the_24():
    scores = jnp.arange(2**25, dtype=jnp.float32).reshape(2**13, 2**12)  # ties in pairs and more
    keep = 2**24 + 3
    mask = jp.masks.global_top(scores, keep / 2**25)
    assert int(np.asarray(mask).sum()) == keep
    ordered = np.asarray(scores).ravel()
    [expected] = reference.top([ordered], keep)
    np.testing.assert_array_equal(np.asarray(mask).ravel(), expected)


@pytest.mark.parametrize('density', [0, -0.5, 1.1, float('nan'), '0.5', [0.5]])
@pytest.mark.parametrize('select', [jp.masks.global_top, jp.masks.leaf_top])
def test_densities_outside_are_refused(select, density):
    with pytest.raises(ValueError, match=r'density must be a number in \(0, 1\], got'):
        select(scores_of(0), density)


def test_a_density_that_keeps_nothing_is_refused():
    with pytest.raises(
        ValueError, match='keeps none of the 145 weights of the tree: ask for at least'
    ):
        jp.masks.global_top(scores_of(0), 1e-3)
    with pytest.raises(ValueError, match="keeps none of the 22 weights of leaf 'b/1'"):
        jp.masks.leaf_top(scores_of(0), 0.021)


def test_a_density_above_that_of_the_masks_is_refused():
    masks = jp.masks.global_top(scores_of(0), 0.2)
    with pytest.raises(ValueError, match=r'asks for 72 weights of the tree, .* keep only 29'):
        jp.masks.global_top(scores_of(0), 0.5, masks)
    with pytest.raises(ValueError, match="weights of leaf 'a', of which the given masks keep only"):
        jp.masks.leaf_top(scores_of(0), 0.9, masks)


def test_nan_scores_name_the_leaf():
    scores = scores_of(0)
    scores['b'] = (scores['b'][0], scores['b'][1].at[0, 0].set(jnp.nan))
    with pytest.raises(
        ValueError, match="scores of leaf 'b/1' hold 1 NaN and 0 infinite ones among 22"
    ):
        jp.masks.global_top(scores, 0.5)


def test_scores_that_cannot_be_ranked():
    with pytest.raises(ValueError, match='there are no scores'):
        jp.masks.global_top({'a': None}, 0.5)
    with pytest.raises(ValueError, match="leaf 'a' is int32"):
        jp.masks.global_top({'a': jnp.ones((2, 2), jnp.int32)}, 0.5)


def test_masks_unlike_the_scores_or_params():
    scores = {'a': jnp.ones((2, 2)), 'b': jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"shape \(2,\) at 'a' where scores have \(2, 2\)"):
        jp.masks.global_top(scores, 0.5, {'a': jnp.ones(2, bool), 'b': jnp.ones((2, 2), bool)})
    with pytest.raises(ValueError, match="masks are None at 'b', where there are scores"):
        jp.masks.global_top(scores, 0.5, {'a': jnp.ones((2, 2), bool), 'b': None})
    with pytest.raises(ValueError, match="masks have no leaf 'b'"):
        jp.masks.apply(scores, {'a': None})
    with pytest.raises(ValueError, match='no prunable weight'):
        jp.masks.density({'a': None})


@pytest.mark.parametrize('density', [np.float32(0.5), np.float64(0.5), jnp.float32(0.5)])
def test_densities_of_any_scalar_kind(density):
    assert jp.masks.density(jp.masks.global_top(jnp.arange(4.0), density)) == 0.5


def test_masks_that_are_not_boolean_are_refused():
    params, masks = {'a': jnp.ones((2, 2))}, {'a': jnp.ones((2, 2))}
    for use in (
        lambda: jp.masks.apply(params, masks),
        lambda: jp.masks.density(masks),
        lambda: jp.masks.global_top(params, 0.5, masks),
        lambda: jp.report.records(params, masks),
    ):
        with pytest.raises(ValueError, match="masks are float32 at 'a', expected bool"):
            use()


def test_shuffle_keeps_how_much_each_leaf_keeps():
    kept = {'a': jnp.arange(60).reshape(6, 10) < 7, 'b': [jnp.arange(40) < 40], 'c': None}
    found = [jp.masks.shuffle(kept, jax.random.key(seed)) for seed in range(20)]
    for each in found:
        assert int(each['a'].sum()) == 7 and each['b'][0].all() and each['c'] is None
    assert len({np.asarray(each['a']).tobytes() for each in found}) == 20
    often = sum(np.asarray(each['a'], int) for each in found)
    assert often[0].sum() < 20 * 7 / 2  # not where they were
    again = jax.jit(jp.masks.shuffle)(kept, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, again, found[0])


def test_shuffle_by_leaf_draws_independently():
    kept = [jnp.arange(50) < 25, jnp.arange(50) < 25]
    first, second = jp.masks.shuffle(kept, jax.random.key(0))
    assert (first != second).any()
