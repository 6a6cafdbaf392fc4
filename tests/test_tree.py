import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxprune import tree


def test_names_leaves_of_any_tree():
    leaves = tree.named_leaves({'b': (jnp.ones(2), None), 'a': [jnp.ones(3)]})
    assert [path for path, _ in leaves] == ['a/0', 'b/0', 'b/1']
    assert leaves[2][1] is None
    assert [path for path, _ in tree.named_leaves(jnp.ones(3))] == ['']


@pytest.mark.parametrize(
    ('leaf', 'expected'),
    [
        (jnp.ones((2, 2)), True),
        (jnp.ones((3, 3, 1, 8), jnp.bfloat16), True),
        (jnp.ones(5), False),
        (jnp.ones((2, 2), jnp.int32), False),
        (jnp.ones((2, 2), bool), False),
        (jnp.float32(1), False),
    ],
)
def test_prunable_by_default(leaf, expected):
    assert tree.prunable('any', leaf) is expected


@pytest.mark.parametrize('name', ['bias', 'scale', 'q_bias', 'bias/value', '0/scale/value'])
def test_what_is_called_bias_or_scale_is_not_prunable(name):
    assert not tree.prunable(name, jnp.ones((4, 8)))
    assert tree.prunable(
        name.replace('bias', 'kernel').replace('scale', 'kernel'), jnp.ones((4, 8))
    )


def test_biases_of_heads_are_not_prunable():
    linen = nn.MultiHeadDotProductAttention(num_heads=2)
    given = linen.init(jax.random.key(0), jnp.ones((1, 3, 8)))
    of_nnx = nnx.state(nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0)), nnx.Param)
    for params in (given, of_nnx):
        names = [path for path, _ in tree.present(tree.map_prunable(lambda p, _: p, params))]
        assert len(names) == 4 and all('kernel' in path for path in names)


def test_maps_prunable_leaves_only():
    params = {'dense': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}, 'none': None}
    found = tree.map_prunable(lambda path, leaf: (path, leaf.shape), params)
    assert found == {'dense': {'kernel': ('dense/kernel', (2, 3)), 'bias': None}, 'none': None}


def test_the_predicate_sees_path_and_leaf():
    params = {'first': jnp.ones((2, 2)), 'last': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
    found = tree.map_prunable(
        lambda path, _: path, params, where=lambda path, leaf: path != 'last' and leaf.ndim == 2
    )
    assert found == {'first': 'first', 'last': None, 'bias': None}


def test_nothing_prunable_names_the_leaves():
    with pytest.raises(ValueError, match=r"nothing is prunable among the 1 leaves \{'b': \(3,\)\}"):
        tree.map_prunable(lambda _, leaf: leaf, {'b': jnp.ones(3), 'n': None})


def test_a_leaf_that_is_no_array_is_named():
    with pytest.raises(ValueError, match="leaf 'name' is 'dense', a str: make it an array"):
        tree.map_prunable(lambda _, leaf: leaf, {'kernel': jnp.ones((2, 2)), 'name': 'dense'})


def test_covered_by_masks():
    masks = {'a': jnp.ones((2, 2), bool), 'b': None}
    assert tree.covered_by(masks)('a', None)
    assert not tree.covered_by(masks)('b', None)


def test_paths_of_nnx_end_in_value():
    params = nnx.state(nnx.List([nnx.Linear(4, 4, rngs=nnx.Rngs(0)) for _ in range(2)]), nnx.Param)
    for rule in ('0/kernel/value', '0/kernel*'):
        paths = [path for path, _ in tree.named_leaves(params) if 'kernel' in path]
        assert tree.by_path({rule: 1.0}, paths) == {'0/kernel/value': 1.0}


def test_nnx_state():
    state = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    found = tree.map_prunable(lambda _, leaf: leaf > 0, state)
    kernels = [leaf for path, leaf in tree.named_leaves(found) if 'kernel' in path]
    assert [leaf.shape for leaf in kernels] == [(3, 2)]
    assert [leaf for path, leaf in tree.named_leaves(found) if 'bias' in path] == [None]


@pytest.mark.parametrize(
    ('masks', 'message'),
    [
        ({'a': jnp.ones((2, 2), bool)}, "masks have no leaf 'b', which params have"),
        (
            {'a': jnp.ones((2, 2), bool), 'b': None, 'c': None},
            "masks have a leaf 'c', which params do not have",
        ),
        (
            {'a': jnp.ones((2, 3), bool), 'b': None},
            r"masks have shape \(2, 3\) at 'a' where params have \(2, 2\)",
        ),
    ],
)
def test_unlike_trees_are_named(masks, message):
    with pytest.raises(ValueError, match=message):
        tree.check_like(masks, {'a': jnp.ones((2, 2)), 'b': jnp.ones(2)})


def test_the_trees_have_the_names_they_are_given():
    with pytest.raises(ValueError, match="scores have no leaf 'a', which weights have"):
        tree.check_like({}, {'a': jnp.ones(2)}, name='scores', like='weights')


def test_like_trees_pass():
    params = {'a': jnp.ones((2, 2)), 'b': jnp.ones(2), 'n': None}
    tree.check_like({'a': jnp.ones((2, 2), bool), 'b': None, 'n': None}, params)
    tree.check_like(jax.tree.map(lambda _: None, params), params)
