"""Numbers of entries, exact beyond 2**24 and beyond 2**31, wherever the entries lie."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

T = TypeVar('T')
WORD = 2**32  # one more than a uint32 holds
LARGE = WORD  # entries of a leaf that are counted with carries and indexed in parts


class Count(NamedTuple):
    """Numbers of entries, `high * 2**32 + low`: exact without 64-bit mode; two uint32 arrays."""

    high: jax.Array
    low: jax.Array


def from_int(n: int) -> Count:
    """Splits a Python integer into a scalar `Count`.

    Args:
      n: number of entries, in [0, 2**64).

    Returns:
      The same number.

    Raises:
      ValueError: n is negative, or 2**64 or more.
    """
    check(n)
    return Count(jnp.uint32(n // WORD), jnp.uint32(n % WORD))


def check(n: int) -> None:
    """Raises `ValueError` unless a number of entries is in [0, 2**64)."""
    if not 0 <= n < WORD**2:
        raise ValueError(f'a count is {n}, expected an integer in [0, 2**64)')


def to_int(n: Count) -> int:
    """Reads a concrete scalar `Count` back as a Python integer, on the host."""
    return int(n.high) * WORD + int(n.low)


def to_float(n: Count) -> jax.Array:
    """Rounds a `Count`, traced or not, to float32."""
    return n.high.astype(jnp.float32) * jnp.float32(WORD) + n.low.astype(jnp.float32)


@jax.jit  # eager calls would dispatch some operations a leaf
def count(leaves: Sequence[jax.Array]) -> Count:
    """Counts the `True` entries of boolean arrays.

    Args:
      leaves: boolean arrays of any shapes; sharded ones are counted where they lie.

    Returns:
      The number over all leaves, a scalar.
    """
    none = jax.tree.map(lambda n: n[None], from_int(0))
    return sum_by(
        stack([none, *(tally(leaf) for leaf in leaves)]), lambda n: jnp.sum(n, (0, 1), jnp.uint32)
    )


def share(density: jax.Array | float, total: int) -> Count:
    """Rounds density · total to the nearest integer, halves to even, without any other rounding.

    A float32 density is m · 2^-s with an integer m < 2^24: the product m · total is held in limbs
    of 16 bits, then shifted. A Python float is first rounded to float32, so jit changes nothing.

    Args:
      density: share in [0, 1], a scalar; may be traced; beyond its range the nearer end.
      total: number of entries, in [0, 2**64).

    Returns:
      The number of entries to keep, at most `total`.

    Raises:
      ValueError: total is negative, or 2**64 or more.
    """
    check(total)
    density = jnp.clip(jnp.asarray(density, jnp.float32), 0.0, 1.0)
    bits = lax.bitcast_convert_type(density, jnp.uint32)
    exponent, m = bits >> 23, bits & (2**23 - 1)
    m = jnp.where(exponent > 0, m | 2**23, m)
    shift = jnp.minimum(150 - jnp.maximum(exponent, 1), 96)  # the product is below 2**88
    return _shift_half_even(_product(m, total), shift)


def tally(*bits: jax.Array) -> Count:
    """Counts each of several boolean arrays of one shape, in one pass; a Count of shape (n,)."""
    if math.prod(bits[0].shape) >= LARGE:
        return stack([_tally_in_parts(b) for b in bits])
    together, apart = lambda: _tally_together(*bits), lambda: _tally_apart(*bits)
    if jax.device_count() > 1:  # on CPU too, as separate sums would hold 4 bytes a bit each
        return lax.platform_dependent(cpu=together, default=apart)
    return alone_or_apart(together, apart)


def tally_along(bits: jax.Array, *axes: int) -> Count:
    """Counts the `True` entries along axes with carries: a sum alone makes XLA on CPU copy them.

    So does one whose other half it knows to be 0, from jax 0.12 on; half of a bit it does not know.
    """
    ones, zero = bits.astype(jnp.uint32), jnp.uint32(0)
    carry = lambda a, b: tuple(add(Count(*a), Count(*b)))
    return Count(*lax.reduce((ones >> 1, ones), (zero, zero), carry, axes))


def alone_or_apart(alone: Callable[[], T], apart: Callable[[], T]) -> T:
    """Calls `apart` where arrays may lie on several devices, for TPU always: it compiles ahead."""
    if jax.device_count() > 1:
        return apart()
    return lax.platform_dependent(tpu=apart, default=alone)


def sum_by(counts: Count, reduce: Callable[[jax.Array], jax.Array]) -> Count:
    """Sums at most 2**16 counts a result by `reduce`, 16 bits at a time lest they overflow."""
    high, upper = reduce(counts.high), reduce(counts.low >> 16)
    lower = reduce(counts.low & 0xFFFF)
    upper += lower >> 16
    return Count(high + (upper >> 16), (upper << 16) | (lower & 0xFFFF))


def add(a: Count, b: Count) -> Count:
    """Adds two numbers."""
    low = a.low + b.low
    return Count(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def subtract(a: Count, b: Count) -> Count:
    """Subtracts b from a, which is at least b."""
    return Count(a.high - b.high - (a.low < b.low).astype(jnp.uint32), a.low - b.low)


def scale(n: Count, factors: Sequence[int]) -> Count:
    """Multiplies each number along the first axis by its own integer; products below 2**64."""
    if all(f == 1 for f in factors):
        return n
    by = each(lambda f: f.reshape(-1, *[1] * (n.low.ndim - 1)), constants(factors))
    return times(n, by)


def times(a: Count, b: Count) -> Count:
    """Multiplies two numbers modulo 2**64, in limbs of 16 bits."""
    upper, lower = (a.low >> 16, b.low >> 16), (a.low & 0xFFFF, b.low & 0xFFFF)
    cross = upper[0] * lower[1], lower[0] * upper[1]
    middle = (lower[0] * lower[1] >> 16) + (cross[0] & 0xFFFF) + (cross[1] & 0xFFFF)
    carried = upper[0] * upper[1] + (cross[0] >> 16) + (cross[1] >> 16) + (middle >> 16)
    return Count(a.high * b.low + a.low * b.high + carried, a.low * b.low)


def divide(n: Count, by: Count) -> Count:
    """Divides two scalars, by at least 1, and rounds down: long division, bit by bit."""

    def step(_: Any, state: tuple[Count, Count]) -> tuple[Count, Count]:
        dividend, rest = state  # the quotient's bits move in where the dividend's have moved out
        lost = rest.high >> 31 == 1
        rest = _doubled(rest, dividend.high >> 31)
        enough = lost | ~less(rest, by)
        taken = each(lambda a, b: jnp.where(enough, a, b), subtract(rest, by), rest)
        return _doubled(dividend, enough.astype(jnp.uint32)), taken

    zero = (n.low ^ n.low) | (by.low ^ by.low)  # varies inside shard_map where n or by does
    rest = Count(zero, zero)
    return lax.fori_loop(0, 64, step, (each(jnp.add, n, rest), rest))[0]


def constants(numbers: Sequence[int]) -> Count:
    """Stacks Python integers in [0, 2**64)."""
    for n in numbers:
        check(n)
    return Count(
        jnp.array([n // WORD for n in numbers], jnp.uint32),
        jnp.array([n % WORD for n in numbers], jnp.uint32),
    )


def less(a: Count, b: Count) -> jax.Array:
    """Tells whether a < b."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def differ(a: Count, b: Count) -> jax.Array:
    """Tells whether a and b differ."""
    return (a.high != b.high) | (a.low != b.low)


