import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import scores


def test_magnitude_by_hand():
    params = {'kernel': jnp.array([[-3.0, 2.0], [0.5, -0.0]], jnp.bfloat16), 'bias': jnp.ones(2)}
    found = scores.magnitude(params)
    assert found['bias'] is None
    assert found['kernel'].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found['kernel'].astype(np.float32), [[3, 2], [0.5, 0]])


def test_random_is_a_function_of_the_key_and_the_leaf():
    params = (jnp.ones((4, 5)), jnp.ones(3), jnp.ones((4, 5), jnp.bfloat16))
    a, none, b = scores.random(params, jax.random.key(0))
    again, _, _ = scores.random(params, jax.random.key(0))
    other, _, _ = scores.random(params, jax.random.key(1))
    assert none is None
    assert a.dtype == b.dtype == jnp.float32
    np.testing.assert_array_equal(a, again)
    assert not np.array_equal(a, other)
    assert not np.array_equal(a, b)
    assert ((a >= 0) & (a < 1)).all()


@pytest.mark.parametrize('score', [scores.magnitude, lambda p: scores.random(p, jax.random.key(0))])
def test_nothing_prunable_is_an_error(score):
    with pytest.raises(ValueError, match='nothing is prunable'):
        score({'bias': jnp.ones(3)})
