"""Masks: which weights stay, made from scores at an exact count, and put onto parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import budgets, counting, layouts, patterns, tree
from jaxprune import choose as choose_lib
from jaxprune.packing import Packed, pack, unpack
from jaxprune.patterns import Pattern
from jaxprune.tree import Masks, Params, Scores

__all__ = [
    'Packed',
    'apply',
    'density',
    'global_top',
    'iterated',
    'leaf_top',
    'n_of_m',
    'pack',
    'shuffle',
    'unpack',
]


def global_top(
    scores: Scores,
    density: float | jax.Array,
    masks: Masks | None = None,
    *,
    pattern: Pattern | Mapping[str, Pattern] = patterns.unstructured,
    rules: Mapping[str, float] | None = None,
    floor: float = 0.0,
    progress: float | jax.Array = 1.0,
    allow_empty: bool = False,
    absolute: bool = False,
) -> Masks:
    """Keeps the highest scores over the whole tree.

    Exactly round(density · n) of the n scored weights stay, halves to even; of units that hold
    more than one weight, as many as fit. Ties keep the lower leaf, then the lower flat index. Works
    eagerly, under `jit` and `vmap`, and on sharded leaves, whose masks are laid out as they are;
    nothing is sorted or gathered.

    Args:
      scores: higher stays; a floating-point tree, `None` where not prunable. Traced ones cannot be
        checked: where a NaN ranks, and with `masks` how many stay then, is not defined.
      density: share of all scored weights that stays, in (0, 1]. A traced value is taken as
        the float32 it is, and cannot be checked: below 0 none stay, above 1 all.
      masks: where given, only weights that it keeps can stay: pruned weights do not come back.
      pattern: what stays or goes together, for all leaves or by path; leaves without one are
        unstructured.
      rules: densities of single leaves by path or pattern of paths, which win: they keep their own
        highest scores, the other leaves share what is left of the budget. Rules for every leaf must
        keep what the density asks for, to within rounding.
      floor: share of each leaf that stays at least, its highest scores; rounded up.
      progress: share of the way from dense to `density`, in [0, 1], may be traced: at p,
        n - round(p · (n - round(density · n))) weights stay. A traced one beyond its range is
        taken as the nearer end.
      allow_empty: whether a leaf may be left with nothing, which cuts the network in two; it
        cannot be told of traced scores.
      absolute: whether absolute values rank, as if `scores` were their magnitudes; these are made
        where they are read, which saves the memory of the scores for `tree.map_prunable` of the
        parameters themselves. With masks, a pattern or a floor it saves none.

    Returns:
      A boolean tree of the structure of `scores`.

    Raises:
      ValueError: no scores; a score that is NaN or infinite; density outside (0, 1], so small that
        nothing stays, or above the density of `masks`; a pattern that does not fit a leaf; rules
        that match nothing, contradict each other or exceed the density; a floor above it; a leaf
        left with nothing.
    Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389, section 3 (global magnitude pruning).
    """
    scores, masks = _prepare(scores, masks)
    budget = budgets.together(choose_lib.sizes(scores), density, rules, progress)
    chosen = choose_lib.top(scores, budget, masks, pattern=pattern, floor=floor, absolute=absolute)
    _check_kept(chosen, density, allow_empty)
    return chosen


def leaf_top(
    scores: Scores,
    density: float | jax.Array | Mapping[str, float],
    masks: Masks | None = None,
    *,
    pattern: Pattern | Mapping[str, Pattern] = patterns.unstructured,
    progress: float | jax.Array = 1.0,
    allow_empty: bool = False,
    absolute: bool = False,
) -> Masks:
    """Keeps the highest scores of each leaf.

    Exactly round(density · n) of the n weights of each leaf stay, halves to even; of units that
    hold more than one weight, as many as fit. Ties keep the lower flat index.

    Args:
      scores: higher stays; a floating-point tree, `None` where not prunable.
      density: share of each leaf that stays, in (0, 1]; see `global_top` for traced values. Or the
        densities of all leaves by path or pattern of paths, such as those of
        `allocate.erdos_renyi`.
      masks: where given, only weights that it keeps can stay.
      pattern: what stays or goes together, for all leaves or by path.
      progress: share of the way from dense to `density`, as in `global_top`.
      allow_empty: whether a leaf may be left with nothing, by a density of 0 or where no block fits
        its budget.
      absolute: whether absolute values rank, as in `global_top`.

    Returns:
      A boolean tree of the structure of `scores`.

    Raises:
      ValueError: as `global_top`, for the leaf that is named; a leaf without a density.
    """
    scores, masks = _prepare(scores, masks)
    budget = budgets.apart(choose_lib.sizes(scores), density, progress, allow_empty=allow_empty)
    chosen = choose_lib.top(scores, budget, masks, pattern=pattern, absolute=absolute)
    _check_kept(chosen, density, allow_empty)
    return chosen


def n_of_m(scores: Scores, n: int, m: int, axis: int = -2) -> Masks:
    """Keeps the n highest of each m neighbours along an axis.

    Args:
      scores: higher stays; a floating-point tree, `None` where not prunable.
      n: weights that stay, in [1, m).
      m: weights in a group.
      axis: the groups lie along; by default the contraction axis of a kernel.

    Returns:
      A boolean tree of the structure of `scores`. The same by fraction of groups, with other
      patterns beside it, or during training: `pattern=patterns.n_of_m(n, m)`.

    Raises:
      ValueError: a leaf without that axis, or whose axis m does not divide; scores that are NaN or
        infinite.
    Source: Zhou et al. 2021, arXiv:2102.04010, eq. 1.
    """
    return leaf_top(scores, n / m, pattern=patterns.n_of_m(n, m, axis=axis))


def iterated(
    score: Callable[[Params], Scores],
    params: Params,
    density: float,
    *,
    rounds: int = 100,
    choose: Callable[[Scores, float | jax.Array, Masks], Masks] = global_top,
) -> Masks:
    """Prunes in many small steps without training, scoring anew what each step has left.

    Step k of r keeps density^(k / r) of the weights. SynFlow needs it: scored once, it empties
    whole layers.

    Args:
      score: scores parameters, whose pruned weights are 0.
      params: any pytree of arrays.
      density: share of all scored weights that stays in the end, in (0, 1].
      rounds: number of steps, at least 1.
      choose: makes masks from scores, a density and the masks before, as `global_top` does.

    Returns:
      The masks of the last step.

    Raises:
      ValueError: rounds that are not a whole number from 1; as `choose`.
    Source: Tanaka et al. 2020, arXiv:2006.05467, algorithm 1.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f'rounds must be a whole number from 1, got {rounds!r}')
    budgets.check_density(density)
    masks = tree.map_masked(
        lambda s, w: None if s is None else jnp.ones_like(w, bool),
        jax.eval_shape(score, params),
        params,
    )
    steps = jnp.array([density ** (k / rounds) for k in range(1, rounds + 1)], jnp.float32)
    narrow = lambda k, kept: choose(score(apply(params, kept)), steps[k], kept)
    masks = jax.lax.fori_loop(0, rounds - 1, narrow, masks)
    return choose(score(apply(params, masks)), density, masks)


