"""Rounds: prune, rewind, train, repeat, over training functions of the user's own."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxprune import masks as masks_lib
from jaxprune import optimizer, rates, rewind, scores, tree
from jaxprune.rewind import Point
from jaxprune.tree import Masks, Params

Prune: TypeAlias = Callable[[Point, float], Masks]
"""Chooses the masks of an absolute density, from a trained point."""

Retrain: TypeAlias = Callable[[Point, Masks], Point]
"""Sets where a round starts, from a trained point and the masks of the round."""


def geometric(rate: float, levels: int) -> tuple[float, ...]:
    """Plans densities rate, rate², ..., each relative to all prunable weights.

    Args:
      rate: share of the weights left that each round keeps, in (0, 1); the paper's is 0.8.
      levels: number of rounds, at least 1.

    Returns:
      The density of each level, level 1 first.

    Raises:
      ValueError: rate outside (0, 1); levels below 1.
    Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389, section 3.
    """
    if not 0 < rate < 1:
        raise ValueError(f'rate must be in (0, 1), got {rate}')
    if levels < 1:
        raise ValueError(f'levels must be at least 1, got {levels}')
    return tuple(rate**level for level in range(1, levels + 1))


def check_plan(plan: Iterable[float]) -> tuple[float, ...]:
    """Accepts a plan of densities that fall from level to level.

    Args:
      plan: absolute densities, level 1 first.

    Returns:
      The plan as a tuple.

    Raises:
      ValueError: an empty plan; a density outside (0, 1] or not below the one before.
    """
    plan = tuple(map(float, plan))
    if not plan:
        raise ValueError('the plan has no densities')
    for level, density in enumerate(plan, 1):
        if not 0 < density <= 1:
            raise ValueError(f'level {level} has density {density}, which is not in (0, 1]')
        if level > 1 and density >= plan[level - 2]:
            raise ValueError(
                f'level {level} has density {density}, not below the {plan[level - 2]} of level '
                f'{level - 1}: densities are relative to all prunable weights, not to what is left'
            )
    return plan


def prune_magnitude(point: Point, density: float) -> Masks:
    """Keeps the largest weights of the whole tree among those not yet pruned.

    Args:
      point: a trained point whose optimizer is wrapped by `pruned`.
      density: share of all prunable weights that stays, in (0, 1].

    Returns:
      Masks inside the point's present masks, with round(density · n) weights kept.

    Raises:
      ValueError: as `masks.global_top`.
    """
    present = optimizer.get_masks(point.opt_state)
    magnitudes = scores.magnitude(point.params, where=tree.covered_by(present))
    return masks_lib.global_top(magnitudes, density, present)


def lr_rewind(step: int = 0, *, init: Callable[[Params], optax.OptState] | None = None) -> Retrain:
    """Retrains from the final weights, at the schedule rewound to a step.

    Moments and batch statistics go on. With a schedule that `rates.extend` made, a step at which
    rates of its own begin makes the technique of that name.

    Args:
      step: step of the schedule to return to; 0 replays it all, with its warm-up, and the last
        t steps of a schedule of T begin at T - t.
      init: that of the optimizer, where moments shall begin afresh in each round.

    Returns:
      The technique, for `iterate`.

    Raises:
      ValueError: a step that is not a whole number from 0.
    Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389, section 3.
    """
    rewind.check_step(step)

    def retrain(point: Point, masks: Masks) -> Point:
        if init is not None:
            point = point._replace(opt_state=init(point.params))
        point = rewind.put_masks(point, masks)
        return point._replace(opt_state=rewind.rewind_schedule(point.opt_state, step))

    return retrain


def weight_rewind(stored: Point) -> Retrain:
    """Retrains from the weights, moments, batch statistics and schedule of a stored step.

    A point drawn anew is the control of reinitialised tickets.

    Args:
      stored: point of the dense training at the rewind step.

    Returns:
      The technique, for `iterate`.
    Source: Frankle et al. 2020, arXiv:1912.05671, algorithm 1.
    """

    def retrain(point: Point, masks: Masks) -> Point:
        del point
        return rewind.put_masks(_copied(stored), masks)  # training may donate it

    return retrain


def fine_tune(last_step: int) -> Retrain:
    """Retrains from the final weights at the last rate of the schedule.

    Args:
      last_step: length of the schedule, at and beyond which it gives its last rate.

    Returns:
      The technique, for `iterate`.
    Source: Han et al. 2015, arXiv:1506.02626; Renda, Frankle, Carbin 2020, section 3.
    """
    return lr_rewind(last_step)


def allr(
    start: int, share: float, *, init: Callable[[Params], optax.OptState] | None = None
) -> Retrain:
    """Retrains along the line of LLR, lowered to what pruning has done and the time allows.

    The rate is multiplied by max(d₁, d₂). d₁ = ‖w - m ⊙ w‖ / (‖w‖ √s) measures how far pruning has
    moved the weights, with w the prunable weights before and s the share of those that were left
    which it took away; d₂ is the length of the retraining over that of the dense training.

    Args:
      start: step at which the rates of LLR begin in the schedule: `starts['llr']` of
        `rates.extend`.
      share: d₂, in (0, 1].
      init: that of the optimizer, where moments shall begin afresh in each round.

    Returns:
      The technique, for `iterate`; it needs `rates.scale_by_factor` in the optimizer.

    Raises:
      ValueError: a share outside (0, 1]; a step that is not a whole number from 0; of the
        technique, an optimizer state without a factor.
    Source: Zimmer, Spiegel, Pokutta 2023, arXiv:2111.00843, section 2 (adaptive linear learning
      rate restarting). Deviation: w is the prunable weights, not biases and norms.
    """
    if not 0 < share <= 1:
        raise ValueError(f'share must be in (0, 1], got {share}')
    rewound = lr_rewind(start, init=init)

    def retrain(point: Point, masks: Masks) -> Point:
        factor = jnp.maximum(damage(point, masks), share)
        point = rewound(point, masks)
        return point._replace(opt_state=rates.set_factor(point.opt_state, factor))

    return retrain


def damage(point: Point, masks: Masks) -> jax.Array:
    """Measures how far masks move the weights: ‖w - m ⊙ w‖ / (‖w‖ √s), as `allr` says.

    Args:
      point: a trained point whose optimizer is wrapped by `pruned`.
      masks: booleans inside the point's present masks, `None` where not prunable.

    Returns:
      A float32 scalar in [0, 1]: 1 where all weights were equally large, 0 where nothing more is
      pruned, or only zeros are.
    """
    present = optimizer.get_masks(point.opt_state)
    tree.check_like(masks, present, like='the masks in the state')
    weights = scores.magnitude(point.params, where=tree.covered_by(present))
    pairs = zip(tree.named_leaves(weights), tree.named_leaves(masks), strict=True)
    squares = [(jnp.square(w.astype(jnp.float32)), m) for (_, w), (_, m) in pairs if m is not None]
    whole = sum(jnp.sum(w) for w, _ in squares)
    lost = sum(jnp.sum(jnp.where(m, 0, w)) for w, m in squares)
    share = 1 - jnp.float32(masks_lib.density(masks) / masks_lib.density(present))
    ratio = jnp.sqrt(lost / jnp.where(whole > 0, whole * share, 1))
    return jnp.where((lost > 0) & (share > 0), jnp.minimum(ratio, 1), 0)


def begin(
    point: Point, density: float, retrain: Retrain, *, prune: Prune = prune_magnitude
) -> Point:
    """Begins a round: prunes a trained point and sets where retraining starts.

    Args:
      point: where the training before ended.
      density: share of all prunable weights that the round keeps, in (0, 1].
      retrain: the technique, such as `lr_rewind()`.
      prune: chooses the masks.

    Returns:
      The point that the training of the round starts from.
    """
    return retrain(point, prune(point, density))


def iterate(
    point: Point,
    train: Callable[[Point, int], Point],
    plan: Iterable[float],
    retrain: Retrain,
    *,
    prune: Prune = prune_magnitude,
) -> Iterator[tuple[int, Point]]:
    """Runs the rounds, each from the end of the one before.

    Args:
      point: where the dense training ended.
      train: trains from a point, at a level, and returns where it ended.
      plan: absolute densities, level 1 first, each below the one before.
      retrain: the technique, such as `lr_rewind()`.
      prune: chooses the masks.

    Yields:
      The level and the point where its training ended.

    Raises:
      ValueError: a plan that `check_plan` refuses, before any training.
    Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389, section 3 (the recommended algorithm).
    """
    levels = enumerate(check_plan(plan), 1)

    def run(point: Point) -> Iterator[tuple[int, Point]]:
        for level, density in levels:
            point = train(begin(point, density, retrain, prune=prune), level)
            yield level, point

    return run(point)


def _copied(point: Point) -> Point:
    """Copies a point; `device_put` compiles nothing, but takes no arrays of other processes."""
    if jax.process_count() == 1:
        return jax.device_put(point, may_alias=False)
    return jax.tree.map(jnp.copy, point)
