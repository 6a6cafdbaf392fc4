"""Methods that are sparse from the first forward pass: static masks, SET, RigL."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import budgets, choose, counting, patterns, scores, tree
from jaxprune import masks as masks_lib
from jaxprune.budgets import Budget
from jaxprune.gradual import schedules, wrapper
from jaxprune.gradual.dense_to_sparse import Density
from jaxprune.gradual.schedules import Schedule
from jaxprune.gradual.wrapper import Method, Now
from jaxprune.patterns import Pattern
from jaxprune.tree import Masks, Params, Predicate, Scores


class Layout(NamedTuple):
    """Which weights are prunable, in which pattern, and how many of each leaf stay."""

    density: Density
    pattern: Pattern | Mapping[str, Pattern]
    where: Predicate


def static(
    inner: optax.GradientTransformation,
    density: Density,
    key: jax.Array,
    *,
    pattern: Pattern | Mapping[str, Pattern] = patterns.unstructured,
    where: Predicate = tree.prunable,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it trains a random sparse network, whose masks never change.

    Args:
      inner: any optax optimizer.
      density: of each leaf, in (0, 1]; or by path, such as that of `allocate.erdos_renyi`.
      key: a JAX random key for the masks.
      pattern: what stays or goes together, for all leaves or by path.
      where: which leaves are prunable, by path and leaf.
      packed: whether the state holds masks at one bit a weight.

    Returns:
      An optimizer with `GradualState`; begin with `start`, which masks the parameters.

    Raises:
      ValueError: at `init`, as `masks.leaf_top`.
    Source: Mocanu et al. 2018, arXiv:1707.04780 (the control SET is compared with).
    """
    first = _random(key, Layout(density, pattern, where))
    method = Method(first, _never, lambda now: now.masks)
    return wrapper.change_masks(inner, method, packed=packed)