def stack(counts: Sequence[int | Count]) -> Count:
    """Stacks counts, or Python integers in [0, 2**64), along a new first axis."""
    whole = [n for n in counts if isinstance(n, int)]
    if len(whole) == len(counts):
        return constants(whole)  # at once: eagerly each number would be an array of its own
    return each(
        lambda *n: jnp.stack(n), *(from_int(n) if isinstance(n, int) else n for n in counts)
    )


def each(f: Callable[..., jax.Array], *counts: Count) -> Count:
    """Maps f over the two limbs."""
    return Count(*map(f, *counts))


def at(counts: Count, i: Any) -> Count:
    """Indexes both limbs."""
    return each(lambda n: n[i], counts)


def _tally_apart(*bits: jax.Array) -> Count:
    """By one sum an array, which XLA divides among devices, and fuses but on CPU."""
    low = jnp.stack([jnp.sum(b, dtype=jnp.uint32) for b in bits])
    return Count(jnp.zeros_like(low), low)


def _tally_together(*bits: jax.Array) -> Count:
    """By one reduction of all, which XLA on CPU runs at the speed of memory, without a copy.

    Divided among devices it gathers the count of each, where one sum would be all-reduced.
    """
    ones, axes, zero = [b.astype(jnp.uint32) for b in bits], range(bits[0].ndim), jnp.uint32(0)
    if len(ones) == 1:
        return each(lambda n: n[None], tally_along(bits[0], *axes))
    plus = lambda a, b: tuple(map(jnp.add, a, b))
    low = jnp.stack(lax.reduce(tuple(ones), (zero,) * len(ones), plus, axes))
    return Count(jnp.zeros_like(low), low)