def shuffle(masks: Masks, key: jax.Array) -> Masks:
    """Permutes each mask within its leaf: the control that keeps how much each layer keeps.

    Args:
      masks: booleans, `None` where not prunable.
      key: a JAX random key; each leaf draws from the key folded with its place among the leaves.

    Returns:
      Masks of the same structure and shapes, with the same number kept in each leaf.
    Source: Frankle et al. 2021, arXiv:2009.08576, section 5 (random shuffling).
    """
    places = {path: place for place, (path, _) in enumerate(tree.named_leaves(masks))}

    def visit(path: tuple[Any, ...], mask: jax.Array | None) -> jax.Array | None:
        if mask is None:
            return None
        own = jax.random.fold_in(key, places[tree.path_name(path)])
        permute = lambda x, own: jax.random.permutation(own, x.reshape(-1)).reshape(x.shape)
        permuted: jax.Array = layouts.like(permute, mask)(mask, own)
        return permuted

    masks = unpack(masks)
    tree.check_masks(masks, masks)
    return jax.tree.map_with_path(visit, masks, is_leaf=tree.is_none)


def apply(params: Params, masks: Masks) -> Params:
    """Sets pruned weights to exactly 0, whatever they were (NaN included).

    Args:
      params: any pytree of arrays.
      masks: booleans like `params`, packed or not; `None` leaves alone what it stands for, a leaf
        or a whole branch.

    Returns:
      A tree of the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: a mask that is missing, superfluous, or of another shape than its parameter.
    """
    masks = unpack(masks)
    tree.check_masks(masks, params)
    return tree.map_masked(
        lambda m, w: w if m is None else jnp.where(layouts.moved(m, w), w, jnp.zeros_like(w)),
        tree.in_structure_of(masks, params),
        params,
    )


