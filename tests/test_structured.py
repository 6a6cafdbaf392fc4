"""Groups, selection, removal and compaction, by hand; removal against zeroing is in the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from structured_cases import case, vectors

import jaxprune as jp
from jaxprune import structured

pytestmark = pytest.mark.promotes


def mlp(params, x):
    x = jax.nn.relu(x @ params['a'] + params['bias'])
    return x @ params['b']


def made(seed=0, hidden=6):
    rng = np.random.default_rng(seed)
    shapes = {'a': (7, hidden), 'bias': (hidden,), 'b': (hidden, 2)}
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


@pytest.fixture
def params():
    return made()


@pytest.fixture
def groups(params):
    return structured.groups(mlp, params, vectors())


def cuts(group):
    return [(cut.path, cut.axis) for cut in group.slices]


def test_a_hidden_layer_is_a_group(groups):
    (group,) = groups.groups
    assert (group.name, group.size, group.inexact) == ('a:1', 6, '')
    assert cuts(group) == [('a', 1), ('bias', 0), ('b', 0)]
    assert groups.kept == {
        ('a', 0): 'it is an axis of an input',
        ('b', 1): 'it is an axis of the output',
    }


def test_heads_and_features_of_fused_attention():
    fn, variables, args, _ = case('fused_attention')
    found = structured.groups(fn, variables, *args)
    assert [(group.name, group.size) for group in found.groups] == [
        ('params/Dense_0/kernel:1.0', 4),
        ('params/Dense_0/kernel:1.1', 3),
    ]
    cut = found.named('params/Dense_0/kernel:1.0').slices[0]
    assert cut.units.tolist() == [unit for _ in range(3) for unit in range(4) for _ in range(3)]


def test_a_unit_of_grouped_queries():
    fn, variables, args, _ = case('grouped_query')
    sizes = {group.name: group.size for group in structured.groups(fn, variables, *args).groups}
    assert sorted(sizes.values()) == [2, 3, 4, 8]  # groups, queries of each, rotary pairs, values


def test_both_axes_of_a_recurrent_kernel_are_cut():
    fn, variables, args, _ = case('lstm')
    (group,) = structured.groups(fn, variables, *args).groups
    assert [axis for path, axis in cuts(group) if path.endswith('hf/kernel')] == [0, 1]


def test_a_batch_as_large_as_a_layer(params):
    found = structured.groups(mlp, params, jnp.ones((6, 7)))
    assert cuts(found.groups[0]) == [('a', 1), ('bias', 0), ('b', 0)]


def test_the_table(groups):
    text = groups.table()
    assert 'a:1' in text and 'bias:0' in text and '10' in text  # 7 + 1 + 2 weights a unit


def test_an_unknown_primitive_is_a_barrier(params):
    def fn(params, x):
        return jnp.linalg.qr(x @ params['a'])[0] @ params['b'] + jax.nn.relu(params['bias']).sum()

    found = structured.groups(fn, params, jnp.ones((8, 7)))
    (barrier,) = found.barriers
    assert barrier.primitive == 'qr' and 'test_structured.py' in barrier.where
    assert 'qr' in found.kept['a', 1] and 'qr' in found.table()
    assert cuts(found.groups[0]) == [('bias', 0)]


def test_leaves_that_are_not_used(params):
    params['other'] = jnp.ones((3, 4))
    found = structured.groups(mlp, params, vectors())
    assert found.unused == ('other',) and found.kept['other', 0] == 'the function does not use it'


def test_a_protected_leaf(params):
    params['c'] = jnp.ones((2, 4))
    params['d'] = jnp.ones((4, 3))
    fn = lambda params, x: jax.nn.relu(mlp(params, x) @ params['c']) @ params['d']
    names = lambda **options: [
        group.name for group in structured.groups(fn, params, vectors(), **options).groups
    ]
    assert names() == ['a:1', 'b:1', 'c:1']
    assert names(protect=['a']) == ['b:1', 'c:1']
    found = structured.groups(fn, params, vectors(), protect=['a'])
    assert found.kept['bias', 0] == 'a is protected'
    with pytest.raises(ValueError, match=r'no unit .* a:1: a is protected'):
        structured.groups(fn, params, vectors(), protect=['a', 'c*'])


def test_softmax_over_units_is_not_exact(params):
    fn = lambda params, x: jax.nn.softplus(x @ params['a'] + params['bias']).sum(-1)
    found = structured.groups(fn, params, vectors())
    assert 'reduce_sum' in found.named('a:1').inexact
    assert 'not exact' in found.table()
    with pytest.raises(ValueError, match='no group has scores'):
        structured.importance(found, jp.scores.magnitude(params))


def test_trace_errors(params):
    with pytest.raises(ValueError, match='depends on values'):
        structured.groups(lambda p, x: x @ p['a'] if x.sum() > 0 else x, params, vectors())
    with pytest.raises(ValueError, match='returns no array'):
        structured.groups(lambda p, x: None, params, vectors())
    with pytest.raises(ValueError, match='no unit of the parameters can be removed'):
        structured.groups(lambda p, x: x @ p['a'], params, vectors())
    with pytest.raises(ValueError, match='matches no leaf'):
        structured.groups(mlp, params, vectors(), protect=['z'])


@pytest.mark.parametrize(
    ('keep', 'message'),
    [
        ({'a:1': np.zeros(6, bool)}, 'removes all 6 units'),
        ({'a:1': np.ones(5, bool)}, r'shape \(5,\), expected booleans \(6,\)'),
        ({'a:1': np.ones(6)}, 'is float64'),
        ({'b:1': np.ones(2, bool)}, 'stays whole: it is an axis of the output'),
        ({'z': np.ones(2, bool)}, r"the groups are \['a:1'\]"),
    ],
)
def test_bad_keep_sets(params, groups, keep, message):
    with pytest.raises(ValueError, match=message):
        structured.shrink(params, groups, keep)


def test_a_function_that_ties_more_says_so(params, groups):
    other = lambda params, x: jnp.sort(x @ params['a'] + params['bias']) @ params['b']
    small, _ = structured.shrink(params, groups, {'a:1': np.arange(6) > 1})
    smaller = structured.rewritten(other, groups, {'a:1': np.arange(6) > 1})
    with pytest.raises(ValueError, match="axis 1 of 'a' cannot be cut in this function: sort"):
        smaller(small, vectors())


def test_smaller_functions_take_smaller_parameters(params, groups):
    _, smaller = structured.shrink(params, groups, {'a:1': np.arange(6) > 1})
    with pytest.raises(ValueError, match=r"have \(7, 6\) at 'a', expected \(7, 4\)"):
        smaller(params, vectors())


def test_another_batch_and_transformations(params, groups):
    keep = {'a:1': np.arange(6) != 2}
    small, smaller = structured.shrink(params, groups, keep)
    zero = {**params, 'b': params['b'].at[2].set(0)}
    for batch in (1, 6, 9):
        x = jnp.ones((batch, 7))
        np.testing.assert_allclose(smaller(small, x), mlp(zero, x), rtol=1e-5)
    each = jax.vmap(smaller, (None, 0))(small, jnp.ones((3, 2, 7)))
    np.testing.assert_allclose(each[0], mlp(zero, jnp.ones((2, 7))), rtol=1e-5)
    hessian = jax.hessian(lambda p: smaller(p, vectors()).sum())(small)
    assert hessian['b']['a'].shape == (5, 2, 7, 5)


def test_optimizer_state_masks_and_averages_shrink(params, groups):
    keep = {'a:1': np.arange(6) < 4}
    tx = jp.pruned(optax.chain(optax.clip(1.0), optax.adamw(1e-2)))
    state = tx.init(params)
    state = tx.update(params, state, params)[1]
    small = structured.narrow((params, state, {'ema': params}), groups, keep)
    own, opt_state, average = small
    assert jp.get_masks(opt_state)['a'].shape == (7, 4)
    np.testing.assert_array_equal(own['b'], params['b'][:4])
    np.testing.assert_array_equal(average['ema']['bias'], params['bias'][:4])
    again = tx.update(own, opt_state, own)[1]  # goes on
    assert jax.tree.structure(again) == jax.tree.structure(state)
    back = structured.widen(small, groups, keep)
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(
        jnp.shape, (params, state, {'ema': params})
    )
    np.testing.assert_array_equal(back[0]['a'], params['a'].at[:, 4:].set(0))


def test_packed_masks_shrink(params, groups):
    masks = jp.masks.global_top(jp.scores.magnitude(params), 0.5)
    keep = {'a:1': np.arange(6) < 4}
    small = structured.narrow(jp.packing.pack(masks), groups, keep)
    np.testing.assert_array_equal(jp.packing.unpack(small)['a'], masks['a'][:, :4])


def test_factored_moments_are_refused(params, groups):
    with pytest.raises(ValueError, match='make this state afresh'):
        structured.narrow({'v_row': {'a': jnp.ones(7)}}, groups, {'a:1': np.arange(6) < 4})


def test_under_a_branch():
    fn, variables, args, _ = case('batch_norm')
    found = structured.groups(fn, variables, *args)
    name = 'params/Conv_0/kernel:3'
    state = structured.narrow(
        optax.sgd(0.1, momentum=0.9).init(variables['params']),
        found,
        {name: np.arange(8) < 3},
        under='params',
    )
    assert state[0].trace['Conv_0']['kernel'].shape[-1] == 3
    with pytest.raises(ValueError, match='no branch'):
        structured.narrow(state, found, {}, under='weights')


def test_importance_against_a_loop():
    fn, variables, args, _ = case('fused_attention')
    found = structured.groups(fn, variables, *args)
    scores = jp.scores.magnitude(variables)
    for name, own in structured.importance(found, scores).items():
        slow = np.zeros(found.named(name).size)
        for cut in found.named(name).slices:
            leaf = dict(jp.tree.present(scores)).get(cut.path)
            for position, unit in enumerate(cut.units if leaf is not None else ()):
                if unit >= 0:
                    slow[unit] += np.abs(np.take(np.asarray(leaf), position, cut.axis)).sum(
                        dtype=np.float64
                    )
        np.testing.assert_allclose(own, slow, rtol=1e-6)
        normal = structured.importance(found, scores, normalize=True)[name]
        np.testing.assert_allclose(normal, slow / slow.mean(), rtol=1e-6)


def test_mean_importance(params, groups):
    own = structured.importance(groups, jp.scores.magnitude(params), reduce='mean')['a:1']
    slow = np.abs(params['a']).mean(0) + np.abs(params['b']).mean(1)
    np.testing.assert_allclose(own, slow, rtol=1e-6)


def test_geometric_median(params, groups):
    own = structured.geometric_median(groups, params)['a:1']
    a = np.asarray(params['a'], np.float64)
    slow = [sum(np.linalg.norm(a[:, i] - a[:, j]) for j in range(6)) for i in range(6)]
    np.testing.assert_allclose(own, slow, rtol=1e-6)


def test_scores_that_are_not_finite(params, groups):
    params['a'] = params['a'].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="leaf 'a' hold 1 values that are not finite"):
        structured.importance(groups, jax.tree.map(jnp.abs, params))


def sizes(keep):
    return {name: int(mask.sum()) for name, mask in keep.items()}


def two():
    """Two groups, of 6 and 4 units, of known importance."""
    fn = lambda p, x: jax.nn.relu(mlp(p, x) @ p['c']) @ p['d']
    params = {**made(), 'c': jnp.ones((2, 4)), 'd': jnp.ones((4, 3))}
    groups = structured.groups(fn, params, vectors())
    ranks = {'a:1': np.array([5.0, 1, 2, 9, 7, 8]), 'c:1': np.array([3.0, 4, 6, 10])}
    return groups, {name: ranks[name] for name in ('a:1', 'c:1')}


def test_the_most_important_units_stay():
    groups, ranks = two()
    keep = structured.top(groups, ranks, 0.6)
    assert keep['a:1'].tolist() == [True, False, False, True, True, True]
    assert keep['c:1'].tolist() == [False, False, True, True]
    assert sizes(structured.top(groups, ranks, 0.5, scope='group')) == {'a:1': 3, 'c:1': 2}
    assert sizes(structured.top(groups, ranks, 0.6, multiple=3)) == {'a:1': 6, 'c:1': 3}
    assert sizes(structured.top(groups, ranks, 0.5, floor=0.5)) == {'a:1': 3, 'c:1': 2}
    assert sizes(structured.top(groups, ranks, 0.2)) == {'a:1': 1, 'c:1': 1}
    only = {'c:1': ranks['c:1']}  # groups that are not ranked stay
    assert sizes(structured.top(groups, only, 0.5)) == {'c:1': 2}


def test_equal_units_keep_the_first():
    groups, _ = two()
    keep = structured.top(groups, {'a:1': np.ones(6)}, 0.5)
    assert keep['a:1'].tolist() == [True] * 3 + [False] * 3


def test_a_budget_is_met_and_used():
    groups, ranks = two()
    count = structured.parameters(groups)
    assert count({}) == 7 * 6 + 6 + 6 * 2 + 2 * 4 + 4 * 3
    assert structured.stored(groups)({}) == 4 * count({})
    for budget in (20, 40, 60, 79):
        keep = structured.within(groups, ranks, budget, count)
        left = sum(sizes(keep).values())
        more = structured.top(groups, ranks, (left + 1) / 10)
        assert count(keep) <= budget < count(more)
    assert sizes(structured.within(groups, ranks, 80, count)) == {'a:1': 6, 'c:1': 4}
    with pytest.raises(ValueError, match=r'budget=10 cannot be met: .* costs 15'):
        structured.within(groups, ranks, 10, count)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'density': 0.0}, r'density=0.0 must be in \(0, 1\]'),
        ({'density': 0.5, 'multiple': 0}, 'multiple=0 must be at least 1'),
        ({'density': 0.5, 'floor': 1.0}, r'floor=1.0 must be in \[0, 1\)'),
        ({'density': 0.5, 'floor': 0.6}, 'floor=0.6 is above density=0.5'),
        ({'density': 0.1}, 'keeps 1 of 10 units, the floor 0.0 keeps 2'),
    ],
)
def test_bad_selections(arguments, message):
    groups, ranks = two()
    with pytest.raises(ValueError, match=message):
        structured.top(groups, ranks, **arguments)


def test_bad_importance():
    groups, ranks = two()
    with pytest.raises(ValueError, match='must hold 6 finite numbers'):
        structured.top(groups, {'a:1': np.ones(4)}, 0.5)
    with pytest.raises(ValueError, match='no group is named'):
        structured.top(groups, {'z': ranks['a:1']}, 0.5)


def test_dead_units_by_hand(params, groups):
    params['a'] = params['a'].at[:, 1].set(0).at[:, 2].set(0)
    params['bias'] = params['bias'].at[1].set(0).at[2].set(1)  # a constant unit is not dead
    params['b'] = params['b'].at[4].set(0)
    keep = structured.dead(groups, params, vectors())
    assert keep['a:1'].tolist() == [True, False, True, True, False, True]
    small, smaller = structured.compact(groups, params, vectors())
    assert small['a'].shape == (7, 4)
    np.testing.assert_allclose(smaller(small, vectors()), mlp(params, vectors()), rtol=1e-6)


@pytest.mark.parametrize('name', ['dense', 'batch_norm', 'lstm', 'fused_attention', 'residual'])
def test_a_pruned_network_shrinks_at_no_loss(name):
    fn, variables, args, _ = case(name)
    found = structured.groups(fn, variables, *args)
    masks = jp.masks.global_top(jp.scores.magnitude(variables), 0.12, allow_empty=True)
    pruned = jp.masks.apply(variables, masks)
    small, smaller = structured.compact(found, pruned, *args)
    before, after = fn(pruned, *args), smaller(small, *args)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    if name in ('dense', 'batch_norm'):
        assert count(small) < count(variables)


def test_death_spreads():
    """A unit that only dead units read is dead."""
    fn = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p['a']) @ p['m']) @ p['b']
    params = {**made(), 'm': jnp.eye(6)}
    del params['bias']
    found = structured.groups(fn, params, vectors())
    params['b'] = params['b'].at[2].set(0)
    keep = structured.dead(found, params, vectors())
    assert {name: np.flatnonzero(~own).tolist() for name, own in keep.items()} == {
        'a:1': [2],
        'm:1': [2],
    }