def _tally_in_parts(bits: jax.Array) -> Count:
    """Of an array that 32 bits do not count: its minor axes first, then at most 2**24 parts."""
    first = next(k for k in range(bits.ndim) if math.prod(bits.shape[k + 1 :]) < LARGE) + 1
    parts = jnp.sum(bits, range(first, bits.ndim), dtype=jnp.uint32)
    total = Count(jnp.uint32(0), jnp.uint32(0))
    for byte in range(4):
        low = jnp.sum(parts >> 8 * byte & 0xFF, dtype=jnp.uint32)
        high = low >> 32 - 8 * byte if byte else jnp.zeros_like(low)
        total = add(total, Count(high, low << 8 * byte))
    return total


def _doubled(n: Count, bit: jax.Array) -> Count:
    return Count(n.high << 1 | n.low >> 31, n.low << 1 | bit)


def _product(m: jax.Array, total: int) -> jax.Array:
    """Multiplies m below 2**24 with total below 2**64: six limbs of 16 bits, low first."""
    limbs = [jnp.uint32(0)] * 6
    for i, a in enumerate((m & 0xFFFF, m >> 16)):
        carry = jnp.uint32(0)
        for j in range(4):
            carry += limbs[i + j] + a * jnp.uint32(total >> 16 * j & 0xFFFF)
            limbs[i + j], carry = carry & 0xFFFF, carry >> 16
        limbs[i + 4] = carry
    return jnp.stack(limbs)


def _shift_half_even(limbs: jax.Array, shift: jax.Array) -> Count:
    """Divides by 2**shift, 1 <= shift <= 96, and rounds halves to even."""
    whole, part = (shift - 1) // 16, (shift - 1) % 16  # one bit less: the last tells a half
    index = jnp.arange(6, dtype=jnp.uint32)
    dropped = jnp.where(index < whole, 0xFFFF, jnp.where(index == whole, (1 << part) - 1, 0))
    rest = jnp.any(limbs & dropped.astype(jnp.uint32) != 0)
    padded = jnp.concatenate([limbs, jnp.zeros(6, jnp.uint32)])
    pairs = padded[:-1] | padded[1:] << 16
    doubled = lax.dynamic_slice_in_dim(pairs, whole, 5) >> part & 0xFFFF
    half, odd = doubled[0] & 1 == 1, doubled[0] & 2 == 2
    a, b, c, d = (doubled[:-1] >> 1) | (doubled[1:] & 1) << 15
    up = (half & (rest | odd)).astype(jnp.uint32)
    return add(Count(c | d << 16, a | b << 16), Count(jnp.uint32(0), up))
