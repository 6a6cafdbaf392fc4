"""Allocations: exact totals, the equations of their sources, rules, floors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import allocate, masks, patterns

SHAPES = {'conv': (3, 3, 8, 16), 'wide': (64, 128), 'out': (128, 10), 'bias': (10,)}
PRUNABLE = ('conv', 'wide', 'out')
TOTAL = 9 * 128 + 8192 + 1280
METHODS = {
    'uniform': allocate.uniform,
    'erk': allocate.erdos_renyi,
    'er': lambda *args, **options: allocate.erdos_renyi(*args, kernel=False, **options),
}


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in SHAPES.items()}


def counts(densities):
    return {path: d * math.prod(SHAPES[path]) for path, d in densities.items()}


def raw_shares(method):
    """Weights in proportion to the equations, before caps."""
    return {
        'uniform': {name: math.prod(SHAPES[name]) for name in PRUNABLE},
        'erk': {name: sum(SHAPES[name]) for name in PRUNABLE},
        'er': {name: sum(SHAPES[name][-2:]) * math.prod(SHAPES[name][:-2]) for name in PRUNABLE},
    }[method]


def by_bisection(method, density):
    """Finds the factor at which the capped shares sum to the budget."""
    shares, budget = raw_shares(method), round(density * TOTAL)
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        kept = sum(min(middle * s, math.prod(SHAPES[name])) for name, s in shares.items())
        low, high = (middle, high) if kept < budget else (low, middle)
    return {name: min(low * s, math.prod(SHAPES[name])) for name, s in shares.items()}


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('density', [0.005, 0.02, 0.1, 0.37, 0.5, 0.9, 0.99, 1.0])
def test_the_equation_with_caps_and_an_exact_total(method, density):
    found = counts(METHODS[method](parameters(), density))
    assert set(found) == set(PRUNABLE)
    for path, expected in by_bisection(method, density).items():
        assert abs(found[path] - round(found[path])) < 1e-9
        assert abs(found[path] - expected) < 1 + 1e-6
    assert round(sum(found.values())) == round(density * TOTAL)


@pytest.mark.parametrize('method', METHODS)
def test_masks_keep_the_total_exactly(method):
    for density in (0.013, 0.1, 0.333):
        scores = jp.scores.magnitude(parameters())
        kept = masks.leaf_top(scores, METHODS[method](parameters(), density))
        assert sum(int(m.sum()) for m in jax.tree.leaves(kept)) == round(density * TOTAL)


def test_erk_by_hand():
    """10 x 10 and 10 x 2 at a half: 60 weights, 20 : 12 is 37.5 : 22.5, but the second has 20."""
    params = {'a': jnp.ones((10, 10)), 'b': jnp.ones((10, 2))}
    assert allocate.erdos_renyi(params, 0.5) == {'a': 0.4, 'b': 1.0}
    assert allocate.uniform(params, 0.5) == {'a': 0.5, 'b': 0.5}


def test_shapes_alone_do():
    shapes = jax.eval_shape(parameters)
    assert allocate.erdos_renyi(shapes, 0.1) == allocate.erdos_renyi(parameters(), 0.1)


@pytest.mark.parametrize('method', METHODS)
def test_rules_win_and_the_total_stays(method):
    found = METHODS[method](parameters(), 0.3, rules={'out': 1.0, 'con*': 0.25})
    assert found['out'] == 1.0 and found['conv'] == 0.25
    assert round(sum(counts(found).values())) == round(0.3 * TOTAL)


def test_rules_of_a_global_selection():
    scores = jp.scores.magnitude(parameters())
    kept = masks.global_top(scores, 0.2, rules={'out': 1.0, 'conv': 0.5})
    assert kept['out'].all() and int(kept['conv'].sum()) == 576
    assert sum(int(m.sum()) for m in jax.tree.leaves(kept)) == round(0.2 * TOTAL)
    np.testing.assert_array_equal(
        kept['wide'],
        masks.global_top(scores['wide'], (round(0.2 * TOTAL) - 576 - 1280) / 8192),
    )


def test_a_floor_keeps_each_leaf_alive():
    scores = jp.scores.magnitude(parameters())
    scores['conv'] = scores['conv'] / 1e6
    with pytest.raises(ValueError, match="leaves leaf 'conv' with none of its 1152 weights"):
        masks.global_top(scores, 0.1)
    assert not masks.global_top(scores, 0.1, allow_empty=True)['conv'].any()
    kept = masks.global_top(scores, 0.1, floor=0.01)
    assert int(kept['conv'].sum()) == math.ceil(0.01 * 1152)
    np.testing.assert_array_equal(kept['conv'], masks.leaf_top(scores['conv'], 12 / 1152))
    assert sum(int(m.sum()) for m in jax.tree.leaves(kept)) == round(0.1 * TOTAL)


def test_a_floor_that_all_leaves_pass_changes_nothing():
    scores = jp.scores.magnitude(parameters())
    jax.tree.map(
        np.testing.assert_array_equal,
        masks.global_top(scores, 0.3, floor=0.01),
        masks.global_top(scores, 0.3),
    )


def test_a_floor_within_masks_and_patterns():
    scores = jp.scores.magnitude(parameters())
    scores['out'] = scores['out'] / 1e6
    pattern = {'out': jp.patterns.channels(-2), 'conv': jp.patterns.n_of_m(2, 4)}
    first = masks.global_top(scores, 0.6, pattern=pattern, floor=0.1)
    kept = masks.global_top(scores, 0.3, first, pattern=pattern, floor=0.1)
    assert int(kept['out'].sum()) == 130  # at least 128, in rows of 10
    assert int(kept['conv'].sum()) >= 576
    assert not any((kept[name] & ~first[name]).any() for name in PRUNABLE)


@pytest.mark.parametrize('progress', [0.0, 0.25, 0.7, 1.0])
def test_progress_prunes_a_share_of_what_will_go(progress):
    scores = jp.scores.magnitude(parameters())
    share = float(np.float32(progress))
    expected = TOTAL - round(share * (TOTAL - round(0.1 * TOTAL)))
    kept = masks.global_top(scores, 0.1, progress=progress)
    assert sum(int(m.sum()) for m in jax.tree.leaves(kept)) == expected
    traced = jax.jit(lambda p: masks.global_top(scores, 0.1, progress=p))(progress)
    jax.tree.map(np.testing.assert_array_equal, traced, kept)
    by_leaf = jax.jit(lambda p: masks.leaf_top(scores, {'*': 0.5, 'out': 0.1}, progress=p))(
        progress
    )
    assert int(by_leaf['out'].sum()) == 1280 - round(share * (1280 - 128))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'density': 0}, r'density must be a number in \(0, 1\], got 0'),
        ({'density': 1e-5}, 'density 1e-05 keeps none of the 10624 weights of the tree'),
        ({'density': 2e-4}, "leaves leaf 'conv' with none of its 1152 .* allow_empty=True"),
        ({'rules': {'Conv': 0.1}}, "the rule 'Conv' matches no leaf among"),
        ({'rules': {'bias': 0.1}}, "the rule 'bias' matches no leaf among"),
        ({'rules': {'c*': 0.1, '*v': 0.2}}, "contradict each other at leaf 'conv': 0.1 and"),
        ({'rules': {'wide': 1.0}}, 'asks for 1062 weights in all, of which the rules keep 8192'),
        (
            {'rules': {'*': 0.5}},
            'asks for 1062 .* cover every leaf, keep 5312: set the density to 0.5',
        ),
        ({'rules': {'out': 1.5}}, r'density must be a number in \(0, 1\], got 1.5'),
    ],
)
def test_bad_allocations(options, message):
    with pytest.raises(ValueError, match=message):
        allocate.uniform(parameters(), **{'density': 0.1} | options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'floor': 1.0}, r'floor must be a number in \[0, 1\), got 1.0'),
        ({'floor': 0.2}, 'fewer than the 2126 that a floor of 0.2 keeps'),
        ({'rules': {'none*': 0.1}}, 'matches no leaf'),
        ({'rules': {'wide': 1.0}}, 'of which the rules keep 8192'),
        ({'progress': 1.5}, r'progress must be a number in \[0, 1\], got 1.5'),
        ({'progress': '1'}, r'progress must be a number in \[0, 1\]'),
    ],
)
def test_bad_budgets(options, message):
    with pytest.raises(ValueError, match=message):
        masks.global_top(jp.scores.magnitude(parameters()), 0.1, **options)


def test_densities_by_path_must_cover_all_leaves():
    scores = jp.scores.magnitude(parameters())
    with pytest.raises(ValueError, match="no density is given for leaf 'out'"):
        masks.leaf_top(scores, {'conv': 0.1, 'wide': 0.1})
    with pytest.raises(ValueError, match=r"the rule 'x\*' matches no leaf"):
        masks.leaf_top(scores, {'*': 0.1, 'x*': 0.1})


@pytest.mark.parametrize('allocation', METHODS)
def test_rules_for_every_leaf_agree_with_the_density_to_within_rounding(allocation):
    params = parameters()
    found = METHODS[allocation](params, 0.3, rules={'*': 0.3})
    assert counts(found) == {'conv': 346, 'wide': 2458, 'out': 384}  # 3188, where 0.3 asks for 3187
    scores = jp.scores.magnitude(params)
    expected = masks.leaf_top(scores, 0.3)
    for density in (0.2999, 0.3):  # 3186 is two off: half a weight for each of four roundings
        kept = masks.global_top(scores, density, rules={'*': 0.3})
        jax.tree.map(np.testing.assert_array_equal, kept, expected)
    for call in (METHODS[allocation], masks.global_top):
        with pytest.raises(
            ValueError, match=r'asks for 3185 .* keep 3188: set the density to 0\.30'
        ):
            call(params if call is not masks.global_top else scores, 0.2998, rules={'*': 0.3})


def test_empty_may_be_asked_for():
    found = allocate.uniform(parameters(), 2e-4, allow_empty=True)
    assert found['conv'] == 0.0 and round(sum(counts(found).values())) == 2


def test_iterated_narrows_step_by_step():
    params = parameters()
    seen = []

    def score(weights):
        seen.append(weights)
        return jp.scores.magnitude(weights)

    kept = masks.iterated(score, params, 0.05, rounds=7)
    jax.tree.map(
        np.testing.assert_array_equal, kept, masks.global_top(jp.scores.magnitude(params), 0.05)
    )
    assert len(seen) <= 4  # a loop that is compiled, not one round after another
    with pytest.raises(ValueError, match='rounds must be a whole number from 1, got 0'):
        masks.iterated(jp.scores.magnitude, params, 0.05, rounds=0)


def test_iterated_scores_what_each_step_has_left():
    """A weight is scored by its row too: the first row leads until its small weights are gone."""
    params = jnp.array([[2.5, 1, 1, 1], [2.4, 2.4, 0.1, 0.1]])
    score = lambda w: jnp.abs(w) * jnp.sum(jnp.abs(w), axis=-1, keepdims=True)
    kept = jnp.ones((2, 4), bool)
    for k in range(1, 7):
        density = float(np.float32(0.25 ** (k / 6)))
        left = score(masks.apply(params, kept))
        kept = masks.global_top(left, density, kept, allow_empty=True)
    every = functools.partial(masks.global_top, allow_empty=True)
    found = masks.iterated(score, params, 0.25, rounds=6, choose=every)
    np.testing.assert_array_equal(found, kept)
    once = masks.global_top(score(params), 0.25)
    assert once[0, 0] and not kept[0, 0]


def test_densities_by_path_are_not_for_global_top():
    with pytest.raises(ValueError, match='densities by path are for'):
        masks.global_top([jnp.ones((4, 4))], {'0': 0.5})


@pytest.mark.parametrize('select', [masks.global_top, masks.leaf_top])
def test_a_target_that_a_pattern_cannot_reach_is_refused_on_the_way_there(select):
    found, pattern = [jnp.ones((4, 4))], patterns.n_of_m(2, 4)
    for run in (lambda f, p: f(p), lambda f, p: jax.jit(f)(p)):
        narrow = lambda progress: select(found, 0.3, pattern=pattern, progress=progress)
        with pytest.raises(ValueError, match='fewer than the 8 that n of m always keeps'):
            run(narrow, 0.25)
