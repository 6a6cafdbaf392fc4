"""Statistics over replicates: paired bootstrap intervals, the largest compression that holds."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from train.report.names import BRANCHES, DENSE, Metric

RESAMPLES = 9999
SEED = 0
CONFIDENCE = 0.95
CRITERIA = (0.0, -0.0025, -0.01)
_ROUNDING = 1e-9  # sums of equal numbers in another order differ by less


class Comparison(NamedTuple):
    """Two techniques at one level, over the replicates that both have."""

    level: int
    compression: float
    n: int
    difference: float
    """Mean over replicates of the first less the second."""
    interval: tuple[float, float] | None
    """Of the mean difference; `None` with fewer than two replicates."""

    def verdict(self, metric: Metric) -> str:
        """Says `ahead`, `behind` or `undecided`: whether the interval excludes 0."""
        low, high = self.interval or (0.0, 0.0)
        if low <= _ROUNDING and high >= -_ROUNDING:
            return 'undecided'
        return 'ahead' if (low > 0) == metric.higher_is_better else 'behind'


class Held(NamedTuple):
    """The largest compressions at which a technique holds a criterion; `None` where at none."""

    chosen: float | None
    """By validation accuracy."""
    reported: float | None
    """Difference to the dense network in test accuracy, at the chosen one."""
    any: float | None
    """By test accuracy, whatever happens at smaller compressions."""
    contiguous: float | None
    """By test accuracy, where all smaller compressions hold it too."""


def interval(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float] | None:
    """Computes the percentile bootstrap interval of a mean paired difference.

    Replicates are drawn with replacement, both values of a replicate together; the interval holds
    the middle 95 % of the mean differences.

    Args:
      ours: one value a replicate.
      theirs: values of the same replicates, in the same order.

    Returns:
      Its ends, or `None` with fewer than two replicates.
    """
    if len(ours) < 2:
        return None
    found = scipy.stats.bootstrap(
        (ours, theirs),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        vectorized=True,
        method='percentile',
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


@functools.cache
def false_decisions(n: int) -> float:
    """Estimates how often `interval` excludes 0 where there is no difference.

    Args:
      n: replicates, at least 2.

    Returns:
      The share of 4,000 draws of n normal differences around 0, each with 999 resamples; 0.05
      would be right, few replicates give more.
    """
    rng = np.random.default_rng(SEED)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=999) / n
    means = weights @ rng.standard_normal((n, 4000))
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return float(np.mean((low > _ROUNDING) | (high < -_ROUNDING)))


def compare(results: pd.DataFrame, technique: str, other: str, column: str) -> list[Comparison]:
    """Compares two techniques, level by level.

    Args:
      results: rows with `unit`, `technique`, `level`, `compression` and the column.
      technique: the first.
      other: the second, or `dense`: each level then against the dense network.
      column: what is compared.

    Returns:
      The levels at which the two have replicates in common, lowest first.
    """
    ours = results[results.technique == technique]
    theirs = results[results.technique == other]
    on = ['unit'] if other == DENSE else ['unit', 'level']
    pairs = ours.merge(theirs[[*on, column]], on=on, suffixes=('', '_other')).sort_values('unit')
    return [
        Comparison(
            int(level),
            float(rows.compression.mean()),
            len(rows),
            float((rows[column] - rows[f'{column}_other']).mean()),
            interval(rows[column].to_numpy(), rows[f'{column}_other'].to_numpy()),
        )
        for level, rows in pairs.groupby('level')
    ]


def deltas(results: pd.DataFrame, technique: str, split: str) -> pd.DataFrame:
    """Computes the paper's delta at each level: median accuracy less the mean dense accuracy.

    Args:
      results: rows with `technique`, `unit`, `level`, `compression` and the accuracies.
      technique: which.
      split: `val` or `test`.

    Returns:
      `compression` and `delta`, a row a level, lowest first.
    """
    column = f'{split}_accuracy'
    levels = results[results.technique == technique].groupby('level')
    dense = own_dense(results, technique)[column].mean()
    return pd.DataFrame(
        {'compression': levels.compression.mean(), 'delta': levels[column].median() - dense}
    )


def own_dense(results: pd.DataFrame, technique: str) -> pd.DataFrame:
    """Picks the dense rows of the replicates that a technique has."""
    units = results.unit[results.technique == technique]
    return results[(results.technique == DENSE) & results.unit.isin(units)]


def held(results: pd.DataFrame, technique: str, criterion: float) -> Held:
    """Finds the largest compressions at which a technique holds a criterion.

    Args:
      results: rows of the study.
      technique: which.
      criterion: the smallest delta that will do, such as -0.0025.

    Returns:
      The one that validation accuracy chooses, with the delta of its test accuracy, and the two
      readings of the test accuracies that the paper's tables allow.
    """
    test = deltas(results, technique, 'test')
    chosen = largest(deltas(results, technique, 'val'), criterion)
    reported = None if chosen is None else float(test.delta[test.compression == chosen].iloc[0])
    return Held(chosen, reported, largest(test, criterion), unbroken(test, criterion))


def largest(table: pd.DataFrame, criterion: float) -> float | None:
    """Finds the largest compression whose delta is at least the criterion."""
    holds = table.compression[table.delta >= criterion - _ROUNDING]
    return None if holds.empty else float(holds.max())


def unbroken(table: pd.DataFrame, criterion: float) -> float | None:
    """Finds the largest compression up to which every delta is at least the criterion."""
    table = table.sort_values('compression')
    return largest(table[(table.delta >= criterion - _ROUNDING).cummin()], criterion)


def search_steps(
    results: pd.DataFrame, technique: str, lead: str | None = None
) -> tuple[pd.Series, float]:
    """Counts the optimizer steps of a search: per level, and for all levels together.

    Steps that grow with the level are those of rounds, each from the one before; steps that do not
    are those of one-shot pruning, each level from the dense network. A small dense network needs
    no dense training. Shuffled masks and reinitialised tickets branch off from each network of
    the first technique, whose search theirs holds up to the last but one level.

    Args:
      results: rows with `technique`, `level` and `train_steps`.
      technique: which.
      lead: the first technique.

    Returns:
      The steps that each level's network has cost, and those of the whole search.
    """
    dense = results.loc[results.technique == DENSE, 'train_steps'].mean()
    steps = results[results.technique == technique].groupby('level').train_steps.mean()
    if technique == 'small_dense':
        return steps, float(steps.sum())
    if (steps.diff().dropna() > 0).all():
        trunk = results[results.technique == lead].groupby('level').train_steps.mean()
        if technique not in BRANCHES or not set(steps.index[:-1]) <= set(trunk.index):
            return steps, float(steps.iloc[-1])
        pruned = pd.Series([dense, *trunk.loc[steps.index[:-1]]], steps.index)
        return steps, float(pruned.iloc[-1] + (steps - pruned).sum())
    return steps, float(dense + (steps - dense).sum())


def mean_std(values: Sequence[float] | pd.Series) -> tuple[float, float | None]:
    """Computes the mean and the sample standard deviation, `None` for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
