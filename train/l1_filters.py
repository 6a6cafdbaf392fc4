"""The filters that Li et al. prune in one shot, by the numbers that they give convolutions."""

from collections.abc import Collection
from typing import NamedTuple


class _Variant(NamedTuple):
    stages: tuple[int, ...]
    """Blocks of each stage."""
    shares: tuple[float, ...]
    """Of filters that go, by stage."""
    skipped: Collection[int]
    """Convolutions that keep all filters."""


_RESNET34 = (3, 4, 6, 3)
_RESNET34_SKIPPED = (2, 8, 14, 16, 26, 28, 30, 32)

VARIANTS = {
    'resnet56_a': _Variant((9, 9, 9), (0.1, 0.1, 0.1), (16, 20, 38, 54)),
    'resnet56_b': _Variant((9, 9, 9), (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54)),
    'resnet110_a': _Variant((18, 18, 18), (0.5, 0.0, 0.0), (36,)),
    'resnet110_b': _Variant((18, 18, 18), (0.5, 0.4, 0.3), (36, 38, 74)),
    'resnet34_a': _Variant(_RESNET34, (0.3, 0.3, 0.3, 0.0), _RESNET34_SKIPPED),
    'resnet34_b': _Variant(_RESNET34, (0.5, 0.6, 0.4, 0.0), _RESNET34_SKIPPED),
}
"""Networks of Li et al., table 1, and what of the first convolution of each block goes."""


def densities(name: str) -> dict[str, float]:
    """Gives the share of filters that stays in each pruned convolution of a network.

    Convolutions are counted along the network from 1, which is the one on the images, without
    shortcuts: those of block b, from 0, are 2 b + 2 and 2 b + 3. Only the first of a block, an
    even number, can lose filters, since what the second gives is added to the shortcut.

    Args:
      name: a key of `VARIANTS`.

    Returns:
      Densities by the path of a kernel in the parameters of `train.models`, for
      `masks.leaf_top(..., pattern=patterns.channels())`; leaves that are not named stay whole.

    Raises:
      ValueError: there is no such name.
    Source: Li et al. 2017, arXiv:1608.08710, sections 4.2 and 4.3; the same numbers in the code of
      Renda, Frankle & Carbin 2020, arXiv:2003.02389. Deviation: of a share that is no whole number
      of filters they keep one more or less at random; `leaf_top` keeps as many as fit, always.
    """
    if name not in VARIANTS:
        raise ValueError(f'no L1 filter setting is named {name!r}; they are {sorted(VARIANTS)}')
    stages, shares, skipped = VARIANTS[name]
    of_blocks = [share for blocks, share in zip(stages, shares, strict=True) for _ in range(blocks)]
    return {
        f'_Block_{block}/_ConvNorm_0/Conv_0/kernel': 1 - share
        for block, share in enumerate(of_blocks)
        if share > 0 and 2 * block + 2 not in skipped
    }
