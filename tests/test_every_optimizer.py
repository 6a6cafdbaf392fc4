"""What `pruned`, the gradual wrapper and `rewind_schedule` promise, for all that optax exports."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import hasty
from every_optimizer import (
    EXCLUDED,
    OPTIMIZERS,
    OTHERS,
    PER_EXAMPLE,
    exported,
    make,
    takes_rate,
    update,
    weights,
)
from optax import contrib

import jaxprune as jp
from jaxprune import gradual
from jaxprune.gradual.wrapper import afresh

pytestmark = pytest.mark.promotes  # optax does

# Optimizers under which no kept weight moves, since their updates are zero.
STILL = {'set_to_zero'}

# The optimizers of the default suite; with all, the tests are slow.
FEW = {'MultiSteps', 'adamw', 'lion', 'contrib.prodigy', 'contrib.schedule_free', 'lookahead'}

NOT_FOR_RIGL = {
    'lookahead': 'gradients are of the fast copy of the parameters, masks are for both',
    **dict.fromkeys(PER_EXAMPLE, 'growth needs gradients of the shape of the weights'),
}

# These climb: the smallest weights have the largest gradients, so what RigL drops returns at once.
CLIMBERS = {
    'scale_by_belief',
    'scale_by_param_block_norm',
    'scale_by_rms',
    'scale_by_stddev',
    'scale_by_trust_ratio',
    'contrib.scale_by_acprop',
    'contrib.scale_by_simplified_ademamix',
}

# What optax holds for a parameter in another shape, so that no entry belongs to one weight.
OTHER_SHAPES = {
    'adafactor': 'sums over rows and columns',
    'scale_by_factored_rms': 'sums over rows and columns',
    'sm3': 'maxima over each axis',
    'scale_by_sm3': 'maxima over each axis',
    'novograd': 'one second moment a leaf',
    'scale_by_novograd': 'one second moment a leaf',
    'scale_by_distance_over_gradients': 'one distance a leaf',
    'scale_by_lbfgs': 'pairs of past steps, with inner products over all weights',
    'zero_nans': 'one flag a leaf',
    'contrib.galore': 'moments of projected gradients',
    'contrib.scale_by_galore': 'moments of projected gradients',
}

# Where optax itself cannot tell what belongs to a parameter.
NO_TREE_MAP_PARAMS = {
    'flatten': 'all parameters are one vector',
    'lbfgs': 'init needs a leaf, to know its dtype',
    'lookahead': 'its init logs and wants two copies',
    'monitor': 'init measures the parameters',
    'scale_by_backtracking_linesearch': 'init needs a leaf, to know its dtype',
    'scale_by_zoom_linesearch': 'init needs a leaf, to know its dtype',
}

# Rates that are counted by the counter of the optimizer's own steps, so that moving them would
# also change its bias correction or averages: `rewind_schedule` refuses.
SHARED = {
    'contrib.dadapt_adamw': 'bias correction',
    'contrib.madgrad': 'the weights of its sums, √(count + 1)',
    'contrib.momo': 'its average begins at count 0',
    'contrib.momo_adam': 'bias correction',
    'contrib.prodigy': 'bias correction',
    'contrib.scale_by_madgrad': 'the weights of its sums, √(count + 1)',
}

NUMBERS_ONLY = {
    'optimistic_adam': 'refuses schedules',
    'rprop': 'the rate is the first step size only',
    'scale_by_rprop': 'the rate is the first step size only',
    'sm3': 'fails with a schedule, whatever its annotation says (optax 0.2.8)',
    'contrib.schedule_free_adamw': 'makes its own schedule of warmup_steps',
    'contrib.schedule_free_sgd': 'makes its own schedule of warmup_steps',
}

WITH_RATE = [name for name, given in OPTIMIZERS.items() if not callable(given) and takes_rate(name)]


def unless_few(names, mark=pytest.mark.exhaustive):
    return [name if name in FEW else pytest.param(name, marks=mark) for name in names]


def test_the_tables_name_all_that_optax_exports():
    names, tables = set(exported()), [OPTIMIZERS, EXCLUDED, OTHERS]
    print('\n' + '\n'.join(f'not tested: {name}: {why}' for name, why in EXCLUDED.items()))
    assert names == set().union(*tables)
    assert len(names) == sum(map(len, tables))
    assert EXCLUDED.keys() == {'measure_with_ema'}


def half(params):
    return jp.masks.leaf_top(jp.scores.magnitude(params), 0.5)


def pairs(masks, params):
    """Masks and the weights they are for, as NumPy arrays."""
    found = zip(jp.tree.named_leaves(masks), jp.tree.named_leaves(params), strict=True)
    return [(np.asarray(m), np.asarray(w)) for (_, m), (_, w) in found if m is not None]


def check(masks, params, before, still=False):
    moved = False
    for (mask, now), (_, old) in zip(pairs(masks, params), pairs(masks, before), strict=True):
        assert (now[~mask] == 0).all()
        assert np.isfinite(now).all()
        moved = moved or (now != old)[mask].any()
    assert moved or still


def compiled(tx, name):
    def step(params, state, seed):
        updates, state = update(tx, name, state, params, seed)
        return optax.apply_updates(params, updates), state

    return hasty(step)


@pytest.mark.parametrize('name', unless_few(OPTIMIZERS, pytest.mark.slow))
def test_pruned_weights_are_zero_after_each_update(name):
    params = first = weights(name)  # dense, so the first update must land them on zero
    masks = half(params)
    tx = jp.pruned(make(name), masks)
    state = tx.init(params)
    step = compiled(tx, name)
    for seed in range(3):
        params, state = step(params, state, seed)
        check(masks, params, first, still=seed == 0 or name in STILL)
    jax.tree.map(np.testing.assert_array_equal, jp.get_masks(state), masks)


@pytest.mark.parametrize('name', unless_few(OPTIMIZERS))
def test_dense_masks_change_nothing_and_packed_ones_are_the_same(name):
    params = weights(name)
    plain, wrapped = make(name), jp.pruned(make(name))
    expected, _ = update(plain, name, plain.init(params), params)
    found, _ = update(wrapped, name, wrapped.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

    wide, packed = (jp.pruned(make(name), half(params), packed=p) for p in (False, True))
    expected, _ = update(wide, name, wide.init(params), params)
    found, state = update(packed, name, packed.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jp.packing.is_packed(state.masks)


@pytest.mark.exhaustive
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_regrowth_holds_its_masks(name):
    """What RigL asks of an optimizer, by a change of masks that is light to compile."""
    moved = lambda m: m if m is None else jnp.roll(m.reshape(-1), 1).reshape(m.shape)
    change = lambda now: jp.tree.map_masked(moved, now.masks)
    due = lambda step: (step > 0) & (step % 2 == 0)
    tx = gradual.change_masks(make(name), gradual.Method(half, due, change, regrows=True))
    check_regrowth(tx, name)


@pytest.mark.parametrize('name', unless_few(sorted(OPTIMIZERS.keys() - NOT_FOR_RIGL.keys())))
def test_rigl_holds_its_masks(name):
    inner = optax.chain(make(name), optax.scale(-0.1)) if name in CLIMBERS else make(name)
    check_regrowth(gradual.rigl(inner, 0.5, jax.random.key(0), every=2, end=6, fraction=0.6), name)


def check_regrowth(tx, name):
    params, state = gradual.start(tx, weights(name))
    copies = 2 if name == 'lookahead' else 1
    step, changes = compiled(tx, name), 0
    for seed in range(5):
        old, before = jp.get_masks(state), params
        params, state = step(params, state, seed)
        masks = jp.get_masks(state)
        check(masks, params, before, still=True)
        assert [int(m.sum()) for m, _ in pairs(masks, params)] == [12, 15] * copies
        grown = jax.tree.map(lambda new, old: new & ~old, masks, old)
        assert all((w[g] == 0).all() for g, w in pairs(grown, before))
        changes += any(g.any() for g, _ in pairs(grown, before))
    assert changes == 2


@pytest.mark.slow
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_gradual_pruning_by_leaf_holds_its_masks(name):
    """By the top of a sorted leaf, which is light to compile."""

    def top(found, density, masks, *, progress):
        keep = lambda n: n - jnp.int32(jnp.round(progress * (1 - density) * n))
        least = lambda s: jnp.sort(s, axis=None)[s.size - keep(s.size)]
        return jp.tree.map_masked(
            lambda m, s: m if m is None else m & (s >= least(s)), masks, found
        )

    tx = gradual.prune(make(name), 0.5, gradual.cubic(0, 4, 2), choose=top)
    check_gradual(tx, name, 62 if name == 'lookahead' else 31)


@pytest.mark.parametrize('name', unless_few(OPTIMIZERS))
def test_gradual_pruning_holds_its_masks(name):
    middle = round((108 if name == 'lookahead' else 54) * (1 - 0.5 * 7 / 8))
    check_gradual(gradual.prune(make(name), 0.5, gradual.cubic(0, 4, 2)), name, middle)


def check_gradual(tx, name, middle):
    params = weights(name)
    total = 108 if name == 'lookahead' else 54
    state = tx.init(params)
    step, counts = compiled(tx, name), []
    for seed in range(5):
        before, (params, state) = params, step(params, state, seed)
        check(jp.get_masks(state), params, before, still=True)
        counts.append(sum(int(m.sum()) for m, _ in pairs(jp.get_masks(state), params)))
    assert counts[0] == counts[1] == total
    assert counts[2] == counts[3] == middle
    assert counts[4] == total // 2


@pytest.mark.parametrize('name', unless_few(sorted(OPTIMIZERS.keys() - NO_TREE_MAP_PARAMS.keys())))
def test_afresh_renews_what_optax_says_belongs_to_a_parameter(name):
    tx, params = make(name), weights()
    state, fresh = tx.init(params), tx.init(jax.tree.map(jnp.zeros_like, params))
    _, state = update(tx, name, state, params)
    grown = jax.tree.map(lambda w: jnp.cos(17 * jnp.arange(w.size)).reshape(w.shape) > 0, params)
    masks = {**grown, 'bias': None}
    owners = optax.tree_utils.tree_map_params(
        tx,
        lambda held, g: jax.tree.map(lambda _: g, held),
        state,
        grown | {'bias': jnp.zeros(4, bool)},
        transform_non_params=lambda _: None,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode | list),
    )
    found = afresh(state, fresh, params, masks)
    others = 0
    rows = zip(*map(leaves, (state, fresh, found, owners)), strict=True)
    for old, new, now, owner in rows:
        expected = old
        if owner is not None and owner.shape == old.shape and 'galore' not in name:
            expected = jnp.where(owner, new, old)
        elif owner is not None and owner.any():
            others += 1
        assert (now == expected).all()
    assert (others > 0) == (name in OTHER_SHAPES)


def leaves(tree):
    return jax.tree.leaves(tree, is_leaf=lambda x: x is None)


def counting(calls, scale=0.1):
    """A schedule that notes the steps it is read at."""

    def schedule(count):
        calls.append(int(count))
        return scale / (1 + count)

    return schedule


def take_steps(tx, name, steps):
    params = weights(name)
    state = tx.init(params)
    for seed in range(steps):
        updates, state = update(tx, name, state, params, seed)
        params = optax.apply_updates(params, updates)
    return params, state


def counters(state):
    return [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.integer)]


@pytest.mark.parametrize(
    'name', unless_few([n for n in WITH_RATE if n not in SHARED | NUMBERS_ONLY])
)
def test_the_next_rate_is_that_of_the_step_rewound_to(name):
    calls = []
    tx = jp.pruned(make(name, counting(calls)))
    params, state = take_steps(tx, name, 3)
    rewound = jp.rewind_schedule(state, 7)
    calls.clear()
    update(tx, name, rewound, params)
    assert set(calls) == {7}
    rows = zip(jax.tree.leaves(state), jax.tree.leaves(rewound), strict=True)
    changed = [(old, new) for old, new in rows if not (old == new).all()]
    assert {(int(old), int(new)) for old, new in changed} == {(3, 7)}
    constant = jp.pruned(make(name, 0.1)).init(params)
    assert len(changed) == len(counters(state)) - len(counters(constant))


@pytest.mark.parametrize('name', SHARED)
def test_a_rate_on_the_optimizers_own_counter_is_refused_but_not_injected(name):
    params, state = take_steps(jp.pruned(make(name, counting([]))), name, 3)
    with pytest.raises(ValueError, match='inject_hyperparams'):
        jp.rewind_schedule(state, 7)
    calls = []
    injected = lambda learning_rate: make(name, learning_rate)
    tx = jp.pruned(optax.inject_hyperparams(injected)(learning_rate=counting(calls)))
    params, state = take_steps(tx, name, 3)
    rewound = jp.rewind_schedule(state, 7)
    assert 3 in [int(count) for count in counters(rewound.inner_state.inner_state)]
    calls.clear()
    update(tx, name, rewound, params)
    assert set(calls) == {7}


@pytest.mark.parametrize('name', ['contrib.schedule_free_adamw', 'contrib.schedule_free_sgd'])
def test_the_warmup_of_schedule_free_is_rewound_as_a_whole(name):
    tx = jp.pruned(make(name))
    _, state = take_steps(tx, name, 3)
    rewound = jp.rewind_schedule(state).inner_state
    assert int(rewound.step_count) == 1  # it counts from 1
    _, again = take_steps(tx, name, 1)
    after = jp.rewind_schedule(again, 1).inner_state
    assert int(after.step_count) == 2 == int(again.inner_state.step_count)
    np.testing.assert_array_equal(rewound.max_lr, state.inner_state.max_lr)
    schedules = [
        int(node.count)
        for node in jax.tree.leaves(rewound, is_leaf=is_schedule)
        if is_schedule(node)
    ]
    assert schedules == [0]


def is_schedule(node):
    return isinstance(node, optax.ScaleByScheduleState)


@pytest.mark.parametrize(
    'name', unless_few([n for n in OPTIMIZERS if n not in SHARED | NUMBERS_ONLY])
)
def test_a_constant_rate_is_no_schedule(name):
    scheduled = {'scale_by_schedule'}
    state = jp.pruned(make(name)).init(weights(name))
    if name in scheduled:
        assert jp.rewind_schedule(state) is not None
        return
    with pytest.raises(ValueError, match='there is no schedule'):
        jp.rewind_schedule(state)


def test_eval_params_of_schedule_free_are_masked_again():
    params = weights()
    masks = half(params)
    tx = jp.pruned(contrib.schedule_free_sgd(0.1), masks)
    params, state = take_steps(tx, 'contrib.schedule_free_sgd', 3)
    found = contrib.schedule_free_eval_params(state.inner_state, params)
    assert any((w[~m] != 0).any() for m, w in pairs(masks, found))
    check(masks, jp.masks.apply(found, masks), params)
