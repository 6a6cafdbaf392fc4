import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from orbax import checkpoint

import jaxprune as jp
from jaxprune import masks, packing

SHAPES = [(8,), (5,), (16, 4), (4, 16), (3, 3, 3, 16), (3, 3, 16, 8), (7, 9), (0, 4), (1, 1), ()]


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape) < 0.5)


@pytest.mark.parametrize('shape', SHAPES)
def test_packing_there_and_back(shape):
    mask = draw(shape)
    packed = packing.pack({'k': mask, 'bias': None})
    assert packed['bias'] is None
    back = packing.unpack(packed)
    assert back['bias'] is None and back['k'].dtype == bool
    np.testing.assert_array_equal(back['k'], mask)


def test_the_bits_by_hand():
    mask = jnp.zeros((16, 2), bool).at[0, 0].set(True).at[9, 0].set(True).at[15, 1].set(True)
    np.testing.assert_array_equal(packing.pack(mask).bits, [[1, 0], [2, 128]])
    odd = packing.pack(jnp.ones((3, 3, 3, 16), bool))
    assert odd.bits.shape == (3, 3, 3, 2)  # the axis of 3 would leave five bits of eight unused


def test_an_eighth_of_the_memory():
    state = jp.pruned(optax.sgd(0.1), packed=True).init(jnp.ones((1000, 400)))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.masks)) == 400_000 / 8


def test_packed_masks_are_taken_wherever_masks_are():
    params = {'a': jax.random.normal(jax.random.key(0), (12, 6)), 'b': jnp.ones(6)}
    plain = masks.global_top(jp.scores.magnitude(params), 0.5)
    packed = masks.pack(plain)
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    same(masks.apply(params, packed), masks.apply(params, plain))
    assert masks.density(packed) == 0.5
    assert jp.report.records(params, packed) == jp.report.records(params, plain)
    within = [masks.global_top(jp.scores.magnitude(params), 0.25, m) for m in (plain, packed)]
    same(*within)
    state = jp.pruned(optax.sgd(0.1), packed).init(params)
    assert packing.is_packed(state.masks)
    same(jp.get_masks(state), plain)
    state = jp.set_masks(state, within[0])
    assert packing.is_packed(state.masks)
    same(jp.get_masks(jp.set_masks(state, packed)), plain)
    point = jp.Point(params, state)
    same(jp.rewind.put_masks(point, packed).params, masks.apply(params, plain))


def test_checkpoints_hold_packed_masks(tmp_path):
    params = {'a': jax.random.normal(jax.random.key(0), (12, 6)), 'b': jnp.ones(6)}
    tx = jp.pruned(optax.adam(0.1), packed=True)
    state = jp.set_masks(tx.init(params), masks.global_top(jp.scores.magnitude(params), 0.5))
    as_bytes = serialization.to_bytes(state)
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / 'state', state)
        checkpointer.wait_until_finished()
        by_orbax = checkpointer.restore(tmp_path / 'state', tx.init(params))
    for restored in (by_orbax, serialization.from_bytes(tx.init(params), as_bytes)):
        assert jax.tree.structure(restored) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        assert jp.masks.density(jp.get_masks(restored)) == 0.5


@pytest.mark.parametrize('shape', [(16, 4), (4, 16), (3, 3, 5, 16)])
def test_vmap_needs_no_shape(shape):
    stacked = jnp.stack([draw(shape, seed) for seed in range(3)])
    packed = jax.vmap(packing.pack)(stacked)
    np.testing.assert_array_equal(packing.unpack(packed), stacked)
    np.testing.assert_array_equal(jax.vmap(packing.unpack)(packed), stacked)


@pytest.mark.promotes
def test_packed_training_is_the_same():
    params = {'a': jnp.round(4 * jax.random.normal(jax.random.key(0), (12, 6))), 'b': jnp.ones(6)}
    kept = masks.global_top(jp.scores.magnitude(params), 0.5)
    ends = []
    for packed in (False, True):
        tx = jp.pruned(optax.sgd(0.5, momentum=0.5), kept, packed=packed)
        weights, state = params, tx.init(params)
        for _ in range(3):
            updates, state = jax.jit(tx.update)(weights, state, weights)
            weights = optax.apply_updates(weights, updates)
        ends.append(weights)
    jax.tree.map(np.testing.assert_array_equal, *ends)
