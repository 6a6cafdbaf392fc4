"""Methods that begin dense and end sparse: gradual pruning, AC/DC, straight-through."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxprune import masks as masks_lib
from jaxprune import optimizer, packing, scores, tree
from jaxprune.gradual import schedules, wrapper
from jaxprune.gradual.schedules import Schedule
from jaxprune.gradual.wrapper import GradualState, Method, Now
from jaxprune.optimizer import PrunedState
from jaxprune.tree import Masks, Params, Predicate, Scores

Density: TypeAlias = float | Mapping[str, float]
Score: TypeAlias = Callable[[Params, Any], Scores]
"""Scores from parameters and gradients, such as `scores.taylor`."""
Choose: TypeAlias = Callable[..., Masks]
"""`masks.global_top` or `masks.leaf_top`, with a pattern, rules or a floor bound by `partial`."""


def prune(
    inner: optax.GradientTransformation,
    density: Density,
    schedule: Schedule,
    *,
    score: Score | None = None,
    choose: Choose = masks_lib.global_top,
    running: bool = False,
    where: Predicate = tree.prunable,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that training prunes more and more, and never brings weights back.

    Args:
      inner: any optax optimizer.
      density: share of all prunable weights that stays in the end, in (0, 1]; or by path, for
        `choose=masks.leaf_top`.
      schedule: when masks change and how far on the way they are: `cubic`, `one_shot`, `periodic`.
      score: of the parameters and gradients of the step, such as `scores.taylor`; magnitude by
        default. One of weights alone is `lambda params, grads: scores.lamp(params)`.
      choose: makes masks of scores, a density, present masks and `progress=`. A global choice may
        leave a leaf with nothing, which no traced step can tell: bind a floor, as in
        `functools.partial(masks.global_top, floor=0.01)`.
      running: whether scores are summed over all updates, as for `scores.movement`, in at least
        float32.
      where: which leaves are prunable, by path and leaf.
      packed: whether the state holds masks at one bit a weight.

    Returns:
      An optimizer with `GradualState`.

    Raises:
      ValueError: densities by path without `masks.leaf_top`; a score that cannot be called with
        parameters and gradients; at `init`, nothing prunable, a score that covers other leaves than
        `where`, and as `choose`, for the last masks.
    Source: Zhu & Gupta 2017, arXiv:1710.01878, section 3, with `cubic` and `masks.leaf_top` at one
      density; Sanh et al. 2020, arXiv:2005.07683, with `scores.movement` and `running`. Deviation:
      the latter's pruned weights do not come back.
    """
    _check_density(density, choose)
    score = score or _magnitude(where)
    _check_score(score)

    def remember(now: Now) -> Any:
        if not running:
            return now.memory
        more = score(now.params, now.grads)
        add = lambda total, one: total if total is None else total + one.astype(total.dtype)
        return tree.map_masked(add, now.memory, more)

    def change(now: Now) -> Masks:
        found = now.memory if running else score(now.params, now.grads)
        return choose(found, density, now.masks, progress=schedule.progress(now.step))

    def begin_memory(params: Params, masks: Masks) -> Any:
        found = jax.eval_shape(score, params, params)
        return tree.map_masked(_zeros, masks, found) if running else ()

    first = _dense(where, score, lambda found, masks: choose(found, density, masks, progress=1.0))
    method = Method(first, schedule.due, change, begin_memory=begin_memory, remember=remember)
    return wrapper.change_masks(inner, method, packed=packed)


