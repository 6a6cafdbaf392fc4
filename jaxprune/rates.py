"""Learning rates for retraining, laid out after those of the dense training in one schedule.

A technique that retrains at rates of its own moves the schedule to where they begin, as rewinding
moves it back: nothing compiles again, and every optimizer that takes a schedule will do.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Extended(NamedTuple):
    """A dense schedule, and after it those of retraining techniques."""

    schedule: optax.Schedule
    """For the optimizer."""
    starts: Mapping[str, int]
    """Where each technique begins: `rounds.lr_rewind(starts[name])`; `'fine_tune'` among them."""


class ScaleByFactorState(NamedTuple):
    """State of `scale_by_factor`."""

    factor: jax.Array
    """What updates are multiplied by, a float32 scalar."""


def extend(
    dense: optax.Schedule, steps: int, retraining: Mapping[str, optax.Schedule], retrain_steps: int
) -> Extended:
    """Lays schedules of retraining out behind the dense one.

    Args:
      dense: schedule of the dense training; from `steps` on, it gives its last rate.
      steps: length of the dense training, at least 1.
      retraining: the schedule of each technique by name, from step 0; one named `'fine_tune'`
        takes the place of the dense schedule's last rate.
      retrain_steps: length of a retraining, at least 1.

    Returns:
      A schedule that is `dense` for `steps` + `retrain_steps` steps, so that fine-tuning stays at
      its last rate, and then each of the others for `retrain_steps`.

    Raises:
      ValueError: a length that is not a whole number from 1.
    """
    check_length('steps', steps)
    check_length('retrain_steps', retrain_steps)
    first = steps + retrain_steps
    starts = {name: first + i * retrain_steps for i, name in enumerate(retraining)}
    schedule = optax.join_schedules([dense, *retraining.values()], list(starts.values()))
    return Extended(schedule, {'fine_tune': steps} | starts)


def slr(
    highest: float, lowest: float, steps: int, *, warmup: float = 0.1, factor: float = 0.1
) -> optax.Schedule:
    """Restarts at the highest rate and drops it twice (SLR).

    Linear warm-up from the lowest to the highest rate; then the rate is multiplied by `factor` at
    half and again at three quarters of the steps that are left.

    Args:
      highest: rate after the warm-up, that of the dense training.
      lowest: rate at step 0, the last of the dense training.
      steps: length of the retraining, at least 1.
      warmup: share of the steps that the warm-up takes, in [0, 1).
      factor: what the rate is multiplied by at each drop, in (0, 1].

    Returns:
      The schedule, from step 0.

    Raises:
      ValueError: rates that are not 0 < lowest <= highest; a number out of its range.
    Source: Le & Hua 2021, arXiv:2105.03193, section 3 (scaled learning rate restarting).
    """
    rise = check(highest, lowest, steps, warmup)
    if not 0 < factor <= 1:
        raise ValueError(f'factor must be in (0, 1], got {factor}')
    rest = steps - rise
    drops = dict.fromkeys({rest // 2, 3 * rest // 4} - {0}, factor)
    fall = optax.piecewise_constant_schedule(highest, drops)
    return after_warmup(fall, highest, lowest, rise)


def clr(highest: float, lowest: float, steps: int, *, warmup: float = 0.1) -> optax.Schedule:
    """Restarts at the highest rate and lets it fall along a cosine (CLR).

    Args:
      highest: rate after the warm-up, that of the dense training.
      lowest: rate at step 0 and in the end, the last of the dense training.
      steps: length of the retraining, at least 1.
      warmup: share of the steps that the linear warm-up takes, in [0, 1).

    Returns:
      The schedule, from step 0.

    Raises:
      ValueError: as `slr`.
    Source: Le & Hua 2021, arXiv:2105.03193, section 3 (cyclic learning rate restarting).
    """
    rise = check(highest, lowest, steps, warmup)
    fall = optax.cosine_decay_schedule(highest, steps - rise, alpha=lowest / highest)
    return after_warmup(fall, highest, lowest, rise)


def llr(highest: float, steps: int) -> optax.Schedule:
    """Lets the rate fall on a straight line from the highest to 0 (LLR).

    Args:
      highest: rate at step 0, that of the dense training.
      steps: length of the retraining, at least 1; the rate would be 0 at step `steps`.

    Returns:
      The schedule, from step 0.

    Raises:
      ValueError: a rate that is not above 0; a length that is not a whole number from 1.
    Source: Zimmer, Spiegel, Pokutta 2023, arXiv:2111.00843, section 2 (linear learning rate
      restarting).
    """
    check(highest, highest, steps, 0.0)
    return optax.linear_schedule(highest, 0.0, steps)


def scale_by_factor() -> optax.GradientTransformation:
    """Multiplies updates by a factor that is kept in the optimizer's state, 1 at first.

    Chained last inside `pruned`, it scales the learning rate of every optimizer whose updates are
    proportional to it; `set_factor` sets it, and nothing compiles again.

    Returns:
      An optimizer with `ScaleByFactorState`; updates keep their dtypes.
    """

    def init(params: optax.Params) -> ScaleByFactorState:
        del params
        return ScaleByFactorState(jnp.ones((), jnp.float32))

    def update(updates: Any, state: ScaleByFactorState, params: Any = None) -> Any:
        del params
        return jax.tree.map(lambda u: u * state.factor.astype(u.dtype), updates), state

    return optax.GradientTransformation(init, update)


def set_factor(opt_state: optax.OptState, factor: float | jax.Array) -> optax.OptState:
    """Sets the factor of `scale_by_factor` in an optimizer state, at any depth.

    Args:
      opt_state: state that holds a `ScaleByFactorState`.
      factor: the new factor, from 0, finite.

    Returns:
      The same state with the new factor.

    Raises:
      ValueError: no `ScaleByFactorState`; a factor below 0, or not finite.
    """
    if not isinstance(factor, jax.core.Tracer) and not 0 <= float(factor) < float('inf'):
        raise ValueError(f'factor must be finite and at least 0, got {factor}')
    is_factor = lambda node: isinstance(node, ScaleByFactorState)
    if not any(map(is_factor, jax.tree.leaves(opt_state, is_leaf=is_factor))):
        raise ValueError(
            'there is no factor in this optimizer state: chain rates.scale_by_factor() last, '
            'jp.pruned(optax.chain(optimizer, jp.rates.scale_by_factor()))'
        )
    put = lambda node: (
        ScaleByFactorState(jnp.full_like(node.factor, factor)) if is_factor(node) else node
    )
    return jax.tree.map(put, opt_state, is_leaf=is_factor)


def after_warmup(
    schedule: optax.Schedule, highest: float, lowest: float, steps: int
) -> optax.Schedule:
    """Puts a linear warm-up of some steps, or none, before a schedule."""
    if steps == 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(lowest, highest, steps), schedule], [steps])


def check(highest: float, lowest: float, steps: int, warmup: float) -> int:
    """Returns the steps of the warm-up; raises `ValueError` where a number is out of range."""
    if not 0 < lowest <= highest < float('inf'):
        raise ValueError(f'rates must be 0 < lowest <= highest, got {lowest} and {highest}')
    if not 0 <= warmup < 1:
        raise ValueError(f'warmup must be a share of the steps in [0, 1), got {warmup}')
    check_length('steps', steps)
    return int(warmup * steps)


def check_length(name: str, steps: int) -> None:
    """Raises `ValueError` unless a number of steps is whole, and at least 1."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f'{name} must be a whole number from 1, got {steps!r}')