def density(masks: Masks) -> float | jax.Array:
    """Measures kept weights / prunable weights.

    Args:
      masks: booleans, packed or not; `None` where not prunable.

    Returns:
      A Python float, from integer counts; a float32 scalar when traced.

    Raises:
      ValueError: nothing is prunable.
    """
    masks = unpack(masks)
    tree.check_masks(masks, masks)
    leaves = [leaf for _, leaf in tree.present(masks)]
    total = sum(leaf.size for leaf in leaves)
    if total == 0:
        raise ValueError('these masks hold no prunable weight: every leaf is None or empty')
    kept = counting.count(leaves)
    if _is_traced(kept):
        return counting.to_float(kept) / jnp.float32(total)
    return counting.to_int(kept) / total


def _prepare(scores: Scores, masks: Masks | None) -> tuple[Scores, Masks | None]:
    named = tree.present(scores)
    if not named:
        raise ValueError('there are no scores: every leaf is None')
    for path, leaf in named:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f'scores must be floating-point, but leaf {path!r} is {jnp.result_type(leaf)}'
            )
    for path, leaf in named:
        if isinstance(leaf, np.ndarray) and leaf.dtype != jnp.asarray(leaf).dtype:
            raise ValueError(
                f'scores of leaf {path!r} are {leaf.dtype}, which JAX would round to '
                f'{jnp.asarray(leaf).dtype}: cast them, or use jax.enable_x64'
            )
    scores = jax.tree.map(jnp.asarray, scores)
    _check_finite(tree.present(scores))
    if masks is not None:
        masks = unpack(masks)
        tree.check_masks(masks, scores, like='scores')
        masks = tree.in_structure_of(masks, scores)
    return scores, masks


def _check_finite(named: list[tuple[str, jax.Array]]) -> None:
    if _is_traced(named):
        return
    with jax.ensure_compile_time_eval():
        found = _are_finite([leaf for _, leaf in named])
        for (path, leaf), finite in zip(named, np.asarray(found), strict=True):
            if not finite:
                nan, infinite = (
                    jnp.sum(test(leaf), dtype=jnp.uint32) for test in (jnp.isnan, jnp.isinf)
                )
                raise ValueError(
                    f'scores of leaf {path!r} hold {nan} NaN and {infinite} infinite ones among '
                    f'{leaf.size}, which cannot be ranked: look for a diverged run, or replace '
                    'them, as by jnp.nan_to_num'
                )


@jax.jit  # one pass over the leaves, and one wait
def _are_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def _check_kept(masks: Masks, density: object, allow_empty: bool) -> None:
    if allow_empty or _is_traced(masks):
        return
    with jax.ensure_compile_time_eval():
        kept = _keep_some([mask for _, mask in tree.present(masks)])
        for (path, mask), some in zip(tree.present(masks), np.asarray(kept), strict=True):
            if mask.size and not some:
                raise ValueError(
                    f'density {density} leaves leaf {path!r} with none of its {mask.size} weights, '
                    'which cuts the network in two: ask for more, give it a floor or a rule, leave '
                    'it dense (the same where=lambda path, leaf: ... in the scores and in pruned), '
                    'or pass allow_empty=True'
                )


@jax.jit
def _keep_some(masks: list[jax.Array]) -> jax.Array:
    return jnp.stack([mask.any() for mask in masks])


def _is_traced(values: object) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))