def ac_dc(
    inner: optax.GradientTransformation,
    density: Density,
    *,
    begin: int,
    end: int,
    every: int,
    choose: Choose = masks_lib.global_top,
    where: Predicate = tree.prunable,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that training is sparse and dense in turns, and sparse in the end.

    Each sparse turn keeps the largest magnitudes; in each dense turn all weights train, those that
    were pruned from 0 and with fresh moments.

    Args:
      inner: any optax optimizer.
      density: of the sparse turns, in (0, 1]; or by path, for `choose=masks.leaf_top`.
      begin: first step of the first sparse turn; training before it is dense.
      end: step from which training stays sparse.
      every: steps of each turn; two turns must divide end - begin.
      choose: makes masks of magnitudes and a density.
      where: which leaves are prunable, by path and leaf.
      packed: whether the state holds masks at one bit a weight.

    Returns:
      An optimizer with `GradualState`.

    Raises:
      ValueError: turns that do not reach the end; as `prune`.
    Source: Peste et al. 2021, arXiv:2106.12379, algorithm 1. Deviation: only the moments of the
      weights that return begin afresh, not all.
    """
    _check_density(density, choose)
    schedule = schedules.alternating(begin, end, every)
    magnitude = _magnitude(where)

    def change(now: Now) -> Masks:
        sparse = schedule.progress(now.step) == 1
        chosen = choose(magnitude(now.params, now.grads), density)
        return tree.map_masked(lambda m: m if m is None else m | ~sparse, chosen)

    first = _dense(where, magnitude, lambda found, masks: choose(found, density))
    method = Method(first, schedule.due, change, regrows=True)
    return wrapper.change_masks(inner, method, packed=packed)


def straight_through(
    inner: optax.GradientTransformation,
    density: Density,
    schedule: Schedule,
    *,
    choose: Choose = masks_lib.global_top,
    where: Predicate = tree.prunable,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it trains dense weights through the gradients of masked ones.

    The state holds the dense weights θ. The parameters are m ⊙ θ, where m keeps the largest
    magnitudes of θ; their gradient is applied to θ as it is, so that pruned weights go on learning
    and may return.

    Args:
      inner: any optax optimizer.
      density: share of all prunable weights that stays, in (0, 1]; or by path, for
        `choose=masks.leaf_top`.
      schedule: when masks change: `periodic(1)` is at every step; one that is due at step 0 begins
        sparse, see `start`.
      choose: makes masks of magnitudes, a density and `progress=`.
      where: which leaves are prunable, by path and leaf.
      packed: whether the state holds masks at one bit a weight.

    Returns:
      An optimizer with `GradualState`, whose memory is θ. Parameters that stay agree with θ to a
      rounding, since an update is added to them; those that are pruned are exactly 0.

    Raises:
      ValueError: as `prune`; at `update`, no `params`.
    Source: Bengio et al. 2013, arXiv:1308.3432, section 4 (the estimator); Jayakumar et al. 2020,
      arXiv:2106.03517, section 2 (Top-K always sparse training, of which this is the dense
      backward).
    """
    _check_density(density, choose)
    inner = optimizer.extended(inner)
    magnitude = _magnitude(where)

    def change(now: Now) -> Masks:
        progress = schedule.progress(now.step)
        return choose(magnitude(now.memory, now.grads), density, progress=progress)

    dense = _dense(where, magnitude, lambda found, masks: choose(found, density, progress=1.0))

    def first(params: Params) -> Masks:
        masks = dense(params)
        now = Now(jnp.int32(0), masks, params, params, params)
        return wrapper.when(schedule.due(now.step), lambda masks: change(now), masks)

    def init(params: Params) -> GradualState:
        masks = first(params)
        held = packing.pack(masks) if packed else masks
        # a copy, since a step that is given both may donate both
        own = jax.tree.map(jnp.copy, params)
        return GradualState(jnp.int32(0), PrunedState(held, inner.init(params)), own)

    def update(
        updates: Any, state: GradualState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Any, GradualState]:
        if params is None:
            raise ValueError('masks need the parameters: call tx.update(grads, state, params)')
        old, inner_state = state.pruned
        moves, inner_state = inner.update(updates, inner_state, state.memory, **extra_args)
        own = optax.apply_updates(state.memory, moves)
        now = Now(state.step, packing.unpack(old, params), params, updates, own)
        renew = lambda masks: packing.pack_like(change(now), masks)
        held = wrapper.when(schedule.due(state.step), renew, old)
        updates = tree.map_masked(_toward, packing.unpack(held, params), own, params)
        step = optax.safe_increment(state.step)
        return updates, GradualState(step, PrunedState(held, inner_state), own)

    return optax.GradientTransformationExtraArgs(init, update)


def _toward(mask: Any, dense: Any, now: Any) -> Any:
    """The update that takes a parameter to its masked dense weight; prunable leaf or branch."""
    if mask is None:
        return jax.tree.map(jnp.subtract, dense, now)
    return jnp.where(mask, dense - now, -now)


def _magnitude(where: Predicate) -> Score:
    return lambda params, grads: scores.magnitude(params, where=where)


def _zeros(mask: Any, score: Any) -> Any:
    """Where sums of scores begin: laid out as the mask, in at least float32."""
    if mask is None:
        return None
    return jnp.zeros_like(mask, jnp.promote_types(score.dtype, jnp.float32))


def _dense(
    where: Predicate, score: Score, last: Callable[[Scores, Masks], Masks]
) -> Callable[[Params], Masks]:
    """Makes the masks to begin with, once the last ones have been tried, for their errors."""

    def first(params: Params) -> Masks:
        masks = tree.map_prunable(lambda _, w: jnp.ones_like(w, bool), params, where=where)
        found = jax.eval_shape(score, params, params)
        _check_covered(found, masks)
        jax.eval_shape(last, found, masks)
        return masks

    return first


def _check_density(density: Density, choose: Choose) -> None:
    """Raises for densities by path that the function bound in `choose` does not take."""
    if isinstance(density, Mapping) and getattr(choose, 'func', choose) is masks_lib.global_top:
        raise ValueError('densities by path are for choose=masks.leaf_top, not masks.global_top')


def _check_score(score: Score) -> None:
    try:
        inspect.signature(score).bind('params', 'grads')
    except TypeError as error:
        name = getattr(score, '__name__', repr(score))
        raise ValueError(
            f'score is called with the parameters and the gradients, but {name} does not take '
            f'these two: write score=lambda params, grads: ..., such as {name}(params)'
        ) from error


def _check_covered(found: Scores, masks: Masks) -> None:
    covered = [
        {path for path, leaf in tree.named_leaves(leaves) if leaf is not None}
        for leaves in (found, masks)
    ]
    if other := sorted(covered[0] ^ covered[1]):
        raise ValueError(
            f'only one of score and where= covers leaf {other[0]!r}: give both the same, as by '
            'score=functools.partial(scores.taylor, where=where)'
        )
