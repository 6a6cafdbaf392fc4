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
from jaxprune.select import ordered, replicates, ties
from jaxprune.select.ties import Leaf

Cut: TypeAlias = tuple[jax.Array, list[jax.Array]]
"""The key that scores must exceed, and where those equal to it no longer stay; see `ties`."""


def top(
    leaves: Sequence[jax.Array],
    keeps: Sequence[int | Count],
    groups: Sequence[int],
    sizes: Sequence[int] | None = None,
    *,
    absolute: bool = False,
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
      absolute: whether the absolute values are the scores; they are made where they are read.

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
    totals = [0] * len(keeps)
    for leaf, g, size in zip(leaves, groups, sizes, strict=True):
        totals[g] += leaf.size * size
    for total in totals:
        counting.check(total)  # past 64 bits it would wrap in silence
    return _top(leaves, counting.stack(keeps), tuple(groups), sizes, absolute)


# It compiles itself: eager calls would dispatch thousands of
# operations. Counts are operands, so that a new density does not compile anew.
@functools.partial(jax.jit, static_argnames=('groups', 'sizes', 'absolute'))
def _top(
    leaves: list[jax.Array],
    keep: Count,
    groups: tuple[int, ...],
    sizes: tuple[int, ...],
    absolute: bool,
) -> list[jax.Array]:
    dtype = ordered.widest([x.dtype for x in leaves])
    cut = replicates.in_turn(functools.partial(_cut, groups=groups, sizes=sizes, absolute=absolute))
    cuts, ends = cut(lax.stop_gradient(leaves), keep)
    return ties.mark(list(map(jnp.abs, leaves)) if absolute else leaves, cuts, dtype, ends)


def _cut(
    leaves: list[Leaf],
    keep: Count,
    groups: tuple[int, ...],
    sizes: tuple[int, ...],
    absolute: bool,
) -> Cut:
    if absolute:
        leaves = [Leaf(x.shape, functools.partial(_magnitude, x)) for x in leaves]
    dtype = ordered.widest([jax.eval_shape(leaf.read).dtype for leaf in leaves])
    keep = counting.each(lambda n: _vary(n, leaves), keep)
    weigh = lambda counts: _by_group(counting.scale(counts, sizes), groups, len(keep.low))
    thresholds, reached, beyond = _search(leaves, keep, groups, weigh, dtype)
    present = counting.subtract(reached, beyond)
    rooms = _hand_out(counting.subtract(keep, weigh(beyond)), present, groups, sizes)
    cuts = ordered.key(thresholds, dtype)[jnp.array(groups)]
    return cuts, ties.ends(leaves, cuts, dtype, present, rooms)


def _search(
    leaves: list[Leaf],
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
        further = ordered.candidates(low, shift)
        cuts = ordered.key(further, dtype)[index]
        counts = ordered.counts_if(
            shift >= 0,  # always true
            lambda: counting.stack(
                [
                    counting.tally(*(ordered.keys(leaf.read(), dtype) >= c for c in cut))
                    for leaf, cut in zip(leaves, cuts, strict=True)
                ]
            ),
        )
        enough = ~counting.less(weigh(counts), counting.each(lambda n: n[:, None], keep))
        best = jnp.sum(enough, axis=-1, dtype=jnp.int32)
        columns = counting.each(
            lambda a, b, c: jnp.concatenate([a[:, None], b, c[:, None]], 1), reached, counts, beyond
        )
        low = ordered.pick(jnp.concatenate([low[:, None], further], 1), best)
        reached = counting.each(lambda n: ordered.pick(n, best[index]), columns)
        beyond = counting.each(lambda n: ordered.pick(n, best[index] + 1), columns)
        return shift - ordered.BITS, low, reached, beyond

    none = keep.low & jnp.uint32(0)
    sizes = counting.constants([math.prod(leaf.shape) for leaf in leaves])
    sizes = counting.each(lambda n: n + none[index], sizes)
    shift = ordered.first_shift(bits) + none[0].astype(jnp.int32)
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
        held = left if plain else ordered.counts_if(some, lambda: counting.divide(left, size))
        share = _where(short, held, tied)
        used = share if plain else counting.times(share, size)
        rest = counting.subtract(left, used)
        return counting.each(lambda n, m: n.at[g].set(m), room, rest), share

    leaves = jnp.array(groups), ties, counting.scale(ties, sizes), counting.constants(sizes)
    return lax.scan(give, room, leaves)[1]


def _magnitude(leaf: Leaf) -> jax.Array:
    return jnp.abs(leaf.read())


def _where(condition: jax.Array, a: Count, b: Count) -> Count:
    return counting.each(lambda n, m: jnp.where(condition, n, m), a, b)


def _vary(x: jax.Array, leaves: Sequence[Leaf]) -> jax.Array:
    """Lets x differ between the devices inside shard_map if any leaf does; XLA drops the zeros."""
    zeros = [jnp.sum(jnp.zeros_like(leaf.read(), jnp.uint32), dtype=jnp.uint32) for leaf in leaves]
    return functools.reduce(jnp.add, zeros, x)


def _by_group(counts: Count, groups: tuple[int, ...], size: int) -> Count:
    """Sums the counts of the leaves, on the first axis, by group."""
    return counting.sum_by(counts, lambda n: jax.ops.segment_sum(n, jnp.array(groups), size))
