"""Of equal entries the first so many, in row-major order, without a sort.

The row-major index before which they lie is found from its leading digits to its last. On one
device a digit is the row of a flat array, then the column in that row: the array is read once.
Where arrays may lie on several devices, each of which holds what rows or columns it may, digits are
three bits, and devices exchange counts alone.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import counting
from jaxprune.counting import Count
from jaxprune.select import ordered

ROW = 1024  # entries
Maker: TypeAlias = Callable[[], jax.Array]
"""Makes an array of a leaf's shape anew where it is used: kept, it would cost memory."""


class Leaf(NamedTuple):
    """The scores of one leaf, read anew in each pass."""

    shape: tuple[int, ...]
    read: Maker


def ends(
    leaves: Sequence[Leaf], cuts: jax.Array, dtype: np.dtype, present: Count, rooms: Count
) -> list[jax.Array]:
    """Finds in each leaf the place before which its first entries lie that are equal to its cut.

    Args:
      leaves: floating-point scores.
      cuts: for each leaf a key, see `ordered.keys`.
      dtype: of the keys.
      present: how many entries of each leaf are equal to its cut.
      rooms: how many to mark, at most those present.

    Returns:
      The place in each leaf, uint32; of leaves past 32 bits a list of its parts, major first. For
      `mark`.
    """
    fits = ~counting.differ(present, rooms)
    by_place = lambda: _by_place(leaves, cuts, dtype, rooms, fits)
    if sum(math.prod(leaf.shape) for leaf in leaves) >= counting.LARGE:
        return by_place()
    by_row = lambda: [_by_row(leaves, cuts, dtype, rooms, fits)]
    return counting.alone_or_apart(by_row, by_place)


def mark(
    scores: Sequence[jax.Array], cuts: jax.Array, dtype: np.dtype, ends: Sequence[jax.Array]
) -> list[jax.Array]:
    """Marks in each leaf what is above its cut, and what is equal to it before its end."""
    levels = [places for places, _ in _places([x.shape for x in scores])]
    masks = []
    for i, x in enumerate(scores):
        here = ordered.keys(x, dtype)
        before = jnp.zeros(x.shape, bool)
        for places, end in reversed(list(zip(levels, ends, strict=True))):
            before = (places[i]() < end[i]) | ((places[i]() == end[i]) & before)
        masks.append((here > cuts[i]) | ((here == cuts[i]) & before))
    return masks


