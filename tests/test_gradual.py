"""Schedules, and the methods that begin dense: prune, ac_dc, straight_through."""

import functools

import gradual_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import reference_gradual as truth
from compiling import hasty

import jaxprune as jp
from jaxprune import gradual, masks, patterns, scores

pytestmark = pytest.mark.promotes  # optax does

DENSITY = 0.2
SCHEDULE = gradual.cubic(1, 9, 2)
ONE = gradual.cubic(0, 4, 2)
PRUNE = functools.partial(gradual.prune, cases.INNER)
LEAVES = {'choose': masks.leaf_top}
ONLY_A = {'where': lambda path, leaf: path == 'a'}


def progress_at(schedule, step):
    return float(hasty(schedule.progress)(jnp.int32(step)))


def due_steps(schedule, steps):
    return [step for step in range(steps) if bool(schedule.due(jnp.int32(step)))]


@pytest.mark.parametrize(
    ('begin', 'end', 'every', 'initial'), [(0, 10, 1, 0.0), (3, 1003, 10, 0.25), (5, 12, 7, 0.9)]
)
def test_cubic_is_the_equation(begin, end, every, initial):
    schedule = gradual.cubic(begin, end, every, initial=initial)
    due = list(range(begin, end + 1, every))
    assert due_steps(schedule, end + 3 * every) == due
    for step in due:
        expected = truth.cubic(step, begin, end, initial)
        assert progress_at(schedule, step) == pytest.approx(expected, abs=1e-6)


def test_cubic_rises_and_lands_exactly():
    random = np.random.RandomState(0)
    for initial in (0.0, 0.3) * 20:
        begin, every, times = (int(random.randint(1, most)) for most in (50, 20, 300))
        end = begin + every * times
        schedule = gradual.cubic(begin, end, every, initial=initial)
        changes = np.sort(random.randint(0, times, 30))
        progress = np.asarray(
            schedule.progress(jnp.int32([*(begin + every * changes), end, 2 * end]))
        )
        assert (np.diff(progress) >= 0).all()
        assert (progress[-2:] == 1).all()
        expected = [truth.cubic(begin + every * n, begin, end, initial) for n in changes]
        np.testing.assert_allclose(progress[:-2], expected, rtol=0, atol=2e-7)
        assert schedule.due(jnp.int32(end)) and not schedule.due(jnp.int32(end + every))


def test_counts_are_exact_on_the_way():
    leaf, n, keep = jnp.arange(1000.0), 1000, 37
    count = hasty(lambda p: masks.global_top(leaf, keep / n, progress=p).sum())
    shares = [0.0, 1.0, 0.5 / 963, 1.5 / 963, *np.random.RandomState(0).uniform(size=50)]
    for p in np.float32(shares):
        assert int(count(p)) == truth.kept(n, keep, p)


def test_the_schedule_that_jaxpruner_never_ends_lands():
    tx = gradual.prune(optax.sgd(0.0), 0.2, gradual.cubic(2, 14, 4))
    params = {'w': np.random.RandomState(0).normal(size=(25, 40)).astype(np.float32)}
    history, _ = cases.run(tx, params, [params] * 17)
    expected = [truth.kept(1000, 200, truth.cubic(step, 2, 14, 0)) for step in (2, 6, 10, 14)]
    assert cases.counts(history) == [1000] * 2 + [
        n for n, times in zip(expected, (4, 4, 4, 3), strict=True) for _ in range(times)
    ]
    assert expected[-1] == 200


