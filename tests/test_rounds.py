import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune import rounds

pytestmark = pytest.mark.promotes  # optax does

STEPS = 4
TX = jp.pruned(optax.sgd(optax.piecewise_constant_schedule(0.5, {2: 0.1}), momentum=0.9))


def first_point():
    params = {'kernel': jax.random.normal(jax.random.key(0), (10, 10)), 'bias': jnp.ones(10)}
    return jp.Point(params, TX.init(params), {'mean': jnp.zeros(3)})


def count_of(point):
    return int(point.opt_state.inner_state[1].count)


def train(point, level=0):
    del level
    params, opt_state, extra = point
    for _ in range(STEPS):
        updates, opt_state = TX.update(params, opt_state, params)
        params = optax.apply_updates(params, updates)
    return jp.Point(params, opt_state, jax.tree.map(lambda x: x + 1, extra))


def test_geometric_plan_by_hand():
    assert rounds.geometric(0.5, 3) == (0.5, 0.25, 0.125)


@pytest.mark.parametrize('rate', [0, 1, -0.5, 1.5])
def test_geometric_refuses_other_rates(rate):
    with pytest.raises(ValueError, match=r'rate must be in \(0, 1\)'):
        rounds.geometric(rate, 3)


def test_geometric_refuses_no_levels():
    with pytest.raises(ValueError, match='levels must be at least 1, got 0'):
        rounds.geometric(0.8, 0)


def test_plans_of_any_kind():
    assert rounds.check_plan(np.array([0.5, 0.25])) == (0.5, 0.25)
    assert rounds.check_plan(2.0**-level for level in (1, 2)) == (0.5, 0.25)


@pytest.mark.parametrize(
    ('plan', 'message'),
    [
        ([], 'the plan has no densities'),
        ([0.5, 0.0], 'level 2 has density 0.0'),
        ([1.5], 'level 1 has density 1.5'),
        ([0.8, 0.8], 'level 2 has density 0.8, not below the 0.8 of level 1'),
    ],
)
def test_bad_plans_are_refused_before_training(plan, message):
    with pytest.raises(ValueError, match=message):
        rounds.iterate(first_point(), train, plan, rounds.lr_rewind())


def test_densities_are_absolute_and_masks_nested():
    plan, before = rounds.geometric(0.8, 6), np.ones((10, 10), bool)
    for level, point in rounds.iterate(train(first_point()), train, plan, rounds.lr_rewind()):
        mask = np.asarray(jp.get_masks(point.opt_state)['kernel'])
        assert mask.sum() == round(100 * 0.8**level)
        assert not (mask & ~before).any()
        assert (np.asarray(point.params['kernel'])[~mask] == 0).all()
        before = mask


def test_pruned_weights_do_not_win_ties_back():
    params = {'kernel': jnp.zeros((4, 4))}  # every kept weight ties with every pruned one
    point = jp.Point(params, TX.init(params))
    masks = {'kernel': jnp.arange(16).reshape(4, 4) >= 8}
    point = jp.rewind.put_masks(point, masks)
    found = rounds.prune_magnitude(point, 0.25)
    np.testing.assert_array_equal(found['kernel'].ravel(), [False] * 8 + [True] * 4 + [False] * 4)


def test_what_each_technique_restores():
    stored = first_point()
    trained = train(stored)
    masks = rounds.prune_magnitude(trained, 0.5)

    point = rounds.lr_rewind()(trained, masks)
    assert count_of(point) == 0
    np.testing.assert_array_equal(point.params['bias'], trained.params['bias'])
    np.testing.assert_array_equal(trace(point)['kernel'], trace(trained)['kernel'])
    np.testing.assert_array_equal(point.extra['mean'], trained.extra['mean'])

    point = rounds.fine_tune(STEPS)(trained, masks)
    assert count_of(point) == STEPS
    np.testing.assert_array_equal(point.params['bias'], trained.params['bias'])

    point = rounds.weight_rewind(stored)(trained, masks)
    assert count_of(point) == 0
    np.testing.assert_array_equal(point.params['bias'], stored.params['bias'])
    np.testing.assert_array_equal(trace(point)['kernel'], trace(stored)['kernel'])
    np.testing.assert_array_equal(point.extra['mean'], stored.extra['mean'])
    for each in (point, rounds.lr_rewind()(trained, masks)):
        jax.tree.map(np.testing.assert_array_equal, jp.get_masks(each.opt_state), masks)
        assert int((each.params['kernel'] != 0).sum()) == 50


def trace(point):
    return point.opt_state.inner_state[0].trace


def test_each_round_starts_where_the_one_before_ended():
    starts, ends = [], []

    def watch(point, level):
        starts.append(point)
        ends.append(train(point))
        return ends[-1]

    dense = train(first_point())
    levels = [level for level, _ in rounds.iterate(dense, watch, [0.5, 0.25], rounds.lr_rewind())]
    assert levels == [1, 2]
    np.testing.assert_array_equal(starts[0].params['bias'], dense.params['bias'])
    np.testing.assert_array_equal(starts[1].params['bias'], ends[0].params['bias'])


def test_another_pruning_function():
    def prune(point, density):
        scores = jp.scores.random(point.params, jax.random.key(1))
        return jp.masks.leaf_top(scores, density, jp.get_masks(point.opt_state))

    [(_, point)] = rounds.iterate(first_point(), train, [0.3], rounds.lr_rewind(), prune=prune)
    assert jp.masks.density(jp.get_masks(point.opt_state)) == 0.3


def test_the_rewind_point_survives_training_that_donates():
    donating = jax.jit(lambda point: jax.tree.map(lambda x: x, point), donate_argnums=0)
    stored = first_point()
    technique = rounds.weight_rewind(stored)
    levels = rounds.iterate(first_point(), lambda point, _: donating(point), [0.5, 0.3], technique)
    assert len(list(levels)) == 2
    assert jnp.isfinite(stored.params['kernel']).all()


def test_moments_that_begin_afresh():
    """One step after the round begins, momentum holds that step's gradient alone."""
    point = train(first_point())
    masks = rounds.prune_magnitude(point, 0.5)
    kept, fresh = (
        rounds.lr_rewind(1, init=init)(point, masks).opt_state for init in (None, TX.init)
    )
    trace = lambda state: state.inner_state[0].trace
    assert (trace(kept)['kernel'] != 0).any()
    assert (trace(fresh)['kernel'] == 0).all()
    assert int(fresh.inner_state[1].count) == int(kept.inner_state[1].count) == 1
    jax.tree.map(np.testing.assert_array_equal, jp.get_masks(fresh), masks)


def test_a_reinitialised_ticket_has_new_weights_under_the_masks():
    point, drawn = train(first_point()), first_point()
    masks = rounds.prune_magnitude(point, 0.5)
    found = rounds.weight_rewind(drawn)(point, masks)
    np.testing.assert_array_equal(
        found.params['kernel'], jnp.where(masks['kernel'], drawn.params['kernel'], 0)
    )