def sparse_evolution(
    inner: optax.GradientTransformation,
    density: Density,
    key: jax.Array,
    *,
    schedule: Schedule,
    fraction: float = 0.3,
    pattern: Pattern | Mapping[str, Pattern] = patterns.unstructured,
    where: Predicate = tree.prunable,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that weak connections give way to random ones (SET).

    Each change drops a fraction of each leaf's weights, the smallest in magnitude, and lets as many
    return at random, from 0.

    Args:
      inner: any optax optimizer.
      density: of each leaf, in (0, 1]; or by path, such as that of `allocate.erdos_renyi`.
      key: a JAX random key for the first masks and for what returns.
      schedule: when connections change: `periodic(every, begin=every)`, after each epoch in the
        paper; without `begin` they change at the first step already.
      fraction: of the kept weights that a change drops, in (0, 1).
      pattern: what stays or goes together, for all leaves or by path; n of m above a density of
        n / m alone, where whole groups come and go.
      where: which leaves are prunable, by path and leaf.
      packed: whether the state holds masks at one bit a weight.

    Returns:
      An optimizer with `GradualState`; begin with `start`, which masks the parameters.

    Raises:
      ValueError: a fraction outside (0, 1); at `init`, as `masks.leaf_top`,
        and a pattern that lets nothing go.
    Source: Mocanu et al. 2018, arXiv:1707.04780, algorithm 1. Deviations: the moments of weights
      that return begin afresh; what was just dropped may be drawn again.
    """
    _check_fraction(fraction)
    layout = Layout(density, pattern, where)

    def change(now: Now) -> Masks:
        drawn = jax.random.fold_in(jax.random.wrap_key_data(now.memory, impl=_impl(key)), now.step)
        growth = scores.random(now.params, drawn, where=where)
        return _exchange(now, jnp.float32(fraction), growth, layout)

    method = Method(
        _random(key, layout, fraction),
        schedule.due,
        change,
        regrows=True,
        # a copy, since a step that donates its state would donate the caller's key
        begin_memory=lambda params, masks: jnp.copy(jax.random.key_data(key)),
    )
    return wrapper.change_masks(inner, method, packed=packed)


def rigl(
    inner: optax.GradientTransformation,
    density: Density,
    key: jax.Array,
    *,
    every: int,
    end: int,
    fraction: float = 0.3,
    pattern: Pattern | Mapping[str, Pattern] = patterns.unstructured,
    where: Predicate = tree.prunable,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that weak connections give way to those with the largest gradients.

    Each change drops a fraction f(t) = α/2 (1 + cos(π t / end)) of each leaf's weights, the
    smallest in magnitude, and lets as many return from 0: those of the largest |gradient| among
    all that are not kept. The gradients are those of the loss at the masked parameters, which
    `jax.grad` gives for pruned weights too.

    Args:
      inner: any optax optimizer.
      density: of each leaf, in (0, 1]; or by path, such as that of `allocate.erdos_renyi`, the
        paper's choice.
      key: a JAX random key for the first masks.
      every: steps from one change to the next; the first is at step `every`.
      end: step from which masks no longer change.
      fraction: α of the kept weights that a change drops at first, in (0, 1).
      pattern: what stays or goes together, for all leaves or by path; n of m above a density of
        n / m alone, where whole groups come and go.
      where: which leaves are prunable, by path and leaf.
      packed: whether the state holds masks at one bit a weight.

    Returns:
      An optimizer with `GradualState`; begin with `start`, which masks the parameters.

    Raises:
      ValueError: a fraction outside (0, 1); steps that are not whole or end too early; at `init`,
        as `masks.leaf_top`.
    Source: Evci et al. 2020, arXiv:1911.11134, algorithm 1. Deviation: at a change the optimizer
      also takes its step, under the new masks, where the paper's skips it.
    """
    _check_fraction(fraction)
    schedules.check_whole('every', every, 1)
    schedules.check_whole('end', end, 1)
    if end <= every:
        raise ValueError(
            f'masks first change at step {every} but no longer from step {end} on: choose an end '
            'after it'
        )
    layout = Layout(density, pattern, where)

    def change(now: Now) -> Masks:
        cosine = jnp.cos(jnp.pi * now.step.astype(jnp.float32) / end)
        return _exchange(now, fraction / 2 * (1 + cosine), _steepness(now), layout)

    due = lambda step: (step > 0) & (step < end) & (step % every == 0)
    method = Method(_random(key, layout, fraction), due, change, regrows=True)
    return wrapper.change_masks(inner, method, packed=packed)


def _exchange(now: Now, fraction: jax.Array, growth: Scores, layout: Layout) -> Masks:
    """Drops a fraction of each leaf's weights and lets as many of the highest growth return."""
    magnitudes = scores.magnitude(now.params, where=layout.where)
    budget = _budget(magnitudes, layout)
    fewer = [
        counting.subtract(counting.from_int(n), counting.share(fraction, n))
        for n in _counts(budget)
    ]
    kept = choose.top(magnitudes, budget._replace(keeps=fewer), now.masks, pattern=layout.pattern)
    first = tree.map_masked(
        lambda k, g: k if k is None else jnp.where(k, jnp.full_like(g, jnp.inf), g), kept, growth
    )
    return choose.top(first, budget, pattern=layout.pattern)


def _steepness(now: Now) -> Scores:
    """|gradient|; where it is NaN nothing grows, since what was just dropped returns before."""

    def visit(mask: jax.Array, gradient: jax.Array) -> jax.Array:
        last = jnp.where(mask, -jnp.ones_like(gradient), jnp.full_like(gradient, -jnp.inf))
        return jnp.where(jnp.isnan(gradient), last, jnp.abs(gradient))

    return tree.map_masked(lambda m, g: None if m is None else visit(m, g), now.masks, now.grads)


def _random(
    key: jax.Array, layout: Layout, fraction: float | None = None
) -> Callable[[Params], Masks]:
    def first(params: Params) -> Masks:
        drawn = scores.random(params, key, where=layout.where)
        chosen = masks_lib.leaf_top(drawn, layout.density, pattern=layout.pattern)
        if fraction is not None:
            _check_room(drawn, fraction, layout)
        # inside shard_map, masks must vary between devices as later ones will
        return tree.map_masked(_vary_as, chosen, params)

    return first


def _vary_as(mask: Any, weight: Any) -> Any:
    return None if mask is None else mask & jnp.ones_like(weight, bool)


def _check_room(drawn: Scores, fraction: float, layout: Layout) -> None:
    """Raises where the pattern would not let go of so many weights."""
    budget = _budget(drawn, layout)
    fewer = [n - round(fraction * n) for n in _counts(budget)]
    short = budget._replace(keeps=fewer, last=fewer)
    trial = lambda s: choose.top(s, short, pattern=layout.pattern)
    try:
        jax.eval_shape(trial, drawn)
    except ValueError as error:
        raise ValueError(
            f'this pattern cannot drop a fraction of {fraction} and regrow as much, since the n '
            'highest of m always stay: for n of m take gradual.prune or gradual.static; or a '
            f'density above n / m, at which enough groups are dense ({error})'
        ) from error


def _budget(scored: Scores, layout: Layout) -> Budget:
    budgets.check_untraced(layout.density)
    return budgets.apart(choose.sizes(scored), layout.density, 1.0)


def _counts(budget: Budget) -> list[int]:
    return [keep for keep in budget.keeps if isinstance(keep, int)]  # all: nothing is traced


def _never(step: jax.Array) -> jax.Array:
    return step < 0


def _impl(key: jax.Array) -> Any:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_impl(key) if typed else None


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f'fraction must be in (0, 1), got {fraction}')
