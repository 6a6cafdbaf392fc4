"""Methods that are sparse from the first forward pass: static masks, SET, RigL."""

import functools
import itertools
import math

import gradual_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_gradual as truth
from compiling import hasty

import jaxprune as jp
from jaxprune import gradual, patterns, scores

pytestmark = pytest.mark.promotes  # optax does

KEY = jax.random.key(3)
LATER = gradual.periodic(2, begin=2)
RIGL = functools.partial(gradual.rigl, every=2, end=9)
SET = functools.partial(gradual.sparse_evolution, schedule=LATER)


def first_masks(tx, params):
    masks = jp.get_masks(tx.init(params))
    return {k: np.asarray(m) for k, m in masks.items() if m is not None}


def cosine(step, end, fraction=0.3):
    return fraction / 2 * (1 + math.cos(math.pi * step / end))


def rigl_simulation(tx, params, grads, end=9):
    """RigL with every=2, by the slow loop."""

    def change(step, w, g, now):
        if step not in range(2, end, 2):
            return None
        return {k: truth.rigl(w[k], g[k], now[k], cosine(step, end)) for k in now}

    begin = first_masks(tx, params)
    start = {k: np.where(begin.get(k, True), w, 0) for k, w in params.items()}
    return truth.train(start, grads, begin, change)


@pytest.mark.parametrize(('density', 'end'), [(0.4, 9), ({'a': 1.0, 'b': 0.25}, 5)])
def test_rigl_is_the_slow_loop(density, end):
    params, grads = cases.dyadic(0), cases.gradients(12)
    tx = RIGL(cases.INNER, density, KEY, end=end)
    history, _ = cases.run(tx, params, grads)
    cases.agree(history, rigl_simulation(tx, params, grads, end))
    changed = [
        any((after[k] != before[k]).any() for k in after)
        for (_, before), (_, after) in itertools.pairwise([({}, first_masks(tx, params)), *history])
    ]
    assert changed[2] and not any(changed[step] for step in (0, 1, 3, 5, 7, *range(end, 12)))
    kept = {k: int(m.sum()) for k, m in history[0][1].items()}
    assert kept == ({'a': 48, 'b': 8} if isinstance(density, dict) else {'a': 19, 'b': 13})
    assert cases.counts(history) == [sum(kept.values())] * 12


def test_nan_gradients_grow_nothing():
    params, grads = cases.dyadic(0), cases.gradients(4)
    tx = RIGL(cases.INNER, 0.4, KEY)
    begin = first_masks(tx, params)
    for k, mask in begin.items():  # of b, none may grow; of a, all but the even rows
        grads[2][k][~mask & ((np.arange(len(mask)) % 2 == 1)[:, None] | (k == 'b'))] = np.nan
    history, _ = cases.run(tx, params, grads)
    cases.agree(history, rigl_simulation(tx, params, grads))
    np.testing.assert_array_equal(history[3][1]['b'], begin['b'])
    assert (history[3][1]['a'] != begin['a']).any()
    assert all(np.isfinite(w).all() for w in history[3][0].values())
    grads[2]['b'][:] = np.nan  # of kept weights too: what was dropped returns before others
    history, _ = cases.run(tx, params, grads[:3])
    cases.agree(history, rigl_simulation(tx, params, grads[:3]))
    np.testing.assert_array_equal(history[2][1]['b'], begin['b'])


def test_what_returns_has_fresh_moments_and_the_rest_its_own():
    params, grads = cases.dyadic(0), cases.gradients(3)
    tx = gradual.rigl(optax.adam(0.125), 0.4, KEY, every=2, end=9, fraction=0.6)
    history, state = cases.run(tx, params, grads[:2])
    weights, old = history[-1]
    before = state.pruned.inner_state[0]
    later, state = cases.run(tx, jax.tree.map(jnp.asarray, weights), grads[2:], state)
    new, after = later[0][1], state.pruned.inner_state[0]
    assert int(after.count) == 3
    for k, mask in new.items():
        grown, stays = mask & ~old[k], mask & old[k]
        assert grown.sum() == (old[k] & ~mask).sum() > 0
        for was, now, one, rate in (
            (before.mu[k], after.mu[k], grads[2][k], 0.1),
            (before.nu[k], after.nu[k], grads[2][k] ** 2, 0.001),
        ):
            expected = (1 - rate) * np.where(grown, 0, was) + rate * np.where(mask, one, 0)
            np.testing.assert_allclose(now, expected, rtol=1e-6, atol=1e-7)
            assert (np.asarray(was)[stays] != 0).any()