def test_other_schedules():
    assert due_steps(gradual.one_shot(3), 8) == [3]
    assert due_steps(gradual.periodic(3), 8) == [0, 3, 6]
    assert due_steps(gradual.periodic(2, begin=1, end=6), 12) == [1, 3, 5]
    turns = gradual.alternating(2, 10, 2)
    assert due_steps(turns, 16) == [2, 4, 6, 8, 10]
    assert [progress_at(turns, step) for step in (2, 4, 6, 8, 10)] == [1, 0, 1, 0, 1]
    for schedule in (gradual.one_shot(3), gradual.periodic(3)):
        assert progress_at(schedule, 3) == 1


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: gradual.cubic(5, 5, 1), 'ends at step 5, which is not after step 5'),
        (lambda: gradual.cubic(2, 15, 4), r'never lands: .* strides of 4 .* an end such as 18'),
        (lambda: gradual.cubic(-1, 5, 1), 'begin must be a whole number of steps from 0, got -1'),
        (lambda: gradual.cubic(0, 5.0, 1), r'end must be a whole number of steps from 1, got 5\.0'),
        (lambda: gradual.cubic(0, 5, 0), 'every must be a whole number of steps from 1, got 0'),
        (lambda: gradual.cubic(0, 5, True), 'every must be a whole number .* got True'),
        (lambda: gradual.cubic(0, 5, 1, initial=1.5), r'initial must be in \[0, 1\], got 1\.5'),
        (lambda: gradual.one_shot(1.5), r'step must be a whole number of steps from 0, got 1\.5'),
        (lambda: gradual.periodic(0), 'every must be a whole number of steps from 1, got 0'),
        (lambda: gradual.periodic(2, begin=-2), 'begin must be a whole number .* got -2'),
        (lambda: gradual.periodic(2, end=7.5), r'end must be a whole number .* got 7\.5'),
        (lambda: gradual.periodic(2, 5, 4), 'ends at step 4, before it begins at step 5'),
        (lambda: gradual.alternating(0, 6, 2), 'never lands: .* strides of 4 .* such as 8'),
        (lambda: gradual.alternating(0, 6, 1.5), r'every must be a whole number .* got 1\.5'),
        (lambda: PRUNE({'*': 0.5}, ONE), r'densities by path are for choose=masks\.leaf_top'),
        (lambda: gradual.straight_through(cases.INNER, {'*': 0.5}, ONE), 'densities by path'),
        (
            lambda: gradual.ac_dc(cases.INNER, 0.2, begin=4, end=2, every=1),
            'ends at step 2, which is not after step 4',
        ),
    ],
)
def test_wrong_arguments_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def simulated(params, grads, change):
    return truth.train(params, grads, cases.dense(params), change)


def test_global_pruning_is_the_simulation():
    params, grads = cases.dyadic(0), cases.gradients(12)
    keep = round(DENSITY * 80)

    def change(step, w, g, now):
        if step not in (1, 3, 5, 7, 9):
            return None
        room = truth.kept(80, keep, progress_at(SCHEDULE, step))
        leaves = [truth.within(np.abs(w[k]), now[k]) for k in now]
        return dict(zip(now, reference.top(leaves, room), strict=True))

    history, _ = cases.run(gradual.prune(cases.INNER, DENSITY, SCHEDULE), params, grads)
    cases.agree(history, simulated(params, grads, change))
    cases.assert_nested(history)
    assert cases.counts(history)[9:] == [keep] * 3


def leafwise(score, keeps, schedule, due):
    """Changes masks leaf by leaf to counts of their own."""

    def change(step, w, g, now):
        if step not in due:
            return None
        p, new = progress_at(schedule, step), {}
        for k, mask in now.items():
            room = truth.kept(mask.size, keeps[k], p)
            (new[k],) = reference.top([truth.within(score(k, w, g), mask)], room)
        return new

    return change


def test_leafwise_pruning_with_gradients_of_a_loss():
    random = np.random.RandomState(0)
    params, target = (
        {k: random.normal(size=s).astype(np.float32) for k, s in cases.SHAPES.items()}
        for _ in range(2)
    )
    loss_gradient = lambda w: {k: w[k] - target[k] for k in w}
    densities = jp.allocate.erdos_renyi(params, DENSITY)
    assert densities['a'] != densities['b']
    keeps = {k: round(d * params[k].size) for k, d in densities.items()}
    change = leafwise(lambda k, w, g: np.abs(w[k]), keeps, SCHEDULE, range(1, 10, 2))
    tx = gradual.prune(cases.INNER, densities, SCHEDULE, choose=masks.leaf_top)
    history, _ = cases.run(tx, params, [loss_gradient] * 12)
    expected = simulated(params, [loss_gradient] * 12, change)
    cases.agree(history, expected, rtol=1e-5, atol=1e-6)
    cases.assert_nested(history)


@pytest.mark.parametrize('running', [True, False])
def test_scores_of_gradients(running):
    score = scores.movement if running else scores.taylor
    params, grads = cases.dyadic(0), cases.gradients(12)
    total = {k: np.zeros_like(w) for k, w in cases.prunable(params).items()}

    def scored(k, w, g):
        return total[k] if running else np.abs(w[k] * g[k])

    choice = leafwise(scored, {'a': 12, 'b': 8}, SCHEDULE, range(1, 10, 2))

    def change(step, w, g, now):
        total.update({k: s - w[k] * g[k] for k, s in total.items()})  # this step's too
        return choice(step, w, g, now)

    tx = gradual.prune(
        cases.INNER, 0.25, SCHEDULE, score=score, choose=masks.leaf_top, running=running
    )
    history, state = cases.run(tx, params, grads)
    cases.agree(history, simulated(params, grads, change))
    cases.assert_nested(history)
    for k in total if running else ():
        np.testing.assert_array_equal(state.memory[k], total[k])


