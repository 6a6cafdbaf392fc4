"""Cases at the edges that once went wrong: each names what stays, or the message."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune import allocate, gradual, masks, patterns, scores


def kept(found):
    return {path: int(mask.sum()) for path, mask in jp.tree.present(found)}


def test_iterated_in_one_round_is_the_choice():
    params = {'k': jnp.arange(64.0).reshape(8, 8)}
    once = masks.iterated(scores.magnitude, params, 0.5, rounds=1)
    np.testing.assert_array_equal(once['k'], masks.global_top(params, 0.5)['k'])
    with pytest.raises(ValueError, match=r'rounds must be a whole number from 1, got 2\.5'):
        masks.iterated(scores.magnitude, params, 0.5, rounds=2.5)


@pytest.mark.parametrize('reduced', [1, 4])
def test_a_floor_above_what_masks_keep(reduced):
    found = {'a': jnp.arange(100.0), 'b': jnp.arange(20.0)}
    old = {'a': jnp.ones(100, bool), 'b': jnp.arange(20) < reduced}
    select = lambda old: masks.global_top(found, 0.5, old, floor=0.2)
    assert sum(kept(jax.jit(select)(old)).values()) == 60
    if reduced == 4:
        assert kept(select(old)) == {'a': 56, 'b': 4}
    else:
        with pytest.raises(ValueError, match=r"keeps 4 weights of leaf 'b', of which .* only 1"):
            select(old)


@pytest.mark.parametrize(('n', 'm', 'density', 'expected'), [(2, 4, 0.5, 32), (1, 4, 0.4, 26)])
def test_groups_that_masks_have_pruned_hold_nothing(n, m, density, expected):
    found = {'a': jnp.arange(64.0).reshape(8, 8)}
    old = {'a': jnp.ones((8, 8), bool).at[:4].set(False)}
    select = lambda old: masks.global_top(found, density, old, pattern=patterns.n_of_m(n, m))
    for chosen in (select(old), jax.jit(select)(old)):
        assert kept(chosen) == {'a': expected}
        assert not (chosen['a'] & ~old['a']).any()


@pytest.mark.parametrize('method', [allocate.uniform, allocate.erdos_renyi])
def test_allocations_with_nothing_for_a_leaf_go_on_to_leaf_top(method):
    params = {'a': jnp.ones((100, 100)), 'b': jnp.ones((2, 2))}
    densities = {'a': 0.01, 'b': 0.0}
    if method is allocate.uniform:
        assert method(params, 0.01, allow_empty=True)['b'] == 0
    assert kept(masks.leaf_top(params, densities, allow_empty=True)) == {'a': 100, 'b': 0}
    with pytest.raises(
        ValueError, match=r"density must be a number in \(0, 1\], got 0.0 for leaf 'b'"
    ):
        masks.leaf_top(params, densities)
    empty = {'a': jnp.ones((10, 10)), 'z': jnp.zeros((0, 4))}
    assert kept(masks.leaf_top(empty, method(empty, 0.5))) == {'a': 50, 'z': 0}


@pytest.mark.parametrize(
    'pattern', [patterns.channels(), patterns.channels(reduce='max'), patterns.blocks((1, 2))]
)
def test_patterns_leave_empty_leaves_alone(pattern):
    found = {'a': jnp.ones((10, 10)), 'z': jnp.zeros((0, 4))}
    assert kept(masks.global_top(found, 0.5, pattern=pattern)) == {'a': 50, 'z': 0}


def test_traced_shares_beyond_their_range():
    found = [jnp.arange(100.0)]
    at = jax.jit(lambda p: masks.global_top(found, 0.5, progress=p))
    assert [kept(at(p))['0'] for p in (-1.0, 0.0, 1.0, 1.1, 5.0)] == [100, 100, 50, 50, 50]
    share = jax.jit(lambda d: masks.global_top(found, d))
    assert [kept(share(d))['0'] for d in (-1.0, 1.0, 1.5, 1e30, np.inf)] == [0, 100, 100, 100, 100]


@pytest.mark.parametrize('density', [None, 1j, True, b'1', [0.5], float('nan')])
def test_densities_that_are_no_numbers(density):
    found = {'a': jnp.ones((4, 4))}
    for call in (
        lambda: masks.global_top(found, density),
        lambda: masks.leaf_top(found, density),
        lambda: masks.leaf_top(found, {'a': density}),
        lambda: masks.global_top(found, 0.5, rules={'a': density}),
        lambda: allocate.uniform(found, density),
    ):
        with pytest.raises(ValueError, match='must be a number'):
            call()
    with pytest.raises(ValueError, match='progress must be a number'):
        masks.global_top(found, 0.5, progress=density)


def test_numpy_scores_that_jax_would_round():
    with pytest.raises(ValueError, match=r"leaf 'a' are float64, which JAX would round to float32"):
        masks.global_top({'a': np.array([1.0, 1 + 1e-12])}, 0.5)


def test_only_booleans_are_packed():
    weights = {'k': jnp.full((16, 8), 0.5)}
    with pytest.raises(ValueError, match="masks are float32 at 'k', expected bool"):
        masks.pack(weights)
    assert masks.pack({'k': np.ones((16, 8), bool), 'b': None})['b'] is None


def test_masks_unlike_scores_name_the_first_path():
    with pytest.raises(ValueError, match="masks have no leaf 'a', which scores have"):
        masks.global_top({'a': jnp.ones(4), 'b': jnp.ones(4)}, 0.5, {'c': jnp.ones(4, bool)})


@pytest.mark.parametrize('key', [0, None, np.array([0, 1], np.uint32)])
def test_keys_that_are_none(key):
    with pytest.raises(ValueError, match=r'such as jax\.random\.key\(0\)'):
        gradual.static(optax.sgd(0.1), 0.5, key).init({'a': jnp.ones((4, 4))})


def test_steps_that_an_int32_does_not_hold():
    with pytest.raises(ValueError, match=r'below 2\*\*31'):
        gradual.one_shot(2**40)


def test_leaves_without_a_weight_alone_are_an_error():
    with pytest.raises(ValueError, match=r"the leaves \['a'\] hold no weights to choose from"):
        masks.global_top({'a': jnp.zeros((0, 3))}, 0.3)


@pytest.mark.parametrize('score', [scores.magnitude, scores.lamp, 'magnitude'])
def test_a_score_of_weights_alone_is_told_how_to_be_given(score):
    name = getattr(score, '__name__', score)
    told = rf'but .?{name}.? does not take .* write score=lambda params, grads: \.\.\., such as'
    with pytest.raises(ValueError, match=told):
        gradual.prune(optax.sgd(0.1), 0.5, gradual.one_shot(0), score=score)


@pytest.mark.parametrize('method', [gradual.prune, gradual.straight_through])
def test_a_traced_density_is_an_error(method):
    params = {'a': jnp.ones((4, 4))}
    make = lambda density: method(optax.sgd(0.1), density, gradual.one_shot(0))
    tx = optax.inject_hyperparams(make)(density=0.5)
    with pytest.raises(ValueError, match=r'give it as a Python number; .* static_args'):
        jax.jit(tx.update)(params, tx.init(params), params)


@pytest.mark.parametrize('method', [gradual.prune, gradual.straight_through])
@pytest.mark.parametrize('inner', [1e-3, optax.sgd])
def test_what_is_wrapped_must_be_an_optimizer(method, inner):
    with pytest.raises(ValueError, match=r'expected an optax optimizer to wrap, .* got (0\.001|<)'):
        method(inner, 0.5, gradual.one_shot(0))