def test_what_was_dropped_may_return_as_it_was():
    params = {'w': np.float32([[1, 2, 3, 4]])}
    tx = gradual.rigl(cases.INNER, 0.5, KEY, every=1, end=100, fraction=0.6)
    masks = first_masks(tx, params)
    kept = np.flatnonzero(masks['w'])
    quiet = {'w': np.zeros((1, 4), np.float32)}
    steep = {'w': np.zeros((1, 4), np.float32)}
    steep['w'][0, kept[0]] = 1  # the smaller one, which a change drops
    history, state = cases.run(tx, params, [steep, steep])
    np.testing.assert_array_equal(history[-1][1]['w'], masks['w'])
    expected = params['w'][0, kept[0]] - 0.25 - 0.25 * 1.5  # its momentum goes on
    assert history[-1][0]['w'][0, kept[0]] == expected
    np.testing.assert_array_equal(state.pruned.inner_state[0].trace['w'][0, kept[0]], 1.5)
    history, _ = cases.run(tx, params, [quiet, quiet])
    assert history[-1][1]['w'].sum() == 2


def survivors(params, mask, k):
    """What stays of a leaf when the k smallest go; of equal ones the lower index stays."""
    active = sorted(np.flatnonzero(mask), key=lambda i: (-abs(params.ravel()[i]), i))
    stays = np.zeros(mask.size, bool)
    stays[active[: len(active) - k]] = True
    return stays.reshape(mask.shape)


@pytest.mark.parametrize(
    'inner',
    [
        optax.rmsprop(0.1, momentum=0.9),
        optax.inject_hyperparams(optax.adam)(optax.cosine_decay_schedule(0.1, 10)),
    ],
    ids=['rmsprop', 'inject'],
)
def test_set_drops_the_smallest_and_draws_as_many(inner):
    params, grads = cases.dyadic(0), cases.gradients(8)
    tx = SET(inner, 0.4, KEY, fraction=0.3)
    history, _ = cases.run(tx, params, grads)
    assert cases.counts(history) == [32] * 8
    grown = []
    for step, ((weights, old), (_, new)) in enumerate(itertools.pairwise(history), start=1):
        for k, mask in old.items():
            if step not in (2, 4, 6):
                np.testing.assert_array_equal(new[k], mask)
                continue
            stays = survivors(weights[k], mask, round(0.3 * mask.sum()))
            assert (new[k] >= stays).all()
            grown.append(np.flatnonzero(new[k] & ~stays).tolist())
    assert grown[0] != grown[2] != grown[4]
    again, _ = cases.run(tx, params, grads)
    cases.agree(again, history)
    other, _ = cases.run(SET(inner, 0.4, jax.random.key(4)), params, grads)
    assert any((m != history[-1][1][k]).any() for k, m in other[-1][1].items())


def test_set_draws_evenly():
    params = {'w': np.ones((10, 10), np.float32)}
    quiet, steps = {'w': jnp.zeros((10, 10))}, 2000
    tx = gradual.sparse_evolution(
        optax.sgd(0.0), 0.2, KEY, schedule=gradual.periodic(1), fraction=0.5
    )
    start, state = gradual.start(tx, jax.tree.map(jnp.asarray, params))

    def step(carry, _):
        weights, state = cases.stepper(tx)(*carry, quiet)
        masks = state.pruned.masks['w']
        weights = {'w': jnp.where(masks, 1.0, 0.0)}  # equal: the first ten always stay
        return (weights, state), masks

    _, masks = hasty(lambda c: jax.lax.scan(step, c, length=steps))((start, state))
    masks = np.asarray(masks).reshape(steps, 100)
    grown = np.zeros(100, int)
    candidates = np.zeros(100, int)
    for old, new in itertools.pairwise(masks):
        stays = survivors(np.ones(100), old, 10)
        candidates += ~stays
        grown += new & ~stays
    assert (masks.sum(1) == 20).all()
    rate = 10 / 90  # each of the ninety that are not kept is as likely
    often = candidates > 100
    deviation = (grown - rate * candidates)[often] / np.sqrt(rate * (1 - rate) * candidates[often])
    assert often.sum() > 80
    assert abs(deviation).max() < 4.5
    assert 0.6 < deviation.std() < 1.4


BLOCKS = {'pattern': patterns.blocks((2, 2))}