def test_sums_of_scores_are_wide():
    params = {'w': jnp.ones((2, 4), jnp.bfloat16)}
    score = lambda params, grads: scores.magnitude(grads)
    tx = gradual.prune(optax.sgd(0.0), 0.5, gradual.one_shot(400), score=score, running=True)
    grads = {'w': jnp.full((2, 4), 0.5, jnp.bfloat16)}

    def step(state, _):
        return tx.update(grads, state, params)[1], None

    state, _ = hasty(lambda s: jax.lax.scan(step, s, length=1000))(tx.init(params))
    assert state.memory['w'].dtype == jnp.float32
    np.testing.assert_array_equal(state.memory['w'], 500.0)


def test_n_of_m_comes_group_by_group():
    params, grads = cases.dyadic(0, {'a': (8, 6)}), cases.gradients(8, {'a': (8, 6)})
    schedule, choose = (
        gradual.cubic(0, 6, 1),
        functools.partial(masks.global_top, pattern=patterns.n_of_m(2, 4)),
    )

    def change(step, w, g, now):
        if step > 6:
            return None
        keep = truth.kept(48, 24, progress_at(schedule, step))
        return {'a': truth.n_of_m(np.abs(w['a']), now['a'], 2, 4, keep)}

    history, _ = cases.run(gradual.prune(cases.INNER, 0.5, schedule, choose=choose), params, grads)
    cases.agree(history, simulated(params, grads, change))
    cases.assert_nested(history)
    groups = [np.asarray(m['a']).reshape(2, 4, 6).sum(1) for _, m in history]
    assert all(((g == 2) | (g == 4)).all() for g in groups)
    assert (groups[0] == 4).all() and (groups[-1] == 2).all()
    assert 0 < (groups[1] == 2).sum() < 12


def test_n_of_m_at_one_hundredth_prunes_few_groups():
    params = {'w': np.random.RandomState(0).normal(size=(40, 50)).astype(np.float32)}
    choose = functools.partial(masks.global_top, pattern=patterns.n_of_m(2, 4))
    tx = gradual.prune(optax.sgd(0.0), 0.99, gradual.one_shot(0), choose=choose)
    history, _ = cases.run(tx, params, [params])
    groups = history[0][1]['w'].reshape(10, 4, 50).sum(1)
    assert (groups == 2).sum() == 10  # of 500, and 20 of 2000 weights


def test_patterns_and_densities_by_path():
    params, grads = cases.dyadic(3), cases.gradients(8)
    schedule = gradual.cubic(0, 6, 2)
    choose = functools.partial(masks.leaf_top, pattern={'a': patterns.blocks((2, 3))})
    tx = gradual.prune(cases.INNER, {'a': 0.25, 'b': 0.5}, schedule, choose=choose)

    def change(step, w, g, now):
        if step not in (0, 2, 4, 6):
            return None
        p = progress_at(schedule, step)
        a = truth.blocks(np.abs(w['a']), now['a'], (2, 3), truth.kept(48, 12, p))
        (b,) = reference.top([truth.within(np.abs(w['b']), now['b'])], truth.kept(32, 16, p))
        return {'a': a, 'b': b}

    history, _ = cases.run(tx, params, grads)
    cases.agree(history, simulated(params, grads, change))
    cases.assert_nested(history)
    assert [int(history[-1][1][k].sum()) for k in 'ab'] == [12, 16]


@pytest.mark.parametrize(
    ('tx', 'message'),
    [
        (PRUNE(1.5, ONE), r'density must be a number in \(0, 1\], got 1\.5'),
        (PRUNE(0.0, ONE), r'density must be a number in \(0, 1\], got 0\.0'),
        (PRUNE({'a': 0.5}, ONE, **LEAVES), "no density is given for leaf 'b'"),
        (PRUNE({'*': 0.5, 'c': 1.0}, ONE, **LEAVES), "rule 'c' matches no leaf"),
        (PRUNE(0.5, ONE, where=lambda path, leaf: False), 'nothing is prunable'),
        (PRUNE(0.5, ONE, score=scores.taylor, **ONLY_A), "score and where= covers leaf 'b'"),
        (
            PRUNE(
                0.5, ONE, choose=functools.partial(masks.leaf_top, pattern=patterns.blocks((3,)))
            ),
            r"blocks of 3 do not fit leaf 'b' of shape \(4, 8\)",
        ),
        (
            PRUNE(
                0.4, ONE, choose=functools.partial(masks.leaf_top, pattern=patterns.n_of_m(2, 4))
            ),
            "asks for 19 weights of leaf 'a', fewer than the 24 that n of m always keeps",
        ),
        (
            PRUNE(0.4, ONE, choose=functools.partial(masks.global_top, floor=0.5)),
            r'that a floor of 0\.5 keeps',
        ),
        (gradual.ac_dc(cases.INNER, 2.0, begin=0, end=4, every=2), 'density must be .* got 2.0'),
        (gradual.straight_through(cases.INNER, -1.0, ONE), r'density must be .* got -1\.0'),
    ],
)
def test_errors_come_at_init(tx, message):
    with pytest.raises(ValueError, match=message):
        tx.init(cases.dyadic(0))