def _by_row(
    leaves: Sequence[Leaf], cuts: jax.Array, dtype: np.dtype, rooms: Count, fits: jax.Array
) -> jax.Array:
    """By the row of the flat leaf, then by the column: reads once the leaves where not all fit."""
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    numbers = []
    for leaf, cut, fit, size in zip(leaves, cuts, fits, sizes, strict=True):
        in_rows = functools.partial(_in_rows, leaf, cut, dtype, size // ROW)
        counted = ordered.counts_if(~fit, in_rows)
        # the upper half is 0, but a sum whose other half is not used is no pair for XLA
        numbers += [counted.low | counted.high, jnp.array([size % ROW], jnp.uint32)]
    upto = jnp.cumsum(jnp.concatenate(numbers), dtype=jnp.uint32)
    before = jnp.concatenate([jnp.zeros_like(upto[:1]), upto])
    firsts = _constants(accumulate([size // ROW + 1 for size in sizes[:-1]], initial=0))
    goals = before[firsts] + rooms.low
    # of the last row of a leaf, which is short, more may be counted than there are, but no less
    rows = jnp.searchsorted(upto, goals, side='right').astype(jnp.uint32)
    starts = jnp.where(fits, jnp.uint32(0), (rows - firsts) * ROW)
    begins = jnp.minimum(starts, _constants(max(size - ROW, 0) for size in sizes))
    values = jnp.stack([_slice(*each, dtype) for each in zip(leaves, begins, strict=True)])
    places = begins[:, None] + jnp.arange(ROW, dtype=jnp.uint32)[None]
    equal = (ordered.keys(values, dtype) == cuts[:, None]) & (places >= starts[:, None])
    passed = jnp.cumsum(equal, 1, dtype=jnp.uint32) <= (goals - before[rows])[:, None]
    end = begins + jnp.sum(passed, 1, dtype=jnp.uint32)
    return jnp.where(fits, jnp.uint32(counting.WORD - 1), end)


def _in_rows(leaf: Leaf, cut: jax.Array, dtype: np.dtype, rows: int) -> Count:
    """Counts the equal entries of each full row of the flat leaf."""
    flat = _equal(leaf, cut, dtype).reshape(-1)
    return counting.tally_along(flat[: rows * ROW].reshape(rows, ROW), 1)


def _slice(leaf: Leaf, begin: jax.Array, dtype: np.dtype) -> jax.Array:
    """The entries of the flat leaf in a row's length from a place on; a shorter leaf is padded."""
    flat = leaf.read().reshape(-1)
    row = lax.dynamic_slice_in_dim(flat, begin, min(ROW, flat.size)).astype(dtype)
    return jnp.pad(row, (0, ROW - row.size))


def _equal(leaf: Leaf, cut: jax.Array, dtype: np.dtype) -> jax.Array:
    return ordered.keys(leaf.read(), dtype) == cut


def _constants(numbers: Iterable[int]) -> jax.Array:
    """Integers as an array of uint32."""
    return jnp.array(list(numbers), jnp.uint32)


def _by_place(
    leaves: Sequence[Leaf], cuts: jax.Array, dtype: np.dtype, rooms: Count, fits: jax.Array
) -> list[jax.Array]:
    """By three bits of the place at a time: reads each contended leaf some ten times."""
    tied: list[Maker] = [
        functools.partial(_equal, leaf, cut, dtype) for leaf, cut in zip(leaves, cuts, strict=True)
    ]
    found = []
    for places, size in _places([leaf.shape for leaf in leaves]):
        end, rooms = _ends(tied, places, size, rooms, fits)
        found.append(end)
        tied = [functools.partial(_within, *each) for each in zip(tied, places, end, strict=True)]
    return found


def _ends(
    tied: Sequence[Maker], places: Sequence[Maker], size: int, rooms: Count, fits: jax.Array
) -> tuple[jax.Array, Count]:
    """Finds in each leaf the last place before which at most `rooms` entries are tied.

    Reads only the leaves where some ties, but not all, have room.

    Returns:
      The places, the highest integer where all ties fit; the room left from there on.
    """
    contended = lambda taken: ~fits & counting.differ(taken, rooms)

    def unsettled(state: Any) -> jax.Array:
        shift, _, taken = state
        return (shift >= 0) & jnp.any(contended(taken))

    def refine(state: Any) -> Any:
        shift, ends, taken = state
        further = ordered.candidates(ends, shift)
        open_ = contended(taken)
        before = [
            functools.partial(_tally_before, *each)
            for each in zip(tied, places, further, strict=True)
        ]
        counts = ordered.counts_if(
            shift >= 0,
            lambda: counting.stack(
                [ordered.counts_if(o, f) for o, f in zip(open_, before, strict=True)]
            ),
        )
        fitting = ~counting.less(counting.each(lambda n: n[:, None], rooms), counts)
        best = jnp.where(open_, jnp.sum(fitting, axis=1, dtype=jnp.int32), 0)
        ends = ordered.pick(jnp.concatenate([ends[:, None], further], 1), best)
        taken = counting.each(
            lambda a, b: ordered.pick(jnp.concatenate([a[:, None], b], 1), best), taken, counts
        )
        return shift - ordered.BITS, ends, taken

    start = (
        jnp.where(fits, jnp.uint32(counting.WORD - 1), jnp.uint32(0)),
        counting.each(jnp.zeros_like, rooms),
    )
    bits = max(size - 1, 0).bit_length()
    shift = ordered.first_shift(bits) + (rooms.low[0] & 0).astype(jnp.int32)
    _, ends, taken = lax.while_loop(unsettled, refine, (shift, *start))
    return ends, counting.subtract(rooms, taken)


def _tally_before(tied: Maker, place: Maker, ends: jax.Array) -> Count:
    # one comparison an end, not two
    spots = jnp.where(tied(), place(), jnp.uint32(counting.WORD - 1))
    return counting.tally(*(spots < end for end in ends))


def _within(tied: Maker, place: Maker, end: jax.Array) -> jax.Array:
    return tied() & (place() == end)


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
