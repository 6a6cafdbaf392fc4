"""When masks change during training, and how far on the way to their density they are then."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

OfStep: TypeAlias = Callable[[jax.Array], jax.Array]
"""A function of the step: an int32 scalar, the number of updates before this one."""


class Schedule(NamedTuple):
    """When masks change, and how much is pruned then."""

    due: OfStep
    """Whether the masks change at a step: a boolean."""
    progress: OfStep
    """Share of the way from dense to the target density, in [0, 1], float32; read when due."""


def cubic(begin: int, end: int, every: int, *, initial: float = 0.0) -> Schedule:
    """Prunes fast at first, then ever more slowly, and lands exactly at the step that ends it.

    Progress at step t is p_0 + (1 - p_0) (1 - (1 - (t - begin) / (end - begin))³).

    Args:
      begin: first step at which masks change, from 0.
      end: last one, where progress is exactly 1.
      every: steps from one change to the next; it must divide end - begin.
      initial: progress p_0 at the first step, in [0, 1].

    Returns:
      The schedule.

    Raises:
      ValueError: an end that does not follow the beginning, or on which no change falls.
    Source: Zhu & Gupta 2017, arXiv:1710.01878, eq. 1.
    """
    check_steps(begin, end, every)
    if not 0 <= initial <= 1:
        raise ValueError(f'initial must be in [0, 1], got {initial}')
    due = _every(begin, end, every)

    def progress(step: jax.Array) -> jax.Array:
        left = (jnp.clip(end - step, 0, end - begin)).astype(jnp.float32) / (end - begin)
        return 1 - (1 - initial) * left**3

    return Schedule(due, progress)


def one_shot(step: int) -> Schedule:
    """Prunes once, to the target density.

    Args:
      step: at which masks change, from 0.

    Returns:
      The schedule.

    Raises:
      ValueError: a step that is not a whole number from 0.
    """
    check_whole('step', step, 0)
    return Schedule(lambda now: now == step, _all_the_way)


def periodic(every: int, begin: int = 0, end: int | None = None) -> Schedule:
    """Changes masks again and again at the target density.

    Args:
      every: steps from one change to the next.
      begin: first step at which masks change, from 0.
      end: last step at which they may; without it they never settle.

    Returns:
      The schedule.

    Raises:
      ValueError: steps that are not whole; an end before the beginning.
    """
    check_whole('every', every, 1)
    check_whole('begin', begin, 0)
    if end is not None:
        check_whole('end', end, 0)
    if end is not None and end < begin:
        raise ValueError(f'the schedule ends at step {end}, before it begins at step {begin}')
    return Schedule(_every(begin, end, every), _all_the_way)


def alternating(begin: int, end: int, every: int) -> Schedule:
    """Prunes and lets everything back, in turns, and stays pruned from the end on.

    Args:
      begin: first step with pruned weights, from 0.
      end: step from which they stay pruned.
      every: steps of each turn; two turns must divide end - begin.

    Returns:
      The schedule; its progress is 1 in the turns with pruned weights and 0 in those without.

    Raises:
      ValueError: an end that does not follow the beginning, or that two turns never reach.
    Source: Peste et al. 2021, arXiv:2106.12379, algorithm 1.
    """
    check_whole('every', every, 1)
    check_steps(begin, end, 2 * every)

    def progress(step: jax.Array) -> jax.Array:
        return ((step - begin) // every % 2 == 0).astype(jnp.float32)

    return Schedule(_every(begin, end, every), progress)


def check_steps(begin: int, end: int, every: int) -> None:
    """Raises `ValueError` unless steps from begin, `every` apart, end on `end`."""
    check_whole('begin', begin, 0)
    check_whole('end', end, 1)
    check_whole('every', every, 1)
    if end <= begin:
        raise ValueError(f'the schedule ends at step {end}, which is not after step {begin}')
    if (end - begin) % every:
        raise ValueError(
            f'the schedule never lands: from step {begin} on, strides of {every} steps do not '
            f'reach step {end}; choose an end such as {end - (end - begin) % every + every}'
        )


def _every(begin: int, end: int | None, every: int) -> OfStep:
    def due(step: jax.Array) -> jax.Array:
        now = (step >= begin) & ((step - begin) % every == 0)
        return now if end is None else now & (step <= end)

    return due


def _all_the_way(step: jax.Array) -> jax.Array:
    del step
    return jnp.float32(1)


def check_whole(name: str, value: int, least: int) -> None:
    """Raises `ValueError` unless a number of steps is whole, at least so many and below 2**31."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f'{name} must be a whole number of steps from {least}, got {value!r}')
    if value >= 2**31:
        raise ValueError(f'{name} must be below 2**31, the steps that are counted, got {value}')