@pytest.mark.parametrize('method', [gradual.prune, gradual.straight_through])
def test_update_needs_params(method):
    tx = method(cases.INNER, 0.5, ONE)
    with pytest.raises(ValueError, match=r'call tx\.update\(grads, state, params\)'):
        tx.update(cases.dyadic(0), tx.init(cases.dyadic(0)))


def test_ac_dc_is_the_simulation():
    params, grads = cases.dyadic(5), cases.gradients(12)

    def change(step, w, g, now):
        if step in (1, 5, 9):
            return dict(zip(now, reference.top([np.abs(w[k]) for k in now], 16), strict=True))
        return cases.dense(params) if step in (3, 7) else None

    tx = gradual.ac_dc(cases.INNER, DENSITY, begin=1, end=9, every=2)
    history, _ = cases.run(tx, params, grads)
    cases.agree(history, simulated(params, grads, change))
    assert cases.counts(history) == [80, 16, 16, 80, 80, 16, 16, 80, 80, 16, 16, 16]


def test_weights_return_with_the_moments_of_init():
    params, grads = cases.dyadic(5, {'w': (6, 6)}), cases.gradients(4, {'w': (6, 6)})
    tx = gradual.ac_dc(optax.adam(0.125), 0.5, begin=0, end=4, every=2)
    _, state = cases.run(tx, params, grads[:2])
    kept, before = np.asarray(jp.get_masks(state)['w']), state.pruned.inner_state[0]
    held = jax.tree.map(jnp.asarray, jp.masks.apply(params, jp.get_masks(state)))
    _, state = cases.run(tx, held, grads[2:3], state)
    after, g = state.pruned.inner_state[0], grads[2]['w']
    assert jp.masks.density(jp.get_masks(state)) == 1.0
    for old, new, one, rate in (
        (before.mu, after.mu, g, 0.1),
        (before.nu, after.nu, g**2, 0.001),
    ):
        expected = (1 - rate) * np.where(kept, old['w'], 0) + rate * one
        np.testing.assert_allclose(new['w'], expected, rtol=1e-6, atol=1e-7)
        assert (np.asarray(old['w'])[kept] != 0).any()


@pytest.mark.parametrize('begin', [0, 2])
def test_straight_through_is_the_slow_loop(begin):
    params, target = cases.dyadic(7), cases.dyadic(8)
    schedule = gradual.cubic(begin, begin + 4, 2)
    loss_gradient = lambda w: {k: w[k] - target[k] for k in w}

    def choose(step, w):
        if step not in range(begin, begin + 5, 2):
            return None
        room = truth.kept(80, 16, progress_at(schedule, step))
        leaves = [np.abs(w[k]) for k in 'ab']
        return dict(zip('ab', reference.top(leaves, room), strict=True))

    tx = gradual.straight_through(optax.sgd(0.25), DENSITY, schedule)
    history, state = cases.run(tx, params, [loss_gradient] * 8)
    expected = truth.straight_through(
        params, [loss_gradient] * 8, choose(0, params) or cases.dense(params), choose
    )
    cases.agree(history, expected)
    assert (np.asarray(state.memory['a'])[~history[-1][1]['a']] != 0).any()


def test_straight_through_brings_weights_back():
    params, grads = cases.dyadic(7), cases.gradients(8)
    adam = optax.adam(0.125)
    tx = gradual.straight_through(adam, DENSITY, gradual.periodic(1))
    sparse, state = gradual.start(tx, jax.tree.map(jnp.asarray, params))
    assert cases.counts([(sparse, cases.prunable(jp.get_masks(state)))]) == [16]
    (expected,) = [
        dict(zip('ab', reference.top([np.abs(params[k]) for k in 'ab'], 16), strict=True))
    ]
    for k, mask in expected.items():
        np.testing.assert_array_equal(sparse[k], np.where(mask, params[k], 0))
    history, state = cases.run(tx, params, grads)
    assert cases.counts(history) == [16] * 8
    assert any((history[i + 1][1]['a'] > history[i][1]['a']).any() for i in range(7))
    dense, inner = jax.tree.map(jnp.asarray, params), adam.init(params)
    for g in grads:  # these gradients do not depend on the weights: θ trains as if alone
        updates, inner = adam.update(g, inner, dense)
        dense = optax.apply_updates(dense, updates)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state.memory, dense)
    for k, mask in history[-1][1].items():
        expected = np.where(mask, state.memory[k], 0)
        np.testing.assert_allclose(history[-1][0][k], expected, rtol=1e-6)
