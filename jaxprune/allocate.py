"""Allocation: how many of its weights each leaf keeps, or shares with others."""

import math
from collections.abc import Mapping
from fractions import Fraction

import jax.numpy as jnp

from jaxprune import budgets, tree
from jaxprune.tree import Params, Predicate


def uniform(
    params: Params,
    density: float,
    *,
    where: Predicate = tree.prunable,
    rules: Mapping[str, float] | None = None,
    allow_empty: bool = False,
) -> dict[str, float]:
    """Gives every leaf the same density, with a total that is exact.

    Args:
      params: any pytree of arrays, or of their shapes and dtypes.
      density: share of all prunable weights that stays, in (0, 1].
      where: which leaves are prunable, by path and leaf.
      rules: densities of single leaves by path or pattern (`'Dense_*/kernel'`), which win; the
        other leaves share what they leave of the budget. 1 keeps a leaf dense. Where every leaf
        has a rule they decide, and must keep what the density asks for, to within rounding.
      allow_empty: whether a leaf may be left with nothing.

    Returns:
      The density of each prunable leaf by its path, for `masks.leaf_top`: an exact number of
      weights over the size of the leaf; in all round(density · n) weights, unless rules decide.

    Raises:
      ValueError: a density outside (0, 1]; a rule that matches no leaf, or two that contradict
        each other; a budget that the rules exceed, or that leaves a leaf with nothing.
    """
    shapes = _shapes(params, where)
    shares = {path: Fraction(math.prod(shape)) for path, shape in shapes.items()}
    return _allocate(shapes, shares, density, rules, allow_empty)


def erdos_renyi(
    params: Params,
    density: float,
    *,
    kernel: bool = True,
    where: Predicate = tree.prunable,
    rules: Mapping[str, float] | None = None,
    allow_empty: bool = False,
) -> dict[str, float]:
    """Gives small leaves higher densities than large ones, with a total that is exact.

    The density of a leaf is proportional to (d_1 + ... + d_k) / (d_1 · ... · d_k) over all axes of
    its kernel, so that its kept weights grow with the sum of its sides; without `kernel`, over its
    inputs and outputs alone. Leaves that would be more than dense are dense, and the others share
    the rest.

    Args:
      params: any pytree of arrays, or of their shapes and dtypes; the last two axes of a leaf are
        its inputs and outputs.
      density: share of all prunable weights that stays, in (0, 1].
      kernel: whether the spatial axes of convolutions count.
      where: which leaves are prunable, by path and leaf.
      rules: as in `uniform`.
      allow_empty: whether a leaf may be left with nothing.

    Returns:
      The density of each prunable leaf by its path, for `masks.leaf_top`; in all round(density · n)
      weights.

    Raises:
      ValueError: as `uniform`.
    Source: Mocanu et al. 2018, arXiv:1707.04780, eq. 3 (Erdős–Rényi); Evci et al. 2020,
      arXiv:1911.11134, section 3 (kernel form).
    """

    def share(shape: tuple[int, ...]) -> Fraction:
        spatial = math.prod(shape[:-2])
        return Fraction(sum(shape)) if kernel else Fraction(sum(shape[-2:]) * spatial)

    shapes = _shapes(params, where)
    shares = {path: share(shape) for path, shape in shapes.items()}
    return _allocate(shapes, shares, density, rules, allow_empty)


def _shapes(params: Params, where: Predicate) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    tree.map_prunable(lambda path, x: shapes.setdefault(path, jnp.shape(x)), params, where=where)
    return shapes


def _allocate(
    shapes: Mapping[str, tuple[int, ...]],
    shares: Mapping[str, Fraction],
    density: float,
    rules: Mapping[str, float] | None,
    allow_empty: bool,
) -> dict[str, float]:
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    fixed = budgets.fixed_by(sizes, rules)
    others = {path: size for path, size in sizes.items() if path not in fixed}
    keep = budgets.rest(budgets.whole(density, sum(sizes.values()), 'the tree'), fixed, others)
    counts = _hand_out(keep, others, shares)
    for path, count in counts.items():
        if count == 0 and sizes[path] and not allow_empty:
            raise ValueError(
                f'density {density} leaves leaf {path!r} with none of its {sizes[path]} weights: '
                f'ask for more, give it a rule ({{{path!r}: ...}}), or pass allow_empty=True'
            )
    counts |= {path: count for path, (count, _) in fixed.items()}
    return {path: counts[path] / size if size else 1.0 for path, size in sizes.items()}


def _hand_out(
    keep: int, sizes: Mapping[str, int], shares: Mapping[str, Fraction]
) -> dict[str, int]:
    """Hands out weights in proportion to the shares, none above its size, the total exact.

    The largest remainders round up; of equal ones the first.
    """
    full: dict[str, int] = {}
    while True:
        rest = {path: shares[path] for path in sizes if path not in full}
        unit = Fraction(keep - sum(full.values())) / (sum(rest.values()) or 1)
        over = [path for path, share in rest.items() if share * unit > sizes[path]]
        if not over:
            break
        full |= {path: sizes[path] for path in over}
    counts = full | {path: math.floor(share * unit) for path, share in rest.items()}
    by_remainder = sorted(rest, key=lambda path: counts[path] - rest[path] * unit)
    for path in by_remainder[: keep - sum(counts.values())]:
        counts[path] += 1
    return counts
