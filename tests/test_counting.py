"""Exact counts: against Python integers and fractions."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import counting, select

EDGES = [0, 1, 2**16, 2**24, 2**31, 2**32]
NUMBERS = sorted({max(0, e + d) for e in EDGES for d in (-1, 0, 1)} | {2**33 + 5, 3 * 2**40 + 7})


@pytest.mark.parametrize('a', NUMBERS)
def test_counts_are_exact(a):
    assert counting.to_int(counting.from_int(a)) == a
    for b in NUMBERS:
        x, y = counting.from_int(a), counting.from_int(b)
        assert counting.to_int(counting.add(x, y)) == a + b
        assert counting.to_int(counting.subtract(counting.from_int(a + b), y)) == a
        assert bool(counting.less(x, y)) == (a < b)
        assert bool(counting.differ(x, y)) == (a != b)


def test_products_and_quotients_are_exact():
    rng = np.random.default_rng(0)
    wide = lambda n: [
        int(x) >> int(s)
        for x, s in zip(rng.integers(0, 2**64, n, np.uint64), rng.integers(0, 64, n), strict=True)
    ]
    a, b = wide(2000), wide(2000)
    a, b = [2**64 - 1, 2**64 - 1, 2**64 - 2, 0, 5, *a], [1, 2**64 - 1, 2**64 - 1, 3, 5, *b]
    counts = counting.constants(a)
    products = counting.scale(counts, b)
    divisors = [max(n, 1) for n in b]
    quotients = jax.vmap(counting.divide)(counts, counting.constants(divisors))
    for i, (n, f, d) in enumerate(zip(a, b, divisors, strict=True)):
        assert counting.to_int(counting.at(products, i)) == n * f % 2**64
        assert counting.to_int(counting.at(quotients, i)) == n // d
    rows = counting.each(lambda n: n[:6].reshape(2, 3), counts)
    scaled = counting.scale(rows, (3, 2**33 + 1))
    expected = [n * f % 2**64 for n, f in zip(a[:6], [3] * 3 + [2**33 + 1] * 3, strict=True)]
    for i, n in enumerate(expected):
        assert counting.to_int(counting.at(scaled, divmod(i, 3))) == n
    assert counting.scale(rows, (1, 1)) is rows


def test_counts_add_up_by_group():
    counts = counting.stack([counting.from_int(n) for n in NUMBERS])
    groups = tuple(i % 2 for i in range(len(NUMBERS)))
    sums = select.search._by_group(counts, groups, 2)
    for g in range(2):
        assert counting.to_int(counting.at(sums, g)) == sum(NUMBERS[g::2])


def test_count_over_leaves():
    leaves = [jnp.ones((3, 4), bool), jnp.array(True), jnp.array(False), jnp.ones((0, 2), bool)]
    assert counting.to_int(counting.count(leaves)) == 13
    assert counting.to_int(jax.jit(counting.count)(leaves)) == 13
    assert counting.to_int(counting.count([])) == 0
    assert float(counting.to_float(counting.from_int(3 * 2**40))) == 3 * 2.0**40


@pytest.mark.exhaustive
def test_count_past_two_to_the_31():
    leaf = jnp.ones((2**14, 2**14), bool)
    assert counting.to_int(counting.count([leaf] * 10)) == 10 * 2**28
    assert counting.to_int(counting.count([leaf] * 17)) == 17 * 2**28


def test_round_share_against_fractions():
    rng = np.random.default_rng(0)
    share = jax.jit(counting.share, static_argnums=1)
    for total in (0, 1, 7, 10, 25_000_000, 2**24 + 1, 2**31 + 1, 2**32 + 3, 2**40, 2**40 - 1):
        densities = np.concatenate(
            [rng.random(20), 10.0 ** -rng.uniform(0, 46, 10), [0, 1, 0.5, 0.25, 0.1, 0.75, 1.5 / 7]]
        ).astype(np.float32)
        for density in densities:
            expected = round(fractions.Fraction(float(density)) * total)
            assert counting.to_int(share(density, total)) == expected
    assert counting.to_int(counting.share(0.5, 5)) == 2  # 2.5
    assert counting.to_int(counting.share(0.5, 7)) == 4  # 3.5


def test_errors():
    with pytest.raises(ValueError, match=r'a count is -1, expected an integer in \[0, 2\*\*64\)'):
        counting.from_int(-1)
    with pytest.raises(ValueError, match='a count is 18446744073709551616'):
        counting.share(0.5, 2**64)
    with pytest.raises(ValueError, match=r'groups are \[0\], expected an index in \[0, 1\)'):
        select.top([jnp.ones(2)] * 2, [1], (0,))
    with pytest.raises(ValueError, match=r'groups are \[0, 1\], expected an index in \[0, 1\)'):
        select.top([jnp.ones(2)] * 2, [1], (0, 1))
    for sizes in ((1,), (1, 0), (2, -1), (1, 2.0), (1, np.float32(2))):
        with pytest.raises(
            ValueError, match=r'sizes are \[.*\], expected an integer of at least 1'
        ):
            select.top([jnp.ones(2)] * 2, [1], (0, 0), sizes)
    with pytest.raises(ValueError, match='a count is 18446744073709551616'):
        select.top([jnp.ones(2)] * 2, [1], (0, 0), (2**62, 2**63 - 2**62))


def test_counting_holds_no_copy_of_the_mask(monkeypatch):
    """On one device."""
    monkeypatch.setattr(jax, 'device_count', lambda: 1)
    jax.clear_caches()
    compiled = counting.count.lower([jax.ShapeDtypeStruct((1000, 1000), bool)]).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * 1_000_000
