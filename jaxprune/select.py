"""The highest entries of a whole list of arrays, exactly and without a sort.

A score becomes an integer that orders like it, and the threshold is found three bits a pass: a pass
reads every score once and counts the entries at or above seven candidates. Devices exchange counts
and nothing else, however the arrays are sharded.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import counting
from jaxprune.counting import Count

BITS = 3  # of a threshold, found in one pass: seven counts take the time of one

Maker: TypeAlias = Callable[[], jax.Array]
"""Makes an array of a leaf's shape anew where it is used: kept, it would cost memory."""


def top(
    leaves: Sequence[jax.Array],
    keeps: Sequence[Count],
    groups: Sequence[int],
    sizes: Sequence[int] | None = None,
) -> list[jax.Array]:
    """Marks the highest entries of each group of leaves: in group g exactly `keeps[g]` of them.

    Equal entries are taken from the lower leaf, then from the lower row-major index. Values compare
    exactly, subnormal ones and those of different dtypes too; -0.0 equals 0.0.

    Where an entry stands for several weights, `keeps` counts weights. All entries of a score are
    marked, from the highest score down, while they fit; of the first score whose entries do not all
    fit, each leaf in order gets as many as the room that is left holds, and nothing below is
    marked. This is exactly `keeps[g]` weights where the sizes in group g are equal and divide it,
    and at most `keeps[g]` elsewhere.

    Args:
      leaves: floating-point scores of any shapes and shardings, without NaN.
      keeps: for each group how many weights to mark, at most those of the group.
      groups: for each leaf the index of its group in `keeps`.
      sizes: for each leaf how many weights each of its entries stands for (a block, a channel), at
        least 1; None for 1 in all.

    Returns:
      For each leaf a boolean array of its shape, laid out like it.

    Raises:
      ValueError: not one group index a leaf, or one out of range; not one size a leaf, or one that
        is no positive integer; 2**64 weights or more in a group.
    """
    if len(groups) != len(leaves) or not all(0 <= g < len(keeps) for g in groups):
        raise ValueError(
            f'groups are {list(groups)}, expected an index in [0, {len(keeps)}) into keeps for '
            f'each of the {len(leaves)} leaves'
        )
    sizes = (1,) * len(leaves) if sizes is None else tuple(sizes)
    if len(sizes) != len(leaves) or not all(isinstance(s, int) and s >= 1 for s in sizes):
        raise ValueError(
            f'sizes are {list(sizes)}, expected an integer of at least 1 for each of the '
            f'{len(leaves)} leaves'
        )
    if not leaves:
        return []
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    for g in range(len(keeps)):  # past 64 bits a count would wrap in silence
        counting.from_int(
            sum(leaf.size * s for leaf, s, h in zip(leaves, sizes, groups, strict=True) if g == h)
        )
    return _top(leaves, counting.stack(keeps), tuple(groups), sizes)


# It compiles itself: eager calls would dispatch thousands of
# operations. Counts are operands, so that a new density does not compile anew.
@functools.partial(jax.jit, static_argnames=('groups', 'sizes'))
def _top(
    leaves: list[jax.Array], keep: Count, groups: tuple[int, ...], sizes: tuple[int, ...]
) -> list[jax.Array]:
    dtype = _widest(leaves)
    keep = counting.each(lambda n: _vary(n, leaves), keep)
    weigh = lambda counts: _by_group(counting.scale(counts, sizes), groups, len(keep.low))
    thresholds, reached, beyond = _search(leaves, keep, groups, weigh, dtype)
    ties = counting.subtract(reached, beyond)
    rooms = _hand_out(counting.subtract(keep, weigh(beyond)), ties, groups, sizes)
    return _masks(leaves, dtype, _key(thresholds, dtype)[jnp.array(groups)], ties, rooms)


def _search(
    leaves: list[jax.Array],
    keep: Count,
    groups: tuple[int, ...],
    weigh: Callable[[Count], Count],
    dtype: np.dtype,
) -> tuple[jax.Array, Count, Count]:
    """Finds for each group the highest threshold that entries of at least `keep` weights reach.

    Ends early where exactly `keep` weights do: then no higher threshold matters.

    Returns:
      The thresholds; for each leaf the number of entries that reach its threshold, and of those
      that reach the next threshold looked at.
    """
    bits, index = jnp.finfo(dtype).bits, jnp.array(groups)

    def unsettled(state: Any) -> jax.Array:
        shift, _, reached, _ = state
        return (shift >= 0) & jnp.any(counting.differ(weigh(reached), keep))

    def refine(state: Any) -> Any:
        shift, low, reached, beyond = state
        candidates = _candidates(low, shift)
        cuts = _key(candidates, dtype)[index]
        # always true; but out of a branch XLA does not move the keys, to keep them all in memory
        counts = _if(
            shift >= 0,
            lambda: counting.stack(
                [
                    counting.tally(*(_keys(leaf, dtype) >= c for c in cut))
                    for leaf, cut in zip(leaves, cuts, strict=True)
                ]
            ),
        )
        enough = ~counting.less(weigh(counts), counting.each(lambda n: n[:, None], keep))
        best = jnp.sum(enough, axis=-1, dtype=jnp.int32)
        columns = counting.each(
            lambda a, b, c: jnp.concatenate([a[:, None], b, c[:, None]], 1), reached, counts, beyond
        )
        low = _pick(jnp.concatenate([low[:, None], candidates], 1), best)
        reached = counting.each(lambda n: _pick(n, best[index]), columns)
        beyond = counting.each(lambda n: _pick(n, best[index] + 1), columns)
        return shift - BITS, low, reached, beyond

    none = keep.low & jnp.uint32(0)
    sizes = counting.stack([counting.from_int(leaf.size) for leaf in leaves])
    sizes = counting.each(lambda n: n + none[index], sizes)
    shift = _first_shift(bits) + none[0].astype(jnp.int32)
    start = none.astype(f'uint{bits}'), sizes, counting.each(jnp.zeros_like, sizes)
    _, low, reached, beyond = lax.while_loop(unsettled, refine, (shift, *start))
    return low, reached, beyond


