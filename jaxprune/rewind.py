"""Rewinding: the learning-rate schedule alone, or the whole training state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import masks as masks_lib
from jaxprune import optimizer
from jaxprune.tree import Masks, Params

# The states in which optax counts the steps of a schedule; other counters, such as Adam's for its
# bias correction, belong to the optimizer.
_INJECTED = type(optax.WrappedSchedule(optax.constant_schedule(0.0)).init())
_SCHEDULES = (
    optax.ScaleByScheduleState,
    optax.InjectHyperparamsState,
    _INJECTED,
    type(optax.add_decayed_weights(optax.constant_schedule(0.0)).init({})),
)


class Point(NamedTuple):
    """A point of training that a round starts from, ends at, or returns to."""

    params: Params
    opt_state: optax.OptState
    extra: Any = None
    """What else training changes: batch statistics, moving averages."""


def rewind_schedule(opt_state: optax.OptState, step: int | jax.Array = 0) -> optax.OptState:
    """Moves the schedules in an optimizer state to a step; weights and moments go on.

    Args:
      opt_state: any optax state that holds a schedule: `optax.scale_by_schedule` (which nearly
        every optimizer with a learning-rate schedule chains), `optax.inject_hyperparams`, or
        scheduled weight decay, at any depth; the warm-up of `schedule_free` too. D-Adaptation,
        MADGRAD, MoMo and Prodigy (`optax.contrib`) read a schedule at the counter of their own
        moments, which stays: inject the schedule into those.
      step: the step of the schedule that the next update will use, from 0; its last steps for a
        shorter retraining, its length for fine-tuning at the last rate.

    Returns:
      The same state with other counters: the same shapes and dtypes, so nothing compiles again.

    Raises:
      ValueError: a negative step; no schedule in the state.
    Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389, section 3 (learning-rate rewinding).
    """
    check_step(step)
    if not any(_is_schedule(node) for node in jax.tree.leaves(opt_state, is_leaf=_is_schedule)):
        raise ValueError(
            'there is no schedule in this optimizer state: give the optimizer a schedule '
            '(optax.piecewise_constant_schedule, ...) as its learning rate; to one that reads it '
            'at the counter of its moments (MADGRAD, MoMo, Prodigy, D-Adaptation), through '
            'optax.inject_hyperparams'
        )
    return _move(opt_state, step)


def check_step(step: int | jax.Array) -> None:
    """Raises `ValueError` unless a step is a whole number in [0, 2**31); traced, unless whole."""
    kind = step.dtype if isinstance(step, jax.Array) else type(step)
    whole = jnp.issubdtype(kind, jnp.integer)
    if not whole or not (isinstance(step, jax.core.Tracer) or 0 <= int(step) < 2**31):
        raise ValueError(f'a schedule cannot be moved to step {step}: steps are whole, from 0')


def put_masks(point: Point, masks: Masks) -> Point:
    """Puts masks onto the weights and into the optimizer state of a point.

    On the point where training just ended, this prunes it. On a point stored earlier, this is
    weight rewinding: weights, moments, batch statistics and schedule are those of the stored
    step, and what results is a lottery ticket.

    Args:
      point: weights and the state of an optimizer wrapped by `pruned`.
      masks: booleans like the parameters, `None` where not prunable.

    Returns:
      The point with its pruned weights at 0 and the masks in its optimizer state.

    Raises:
      ValueError: masks unlike the parameters; no `PrunedState` in the optimizer state.
    Source: Frankle et al. 2020, arXiv:1912.05671, algorithm 1 (weight rewinding).
    """
    return point._replace(
        params=masks_lib.apply(point.params, masks),
        opt_state=optimizer.set_masks(point.opt_state, masks),
    )


def _is_schedule(node: Any) -> bool:
    if isinstance(node, optax.InjectStatefulHyperparamsState):
        return any(isinstance(s, _INJECTED) for s in node.hyperparams_states.values())
    return isinstance(node, _SCHEDULES)


def _is_averaged(node: Any) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState)


def _move(state: Any, step: int | jax.Array) -> Any:
    def visit(node: Any) -> Any:
        if _is_averaged(node):  # it counts from 1
            count = optax.safe_increment(jnp.int32(step))
            counter = 'step_count'
        elif _is_schedule(node):
            count, counter = jnp.int32(step), 'count'
        else:
            return node
        fields = node._asdict()
        old = fields.pop(counter)  # of NNX, it is wrapped
        new = jax.tree.map(lambda c: jnp.full_like(c, count), old)
        moved = {name: _move(field, step) for name, field in fields.items()}
        return node._replace(**moved, **{counter: new})

    return jax.tree.map(visit, state, is_leaf=lambda x: _is_schedule(x) or _is_averaged(x))
