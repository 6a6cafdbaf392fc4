"""Sentences of the report, made from the numbers, whichever way they fall."""

from collections import Counter
from collections.abc import Mapping, Sequence

from train.errors import BadInput
from train.report import statistics
from train.report.names import ACCURACY, CONTROLS, DENSE, Metric, percent, prose
from train.report.runs import Study
from train.report.statistics import Comparison, compare, mean_std

Pair = tuple[str, str]


def pairs(techniques: Sequence[str], baseline: str) -> list[Pair]:
    """Lists who is compared: main techniques with the baseline, with each other, with controls.

    Args:
      techniques: those of the study, in the order of the report.
      baseline: one of them.

    Returns:
      Pairs of a technique and the one that it is compared with, no pair twice.
    """
    mains = [name for name in techniques if name not in CONTROLS]
    controls = [name for name in techniques if name in CONTROLS]
    found = [(name, baseline) for name in mains if name != baseline]
    rest = [name for name in mains if name != baseline]
    found += [(one, other) for number, one in enumerate(rest) for other in rest[number + 1 :]]
    found += [(one, other) for one in mains for other in controls if other != baseline]
    return found


def choose_baseline(techniques: Sequence[str], wanted: str | None) -> str:
    """Chooses what the others are compared with: as wanted, or fine-tuning, or the last main one.

    Raises:
      BadInput: the wanted one is not among the techniques.
    """
    if wanted is not None and wanted not in techniques:
        raise BadInput(
            f'no technique {wanted!r} to compare with, there are {", ".join(techniques)}'
        )
    mains = [name for name in techniques if name not in CONTROLS]
    usual = 'fine_tune' if 'fine_tune' in techniques else (mains or list(techniques))[-1]
    return wanted or usual


def verdict(pair: Pair, comparisons: Sequence[Comparison], metric: Metric) -> str:
    """Says at how many densities the first of a pair is ahead, behind, or neither.

    Args:
      pair: the two.
      comparisons: one a level.
      metric: what was compared.

    Returns:
      A sentence.
    """
    ours, theirs = prose(pair[0]), in_sentence(pair[1])
    if not comparisons:
        return f'{_capital(ours)} and {theirs} share no replicate: they are not compared.'
    if all(each.interval is None for each in comparisons):
        return f'{_capital(ours)} against {theirs}: one replicate, nothing is decided.'
    counts = Counter(each.verdict(metric) for each in comparisons)
    return (
        f'{_capital(ours)} is ahead of {theirs} at {counts["ahead"]} of '
        f'{count(len(comparisons), "density", "densities")}, behind at {counts["behind"]}, '
        f'undecided at {counts["undecided"]}.'
    )


def summaries(study: Study) -> list[str]:
    """Says what the dense network reaches, and what each technique does at its last level."""
    results = study.results
    dense = results.test_accuracy[results.technique == DENSE]
    reached = f'The dense network has {spread(dense, ACCURACY)} % test accuracy'
    bits = results.test_bits[results.technique == DENSE].mean()
    found = [f'{reached}, {bits:.3f} bits a prediction.' if study.is_text else f'{reached}.']
    for technique in study.techniques:
        rows = results[results.technique == technique]
        last = rows[rows.level == rows.level.max()]
        bits = f'; {last.test_bits.mean():.3f} bits a prediction' if study.is_text else ''
        delta = compare(results, technique, DENSE, 'test_accuracy')[-1]
        found.append(
            f'{_capital(in_sentence(technique))}: {spread(last.test_accuracy, ACCURACY)} % with '
            f'{percent(last.density.mean())} of the prunable weights '
            f'({last.compression.mean():.1f}× compression), '
            f'{ACCURACY.difference(delta.difference)} points against dense{bits}.'
        )
    return found


def method(study: Study, compared: Sequence[Sequence[Comparison]]) -> list[str]:
    """Says what decides, how sure that is at this sample size, and how often it was asked."""
    sizes = sorted({each.n for comparisons in compared for each in comparisons})
    if not sizes or sizes[-1] < 2:
        return ['One replicate: no interval; nothing is decided.']
    decided = [each for comparisons in compared for each in comparisons if each.n > 1]
    rates = [statistics.false_decisions(each.n) for each in decided]
    found = [
        'Ahead and behind mean that the paired bootstrap interval of the mean difference excludes '
        f'0: {percent(statistics.CONFIDENCE, 0)}, percentile method, {statistics.RESAMPLES:,} '
        f'resamples of the replicates, seed {statistics.SEED}; a pair has the same seed and '
        f'replicate, hence the same dense network. Sample size: {_range(sizes)} replicates.',
        f'{count(len(decided), "comparison was", "comparisons were")} made, with no correction for '
        f'their number: about {sum(rates):.0f} would be decided by chance if all techniques were '
        'equal, since such intervals are too narrow for few replicates: with normal differences '
        f'around 0, {_rates(sizes)} of them exclude 0 (simulated), not 5 %.',
    ]
    if sizes[0] < 3:
        found.append('Fewer than three replicates: take no decision from this report alone.')
    return found


def limits(study: Study) -> list[str]:
    """Says what a fair report needs and these runs do not have."""
    results = study.results
    levels, replicates = results.level.max(), results.unit.nunique()
    missing = [prose(name) for name in CONTROLS if name not in study.techniques]
    found = []
    if replicates < 3:
        found.append(f'{count(replicates, "replicate", "replicates")}; a fair report has three.')
    if levels < 5:
        found.append(f'{count(levels, "operating point", "operating points")}, fewer than five.')
    if missing:
        found.append(f'Controls that were not run: {", ".join(missing)}.')
    return found


def require_intervals(study: Study, compared: Mapping[Pair, Sequence[Comparison]]) -> None:
    """Raises `BadInput` where a pair has fewer than two replicates in common."""
    more = 'set config.replicates to 2 or more, or add runs with other seeds'
    if study.results.unit.nunique() < 2:
        raise BadInput(f'an interval needs at least two replicates, there is one: {more}')
    for (one, other), comparisons in compared.items():
        n = min((each.n for each in comparisons), default=0)
        if n < 2:
            raise BadInput(
                f'an interval needs at least two replicates, {one} and {other} have {n} in '
                f'common: {more}'
            )


def spread(values: Sequence[float], metric: Metric) -> str:
    """Writes mean ± sample standard deviation."""
    mean, std = mean_std(values)
    return metric.value(mean) + ('' if std is None else f' ± {metric.value(std)}')


def in_sentence(technique: str) -> str:
    """Names a technique inside a sentence."""
    return f'the {prose(technique)}' if technique == 'small_dense' else prose(technique)


def count(number: int, one: str, many: str) -> str:
    """Writes a number and what it counts."""
    return f'{number:,} {one if number == 1 else many}'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _range(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f'{sizes[0]} to {sizes[-1]}'


def _rates(sizes: Sequence[int]) -> str:
    shown = [(n, statistics.false_decisions(n)) for n in sizes if n > 1]
    if len(shown) == 1:
        return f'about {percent(shown[0][1], 0)}'
    return ', '.join(f'about {percent(rate, 0)} at {n} replicates' for n, rate in shown)
