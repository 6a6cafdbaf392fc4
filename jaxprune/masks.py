"""Masks: which weights stay, made from scores at an exact count, and put onto parameters."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import counting, select, tree
from jaxprune.tree import Masks, Params, Scores


def global_top(scores: Scores, density: float | jax.Array, masks: Masks | None = None) -> Masks:
    """Keeps the highest scores over the whole tree.

    Exactly round(density · n) of the n scored weights stay, halves to even. Ties keep the lower
    leaf, then the lower flat index. Works eagerly, under `jit` and `vmap`, and on sharded leaves,
    whose masks are laid out as they are; nothing is sorted or gathered.

    Args:
      scores: higher stays; a floating-point tree, `None` where not prunable.
      density: share of all scored weights that stays, in (0, 1]. A traced value is taken as
        the float32 it is, and cannot be checked: outside, none or all stay.
      masks: where given, only weights that it keeps can stay: pruned weights do not come back.

    Returns:
      A boolean tree of the structure of `scores`.

    Raises:
      ValueError: no scores; a NaN score; density outside (0, 1], so small that nothing
        stays, or above the density of `masks`.
    Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389, section 3 (global magnitude pruning).
    """
    named, scores = _prepare(scores, masks)
    total = sum(leaf.size for _, leaf in named)
    keep = _share(density, total, 'the tree')
    if masks is not None:
        _check_room(keep, masks)
    return _select(scores, masks, [keep], [0] * len(named))


def leaf_top(scores: Scores, density: float | jax.Array, masks: Masks | None = None) -> Masks:
    """Keeps the highest scores of each leaf.

    Exactly round(density · n) of the n weights of each leaf stay, halves to even; ties keep the
    lower flat index.

    Args:
      scores: higher stays; a floating-point tree, `None` where not prunable.
      density: share of each leaf that stays, in (0, 1]; see `global_top` for traced values.
      masks: where given, only weights that it keeps can stay.

    Returns:
      A boolean tree of the structure of `scores`.

    Raises:
      ValueError: as `global_top`, for the leaf that is named.
    """
    named, scores = _prepare(scores, masks)
    keeps = [_share(density, leaf.size, f'leaf {path!r}') for path, leaf in named]
    if masks is not None:
        for keep, (path, mask) in zip(keeps, _prunable_leaves(masks), strict=True):
            _check_room(keep, mask, f'leaf {path!r}')
    return _select(scores, masks, keeps, range(len(named)))


def apply(params: Params, masks: Masks) -> Params:
    """Sets pruned weights to exactly 0, whatever they were (NaN included).

    Args:
      params: any pytree of arrays.
      masks: booleans like `params`; `None` leaves its parameter alone.

    Returns:
      A tree of the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: a mask that is missing, superfluous, or of another shape than its parameter.
    """
    tree.check_masks(masks, params)
    return tree.map_masked(
        lambda m, w: w if m is None else jnp.where(m, w, jnp.zeros_like(w)), masks, params
    )


def density(masks: Masks) -> float | jax.Array:
    """Measures kept weights / prunable weights.

    Args:
      masks: booleans, `None` where not prunable.

    Returns:
      A Python float, from integer counts; a float32 scalar when traced.

    Raises:
      ValueError: nothing is prunable.
    """
    tree.check_masks(masks, masks)
    leaves = [leaf for _, leaf in _prunable_leaves(masks)]
    total = sum(leaf.size for leaf in leaves)
    if total == 0:
        raise ValueError('these masks hold no prunable weight: every leaf is None or empty')
    kept = counting.count(leaves)
    if _is_traced(kept):
        return counting.to_float(kept) / jnp.float32(total)
    return counting.to_int(kept) / total


def _prunable_leaves(trees: Scores | Masks) -> list[tuple[str, jax.Array]]:
    return [(path, leaf) for path, leaf in tree.named_leaves(trees) if leaf is not None]


def _prepare(scores: Scores, masks: Masks | None) -> tuple[list[tuple[str, jax.Array]], Scores]:
    named = _prunable_leaves(scores)
    if not named:
        raise ValueError('there are no scores: every leaf is None')
    for path, leaf in named:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f'scores must be floating-point, but leaf {path!r} is {jnp.result_type(leaf)}'
            )
    _check_nan(named)
    if masks is not None:
        scores = _exclude(scores, masks)
        named = _prunable_leaves(scores)
    return named, scores


def _exclude(scores: Scores, masks: Masks) -> Scores:
    tree.check_masks(masks, scores)
    for path, leaf in tree.named_leaves(masks):
        if leaf is None and dict(_prunable_leaves(scores)).get(path) is not None:
            raise ValueError(f'masks are None at {path!r}, where there are scores')
    return tree.map_masked(
        # what is pruned ranks below all that is not, -inf included
        lambda s, m: None if s is None else _below(s, m),
        scores,
        masks,
    )


def _below(score: jax.Array, mask: jax.Array) -> jax.Array:
    lowest = jnp.full_like(score, jnp.finfo(score.dtype).min)
    return jnp.where(mask, jnp.maximum(score, lowest), jnp.full_like(score, -jnp.inf))


def _check_nan(named: list[tuple[str, jax.Array]]) -> None:
    if _is_traced(named):
        return
    with jax.ensure_compile_time_eval():
        found = _have_nan([leaf for _, leaf in named])
    for (path, _), has_nan in zip(named, found, strict=True):
        if has_nan:
            raise ValueError(
                f'scores of leaf {path!r} hold NaN, which has no rank: look for a diverged run, '
                'or replace NaN by -inf to prune these weights first'
            )


@jax.jit  # one pass over the leaves, and one wait
def _have_nan(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isnan(leaf).any() for leaf in leaves]


def _share(density: float | jax.Array, total: int, where: str) -> counting.Count:
    if isinstance(density, jax.core.Tracer):
        return counting.share(density, total)
    if isinstance(density, str) or np.ndim(density) or not 0 < float(density) <= 1:
        raise ValueError(f'density must be a number in (0, 1], got {density!r}')
    keep = round(float(density) * total)
    if keep == 0:
        raise ValueError(
            f'density {density} keeps none of the {total} weights of {where}: '
            f'ask for at least {1 / max(total, 1):.3g}'
        )
    return counting.from_int(keep)


def _check_room(keep: counting.Count, masks: Masks, where: str = 'the tree') -> None:
    left = counting.count([leaf for _, leaf in _prunable_leaves(masks)])
    if _is_traced((keep, left)):
        return
    if counting.to_int(keep) > counting.to_int(left):
        raise ValueError(
            f'the density asks for {counting.to_int(keep)} weights of {where}, of which the given '
            f'masks keep only {counting.to_int(left)}: a density is relative to all prunable '
            'weights'
        )


def _select(
    scores: Scores, masks: Masks | None, keeps: list[counting.Count], groups: Iterable[int]
) -> Masks:
    leaves, structure = jax.tree.flatten(scores)
    chosen = select.top(leaves, keeps, list(groups))
    if masks is not None:  # a traced count may exceed what they keep
        present = [leaf for _, leaf in _prunable_leaves(masks)]
        chosen = [new & old for new, old in zip(chosen, present, strict=True)]
    return jax.tree.unflatten(structure, chosen)


def _is_traced(values: object) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))