@pytest.mark.parametrize('method', [SET, RIGL])
def test_blocks_move_as_a_whole(method):
    tx = method(cases.INNER, 0.5, KEY, **BLOCKS)
    history, _ = cases.run(tx, cases.dyadic(0), cases.gradients(6))
    for _, masks in history:
        for k, size in (('a', 24), ('b', 16)):
            mask = masks[k]
            assert mask.sum() == size
            blocks = mask.reshape(mask.shape[0] // 2, 2, mask.shape[1] // 2, 2)
            assert (blocks.all((1, 3)) == blocks.any((1, 3))).all()
    assert any((history[-1][1][k] != history[0][1][k]).any() for k in 'ab')


ALL = {
    'static': gradual.static,
    'set': SET,
    'rigl': RIGL,
}


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('legacy', [False, True], ids=['typed', 'legacy'])
def test_the_first_forward_pass_is_sparse(name, legacy):
    key = jax.random.PRNGKey(3) if legacy else KEY
    tx, params = ALL[name](cases.INNER, 0.4, key), cases.dyadic(0)
    start, state = gradual.start(tx, params)
    masks = jp.get_masks(state)
    drawn = scores.random(params, KEY)
    jax.tree.map(
        np.testing.assert_array_equal, masks, jp.masks.leaf_top(drawn, 0.4)
    )  # of either kind of key
    for k in 'ab':
        np.testing.assert_array_equal(start[k], np.where(masks[k], params[k], 0))
    np.testing.assert_array_equal(start['bias'], params['bias'])
    if name == 'static':
        history, _ = cases.run(tx, params, cases.gradients(4))
        assert all((m == masks[k]).all() for _, each in history for k, m in each.items())


def test_kinds_of_keys_draw_the_same():
    params, grads = cases.dyadic(0), cases.gradients(4)
    runs = [
        cases.run(SET(cases.INNER, 0.4, key), params, grads)[0]
        for key in (KEY, jax.random.PRNGKey(3))
    ]
    cases.agree(*runs)


@pytest.mark.parametrize('legacy', [False, True], ids=['typed', 'legacy'])
def test_a_donated_state_leaves_the_key(legacy):
    key = jax.random.PRNGKey(5) if legacy else jax.random.key(5)
    tx = SET(cases.INNER, 0.4, key)
    params, state = gradual.start(tx, jax.tree.map(jnp.array, cases.dyadic(0)))
    step = hasty(cases.stepper(tx), donate_argnums=(0, 1))
    for g in cases.gradients(2):
        params, state = step(params, state, g)
    tx.init(params)
    jax.random.uniform(key)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: SET(cases.INNER, 0.5, KEY, fraction=0), r'fraction must be in \(0, 1\), got 0'),
        (lambda: RIGL(cases.INNER, 0.5, KEY, fraction=1.0), r'fraction must be .* got 1\.0'),
        (
            lambda: gradual.rigl(cases.INNER, 0.5, KEY, every=0, end=9),
            'every must be a whole number of steps from 1, got 0',
        ),
        (
            lambda: gradual.rigl(cases.INNER, 0.5, KEY, every=2, end=9.5),
            r'end must be a whole number of steps from 1, got 9\.5',
        ),
        (
            lambda: gradual.rigl(cases.INNER, 0.5, KEY, every=9, end=9),
            'first change at step 9 but no longer from step 9 on',
        ),
    ],
)
def test_wrong_arguments_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize(
    ('density', 'options', 'message'),
    [
        (1.2, {}, r'density must be a number in \(0, 1\], got 1\.2'),
        ({'a': 0.5}, {}, "no density is given for leaf 'b'"),
        ({'*': 0.5, 'c': 0.5}, {}, "rule 'c' matches no leaf"),
        (0.5, {'pattern': patterns.blocks((3,))}, "blocks of 3 do not fit leaf 'b'"),
        (0.5, {'where': lambda path, leaf: False}, 'nothing is prunable'),
    ],
)
def test_errors_come_at_init(name, density, options, message):
    with pytest.raises(ValueError, match=message):
        ALL[name](cases.INNER, density, KEY, **options).init(cases.dyadic(0))


@pytest.mark.parametrize('method', [SET, RIGL])
def test_a_pattern_that_lets_nothing_go_is_an_error(method):
    tx = method(cases.INNER, 0.5, KEY, pattern=patterns.n_of_m(2, 4))
    with pytest.raises(
        ValueError,
        match=r"drop a fraction of 0\.3 and regrow .* take gradual\.prune .* leaf 'a', fewer than",
    ):
        tx.init(cases.dyadic(0))


@pytest.mark.parametrize('method', [SET, RIGL])
def test_a_traced_density_is_an_error(method):
    params = cases.dyadic(0)
    make = lambda density: method(cases.INNER, density, KEY)
    tx = optax.inject_hyperparams(make)(density=0.5)
    with pytest.raises(ValueError, match=r'give it as a Python number; .* static_args'):
        hasty(tx.update)(params, tx.init(params), params)
    tx = optax.inject_hyperparams(make, static_args=('density',))(density=0.5)
    _, state = hasty(tx.update)(params, tx.init(params), params)
    assert jp.masks.density(jp.get_masks(state)) == 0.5


def test_update_needs_params():
    tx = RIGL(cases.INNER, 0.5, KEY)
    with pytest.raises(ValueError, match=r'call tx\.update\(grads, state, params\)'):
        tx.update(cases.dyadic(0), tx.init(cases.dyadic(0)))
