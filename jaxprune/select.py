"""The highest entries of a whole list of arrays, exactly and without a sort.

A score becomes an integer that orders like it, and the threshold is found three bits a pass: a pass
reads every score once and counts the entries at or above seven candidates. Counts are exact for any
number of entries. Devices exchange counts and nothing else, however the arrays are sharded.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

WORD = 2**32  # one more than a uint32 holds
LARGE = WORD  # entries of a leaf that are counted with carries and indexed in parts
BITS = 3  # of a threshold, found in one pass: seven counts take the time of one

Maker: TypeAlias = Callable[[], jax.Array]
"""Makes an array of a leaf's shape anew where it is used: kept, it would cost memory."""


class Count(NamedTuple):
    """Numbers of entries, `high * 2**32 + low`: exact without 64-bit mode; two uint32 arrays."""

    high: jax.Array
    low: jax.Array


def to_count(n: int) -> Count:
    """Splits a Python integer into a scalar `Count`.

    Args:
      n: number of entries, in [0, 2**64).

    Returns:
      The same number.

    Raises:
      ValueError: n is negative, or 2**64 or more.
    """
    if not 0 <= n < WORD**2:
        raise ValueError(f'a count is {n}, expected an integer in [0, 2**64)')
    return Count(jnp.uint32(n // WORD), jnp.uint32(n % WORD))


def to_int(n: Count) -> int:
    """Reads a concrete scalar `Count` back as a Python integer, on the host."""
    return int(n.high) * WORD + int(n.low)


def to_float(n: Count) -> jax.Array:
    """Rounds a `Count`, traced or not, to float32."""
    return n.high.astype(jnp.float32) * jnp.float32(WORD) + n.low.astype(jnp.float32)


@jax.jit  # as `_top` below
def count(leaves: Sequence[jax.Array]) -> Count:
    """Counts the `True` entries of boolean arrays.

    Args:
      leaves: boolean arrays of any shapes; sharded ones are counted where they lie.

    Returns:
      The number over all leaves, a scalar.
    """
    none = jax.tree.map(lambda n: n[None], to_count(0))
    return _total(
        _stack([none, *(_tally(leaf) for leaf in leaves)]), lambda n: jnp.sum(n, (0, 1), jnp.uint32)
    )


def round_share(density: jax.Array | float, total: int) -> Count:
    """Rounds density · total to the nearest integer, halves to even, without any other rounding.

    A float32 density is m · 2^-s with an integer m < 2^24: the product m · total is held in limbs
    of 16 bits, then shifted. A Python float is first rounded to float32, so jit changes nothing.

    Args:
      density: share in [0, 1], a scalar; may be traced.
      total: number of entries, in [0, 2**64).

    Returns:
      The number of entries to keep, at most `total`.

    Raises:
      ValueError: total is negative, or 2**64 or more.
    """
    to_count(total)
    bits = lax.bitcast_convert_type(jnp.asarray(density, jnp.float32), jnp.uint32)
    exponent, m = bits >> 23, bits & (2**23 - 1)
    m = jnp.where(exponent > 0, m | 2**23, m)
    shift = jnp.minimum(150 - jnp.maximum(exponent, 1), 96)  # the product is below 2**88
    return _shift_half_even(_product(m, total), shift)


def top(
    leaves: Sequence[jax.Array], keeps: Sequence[Count], groups: Sequence[int]
) -> list[jax.Array]:
    """Marks the highest entries of each group of leaves: in group g exactly `keeps[g]` of them.

    Equal entries are taken from the lower leaf, then from the lower row-major index. Values compare
    exactly, subnormal ones and those of different dtypes too; -0.0 equals 0.0.

    Args:
      leaves: floating-point scores of any shapes and shardings, without NaN.
      keeps: for each group how many entries to mark, at most the size of the group.
      groups: for each leaf the index of its group in `keeps`.

    Returns:
      For each leaf a boolean array of its shape, laid out like it.

    Raises:
      ValueError: not one group index a leaf, or one out of range.
    """
    if len(groups) != len(leaves) or not all(0 <= g < len(keeps) for g in groups):
        raise ValueError(
            f'groups are {list(groups)}, expected an index in [0, {len(keeps)}) into keeps for '
            f'each of the {len(leaves)} leaves'
        )
    if not leaves:
        return []
    return _top([jnp.asarray(leaf) for leaf in leaves], _stack(keeps), tuple(groups))


# The one function of the library that compiles itself: eager calls would dispatch thousands of
# operations. Counts are operands, so that a new density does not compile anew.
@functools.partial(jax.jit, static_argnames='groups')
def _top(leaves: list[jax.Array], keep: Count, groups: tuple[int, ...]) -> list[jax.Array]:
    dtype = _widest(leaves)
    keep = _map(lambda n: _vary(n, leaves), keep)
    thresholds, reached, beyond = _search(leaves, keep, groups, dtype)
    ties = _subtract(reached, beyond)
    room = _subtract(keep, _by_group(beyond, groups, len(keep.low)))
    rooms = _hand_out(room, ties, jnp.array(groups))
    return _masks(leaves, dtype, _key(thresholds, dtype)[jnp.array(groups)], ties, rooms)


def _search(
    leaves: list[jax.Array], keep: Count, groups: tuple[int, ...], dtype: np.dtype
) -> tuple[jax.Array, Count, Count]:
    """Finds for each group the highest threshold that at least `keep` entries reach.

    Ends early where exactly `keep` entries do: then no higher threshold matters.

    Returns:
      The thresholds; for each leaf the number of entries that reach its threshold, and of those
      that reach the next threshold looked at.
    """
    bits, size, index = jnp.finfo(dtype).bits, len(keep.low), jnp.array(groups)

    def unsettled(state: Any) -> jax.Array:
        shift, _, reached, _ = state
        return (shift >= 0) & jnp.any(_differ(_by_group(reached, groups, size), keep))

    def refine(state: Any) -> Any:
        shift, low, reached, beyond = state
        candidates = _candidates(low, shift)
        cuts = _key(candidates, dtype)[index]
        # always true; but out of a branch XLA does not move the keys, to keep them all in memory
        counts = _if(
            shift >= 0,
            lambda: _stack(
                [
                    _tally(*(_keys(leaf, dtype) >= c for c in cut))
                    for leaf, cut in zip(leaves, cuts, strict=True)
                ]
            ),
        )
        enough = ~_less(_by_group(counts, groups, size), _map(lambda n: n[:, None], keep))
        best = jnp.sum(enough, axis=-1, dtype=jnp.int32)
        columns = _map(
            lambda a, b, c: jnp.concatenate([a[:, None], b, c[:, None]], 1), reached, counts, beyond
        )
        low = _pick(jnp.concatenate([low[:, None], candidates], 1), best)
        reached = _map(lambda n: _pick(n, best[index]), columns)
        beyond = _map(lambda n: _pick(n, best[index] + 1), columns)
        return shift - BITS, low, reached, beyond

    none = keep.low & jnp.uint32(0)
    sizes = _stack([to_count(leaf.size) for leaf in leaves])
    sizes = _map(lambda n: n + none[index], sizes)
    shift = _first_shift(bits) + none[0].astype(jnp.int32)
    start = none.astype(f'uint{bits}'), sizes, _map(jnp.zeros_like, sizes)
    _, low, reached, beyond = lax.while_loop(unsettled, refine, (shift, *start))
    return low, reached, beyond


def _hand_out(room: Count, ties: Count, index: jax.Array) -> Count:
    """Gives each leaf what is left of its group's room, up to its own number of ties."""

    def give(room: Count, leaf: tuple[jax.Array, Count]) -> tuple[Count, Count]:
        g, tied = leaf
        left = _at(room, g)
        share = _map(lambda a, b: jnp.where(_less(left, tied), a, b), left, tied)
        return _map(lambda n, m: n.at[g].set(m), room, _subtract(left, share)), share

    return lax.scan(give, room, (index, ties))[1]


def _masks(
    leaves: list[jax.Array], dtype: np.dtype, cuts: jax.Array, ties: Count, rooms: Count
) -> list[jax.Array]:
    """Marks in each leaf what exceeds its cut, and of what equals it the first so many entries."""
    masks = [_keys(leaf, dtype) > cut for leaf, cut in zip(leaves, cuts, strict=True)]
    tied: list[Maker] = [
        functools.partial(_equal, leaf, dtype, cut) for leaf, cut in zip(leaves, cuts, strict=True)
    ]
    fits = ~_differ(ties, rooms)
    for places, size in _places([leaf.shape for leaf in leaves]):
        ends, rooms = _ends(tied, places, size, rooms, fits)
        here = list(zip(tied, places, ends, strict=True))
        masks = [
            m | (t() & (place() < end)) for m, (t, place, end) in zip(masks, here, strict=True)
        ]
        tied = [functools.partial(_within, *each) for each in here]
    return masks


def _ends(
    tied: list[Maker], places: list[Maker], size: int, rooms: Count, fits: jax.Array
) -> tuple[jax.Array, Count]:
    """Finds in each leaf the last place before which at most `rooms` entries are tied.

    Reads only the leaves where some ties, but not all, have room; mostly there is one or none.

    Returns:
      The places, the highest integer where all ties fit; the room left from there on.
    """
    contended = lambda taken: ~fits & _differ(taken, rooms)

    def unsettled(state: Any) -> jax.Array:
        shift, _, taken = state
        return (shift >= 0) & jnp.any(contended(taken))

    def refine(state: Any) -> Any:
        shift, ends, taken = state
        candidates = _candidates(ends, shift)
        open_ = contended(taken)
        before = [
            functools.partial(_tally_before, *each)
            for each in zip(tied, places, candidates, strict=True)
        ]
        counts = _if(
            shift >= 0, lambda: _stack([_if(o, f) for o, f in zip(open_, before, strict=True)])
        )
        fitting = ~_less(_map(lambda n: n[:, None], rooms), counts)
        best = jnp.where(open_, jnp.sum(fitting, axis=1, dtype=jnp.int32), 0)
        ends = _pick(jnp.concatenate([ends[:, None], candidates], 1), best)
        taken = _map(lambda a, b: _pick(jnp.concatenate([a[:, None], b], 1), best), taken, counts)
        return shift - BITS, ends, taken

    start = jnp.where(fits, jnp.uint32(WORD - 1), jnp.uint32(0)), _map(jnp.zeros_like, rooms)
    shift = _first_shift(max(size - 1, 0).bit_length()) + (rooms.low[0] & 0).astype(jnp.int32)
    _, ends, taken = lax.while_loop(unsettled, refine, (shift, *start))
    return ends, _subtract(rooms, taken)


def _equal(leaf: jax.Array, dtype: np.dtype, cut: jax.Array) -> jax.Array:
    return _keys(leaf, dtype) == cut


def _within(tied: Maker, place: Maker, end: jax.Array) -> jax.Array:
    return tied() & (place() == end)


def _tally_before(tied: Maker, place: Maker, ends: jax.Array) -> Count:
    spots = jnp.where(tied(), place(), jnp.uint32(WORD - 1))  # one comparison an end, not two
    return _tally(*(spots < end for end in ends))


def _places(shapes: Sequence[tuple[int, ...]]) -> list[tuple[list[Maker], int]]:
    """Makers of each leaf's row-major index, and its range; past 32 bits in parts, major first."""
    spans = [_spans(shape) for shape in shapes]
    depth = max(map(len, spans))
    spans = [[(0, 0)] * (depth - len(span)) + span for span in spans]
    return [
        (
            [functools.partial(_place, s, *span) for s, span in zip(shapes, level, strict=True)],
            max(math.prod(s[slice(*span)]) for s, span in zip(shapes, level, strict=True)),
        )
        for level in zip(*spans, strict=True)
    ]


def _spans(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Splits the axes into runs whose row-major index a uint32 holds."""
    spans = [(len(shape), len(shape))]
    for axis in reversed(range(len(shape))):
        end = spans[0][1]
        if math.prod(shape[axis:end]) < LARGE:
            spans[0] = axis, end
        else:
            spans.insert(0, (axis, axis + 1))
    return spans


def _place(shape: tuple[int, ...], first: int, end: int) -> jax.Array:
    """The row-major index over the axes in [first, end)."""
    strides = {axis: math.prod(shape[axis + 1 : end]) for axis in range(first, end)}
    index = lambda axis: lax.broadcasted_iota(jnp.uint32, shape, axis)
    terms = [index(axis) * jnp.uint32(stride) for axis, stride in strides.items()]
    return functools.reduce(jnp.add, terms, jnp.zeros(shape, jnp.uint32))


def _if(needed: jax.Array, make: Callable[[], Count]) -> Count:
    """Makes the counts, or zeros where not needed."""
    zero = (needed & False).astype(jnp.uint32)  # varies inside shard_map where `needed` does
    none = lambda: _map(lambda n: jnp.broadcast_to(zero, n.shape), jax.eval_shape(make))
    return lax.cond(needed, make, none)


def _vary(x: jax.Array, leaves: Sequence[jax.Array]) -> jax.Array:
    """Lets x differ between the devices inside shard_map if any leaf does; XLA drops the zeros."""
    zeros = [jnp.sum(jnp.zeros_like(leaf, jnp.uint32), dtype=jnp.uint32) for leaf in leaves]
    return functools.reduce(jnp.add, zeros, x)


def _widest(leaves: Sequence[jax.Array]) -> np.dtype:
    """The dtype that holds the values of every leaf exactly."""
    dtypes = {leaf.dtype for leaf in leaves}
    if len(dtypes) == 1:
        return dtypes.pop()
    return jnp.dtype(jnp.float64 if jnp.dtype(jnp.float64) in dtypes else jnp.float32)


def _keys(leaf: jax.Array, dtype: np.dtype) -> jax.Array:
    """Signed integers that order like the floats: the bits of the magnitude, with its sign."""
    signed = jnp.dtype(f'int{jnp.finfo(dtype).bits}')
    bits = lax.bitcast_convert_type(leaf.astype(dtype), signed)
    return jnp.where(bits < 0, jnp.array(jnp.iinfo(signed).min, signed) - bits, bits)


def _key(threshold: jax.Array, dtype: np.dtype) -> jax.Array:
    """The key of an unsigned threshold, in order; 0 is the lowest key."""
    bits = jnp.finfo(dtype).bits
    sign = jnp.array(2 ** (bits - 1), threshold.dtype)
    return lax.bitcast_convert_type(threshold ^ sign, jnp.dtype(f'int{bits}'))


def _first_shift(bits: int) -> jax.Array:
    """The place of the highest three bits of a number of so many bits; negative for none."""
    return jnp.int32(BITS * (math.ceil(bits / BITS) - 1))


def _candidates(low: jax.Array, shift: jax.Array) -> jax.Array:
    """The next seven thresholds above low, 2**shift apart and held at the highest integer."""
    highest = jnp.array(jnp.iinfo(low.dtype).max, low.dtype)
    low, shift = low[..., None], shift.astype(low.dtype)
    steps = lax.expand_dims(jnp.arange(1, 2**BITS, dtype=low.dtype), range(low.ndim - 1))
    return jnp.where(steps <= (highest - low) >> shift, low + (steps << shift), highest)


def _tally(*bits: jax.Array) -> Count:
    """Counts each of several boolean arrays of one shape, in one pass; a Count of shape (n,)."""
    if not bits[0].ndim:
        bits = tuple(b[None] for b in bits)
    return _tally_for(0)(*bits)


@functools.cache
def _tally_for(batch: int) -> Callable[..., Count]:
    """Counts over all but the first `batch` axes.

    A reduction of several arrays at once is what XLA runs at the speed of memory, without a copy;
    but it would not sum the devices' results by an all-reduce, hence the partitioning by hand.
    """
    tally = custom_partitioning(lambda *bits: _local_tally(bits, batch))

    def partition(mesh: Any, arguments: Any, result: Any) -> Any:
        sharding = arguments[0].sharding
        spec = (*sharding.spec, *[None] * (len(arguments[0].shape) - len(sharding.spec)))
        kept = NamedSharding(sharding.mesh, PartitionSpec(*spec[:batch]))
        names = jax.tree.leaves(spec[batch:])

        def lower(*bits: jax.Array) -> Count:
            counts = _local_tally(bits, batch)
            return _total(counts, lambda n: lax.psum(n, names)) if names else counts

        kept_all = jax.tree.map(lambda _: kept, result)
        return mesh, lower, kept_all, (sharding,) * len(arguments)

    def rule(mesh: Any, arguments: Any, result: Any) -> str:
        del mesh, result
        axes = [f'a{i}' for i in range(len(arguments[0].shape))]
        counts = ' '.join([*axes[:batch], 'n'])
        return ', '.join([' '.join(axes)] * len(arguments)) + f' -> {counts}, {counts}'

    tally.def_partition(partition=partition, sharding_rule=rule)
    batchable = custom_vmap(tally)

    @batchable.def_vmap
    def _(size: int, batched: Any, *bits: jax.Array) -> Any:
        wide = [
            b if is_batched else jnp.broadcast_to(b, (size, *b.shape))
            for b, is_batched in zip(bits, batched, strict=True)
        ]
        counts = _tally_for(batch + 1)(*wide)
        return counts, jax.tree.map(lambda _: True, counts)

    return batchable


def _local_tally(bits: Sequence[jax.Array], batch: int) -> Count:
    """Counts on one device; with carries where 32 bits may not do.

    And for a single array: one sum alone XLA would do in two steps, from a copy in 32 bits.
    """
    shape = bits[0].shape
    ones = [b.astype(jnp.uint32) for b in bits]
    axes = tuple(range(batch, len(shape)))
    zero = jnp.uint32(0)
    if len(ones) > 1 and math.prod(shape[batch:]) < LARGE:
        add = lambda a, b: tuple(map(jnp.add, a, b))
        sums = lax.reduce(tuple(ones), (zero,) * len(ones), add, axes)
        low = jnp.stack(sums, -1)
        return Count(jnp.zeros_like(low), low)
    none = jnp.zeros_like(ones[0])
    carry = lambda a, b: tuple(_add(Count(*a), Count(*b)))
    pairs = [lax.reduce((none, n), (zero, zero), carry, axes) for n in ones]
    return Count(*(jnp.stack(n, -1) for n in zip(*pairs, strict=True)))


def _total(counts: Count, add: Callable[[jax.Array], jax.Array]) -> Count:
    """Sums at most 2**16 counts a result by `add`, 16 bits at a time lest they overflow."""
    high, upper, lower = add(counts.high), add(counts.low >> 16), add(counts.low & 0xFFFF)
    upper += lower >> 16
    return Count(high + (upper >> 16), (upper << 16) | (lower & 0xFFFF))


def _by_group(counts: Count, groups: tuple[int, ...], size: int) -> Count:
    """Sums the counts of the leaves, on the first axis, by group."""
    return _total(counts, lambda n: jax.ops.segment_sum(n, jnp.array(groups), size))


def _add(a: Count, b: Count) -> Count:
    low = a.low + b.low
    return Count(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def _subtract(a: Count, b: Count) -> Count:
    return Count(a.high - b.high - (a.low < b.low).astype(jnp.uint32), a.low - b.low)


def _less(a: Count, b: Count) -> jax.Array:
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def _differ(a: Count, b: Count) -> jax.Array:
    return (a.high != b.high) | (a.low != b.low)


def _stack(counts: Sequence[Count]) -> Count:
    return _map(lambda *n: jnp.stack(n), *counts)


def _map(f: Callable[..., jax.Array], *counts: Count) -> Count:
    return Count(*map(f, *counts))


def _at(counts: Count, i: Any) -> Count:
    return _map(lambda n: n[i], counts)


def _pick(rows: jax.Array, index: jax.Array) -> jax.Array:
    """Takes from each row the entry at its index."""
    return jnp.take_along_axis(rows, index[:, None], axis=1)[:, 0]


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
    return _add(Count(c | d << 16, a | b << 16), Count(jnp.uint32(0), up))