def _hand_out(room: Count, ties: Count, groups: tuple[int, ...], sizes: tuple[int, ...]) -> Count:
    """Gives each leaf of what is left of its group's room what its ties can use."""
    plain = all(s == 1 for s in sizes)

    def give(room: Count, leaf: tuple[jax.Array, Count, Count, Count]) -> tuple[Count, Count]:
        g, tied, wanted, size = leaf
        left = counting.at(room, g)
        short = counting.less(left, wanted)
        some = short & ~counting.less(left, size)  # of few leaves, and a division is long
        held = left if plain else _if(some, lambda: counting.divide(left, size))
        share = _where(short, held, tied)
        used = share if plain else counting.times(share, size)
        rest = counting.subtract(left, used)
        return counting.each(lambda n, m: n.at[g].set(m), room, rest), share

    leaves = jnp.array(groups), ties, counting.scale(ties, sizes), counting.constants(sizes)
    return lax.scan(give, room, leaves)[1]


def _masks(
    leaves: list[jax.Array], dtype: np.dtype, cuts: jax.Array, ties: Count, rooms: Count
) -> list[jax.Array]:
    """Marks in each leaf what exceeds its cut, and of what equals it the first so many entries."""
    masks = [_keys(leaf, dtype) > cut for leaf, cut in zip(leaves, cuts, strict=True)]
    tied: list[Maker] = [
        functools.partial(_equal, leaf, dtype, cut) for leaf, cut in zip(leaves, cuts, strict=True)
    ]
    fits = ~counting.differ(ties, rooms)
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
    contended = lambda taken: ~fits & counting.differ(taken, rooms)

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
            shift >= 0,
            lambda: counting.stack([_if(o, f) for o, f in zip(open_, before, strict=True)]),
        )
        fitting = ~counting.less(counting.each(lambda n: n[:, None], rooms), counts)
        best = jnp.where(open_, jnp.sum(fitting, axis=1, dtype=jnp.int32), 0)
        ends = _pick(jnp.concatenate([ends[:, None], candidates], 1), best)
        taken = counting.each(
            lambda a, b: _pick(jnp.concatenate([a[:, None], b], 1), best), taken, counts
        )
        return shift - BITS, ends, taken

    start = (
        jnp.where(fits, jnp.uint32(counting.WORD - 1), jnp.uint32(0)),
        counting.each(jnp.zeros_like, rooms),
    )
    shift = _first_shift(max(size - 1, 0).bit_length()) + (rooms.low[0] & 0).astype(jnp.int32)
    _, ends, taken = lax.while_loop(unsettled, refine, (shift, *start))
    return ends, counting.subtract(rooms, taken)


def _equal(leaf: jax.Array, dtype: np.dtype, cut: jax.Array) -> jax.Array:
    return _keys(leaf, dtype) == cut


def _within(tied: Maker, place: Maker, end: jax.Array) -> jax.Array:
    return tied() & (place() == end)


def _tally_before(tied: Maker, place: Maker, ends: jax.Array) -> Count:
    spots = jnp.where(
        tied(), place(), jnp.uint32(counting.WORD - 1)
    )  # one comparison an end, not two
    return counting.tally(*(spots < end for end in ends))


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
        if math.prod(shape[axis:end]) < counting.LARGE:
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
    none = lambda: counting.each(lambda n: jnp.broadcast_to(zero, n.shape), jax.eval_shape(make))
    return lax.cond(needed, make, none)


def _where(condition: jax.Array, a: Count, b: Count) -> Count:
    return counting.each(lambda n, m: jnp.where(condition, n, m), a, b)


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


def _by_group(counts: Count, groups: tuple[int, ...], size: int) -> Count:
    """Sums the counts of the leaves, on the first axis, by group."""
    return counting.sum_by(counts, lambda n: jax.ops.segment_sum(n, jnp.array(groups), size))


def _pick(rows: jax.Array, index: jax.Array) -> jax.Array:
    """Takes from each row the entry at its index."""
    return jnp.take_along_axis(rows, index[:, None], axis=1)[:, 0]
