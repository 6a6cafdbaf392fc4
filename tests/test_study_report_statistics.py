"""Statistics of the report, against slow loops and cases solved by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest
import study_runs

from train.report import statistics
from train.report.names import ACCURACY, BITS
from train.report.statistics import Comparison

LEVELS = 3


def table(accuracies, **options):
    rows = pd.DataFrame(study_runs.rows(accuracies, **options))
    return rows.assign(unit=rows.replicate.astype(str))


def every_resample(differences):
    """The interval from all resamples, each as likely, instead of some thousands of them."""
    n = len(differences)
    means = [
        sum(differences[i] for i in drawn) / n for drawn in itertools.product(range(n), repeat=n)
    ]
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize('n', [4, 5, 6])
def test_interval_agrees_with_every_resample(n):
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(0.1, 1, n), rng.normal(0, 5, n)
    low, high = every_resample(ours - theirs)
    assert statistics.interval(ours, theirs) == pytest.approx((low, high), abs=0.04 * (high - low))


@pytest.mark.parametrize('n', [2, 3])
def test_interval_of_very_few_is_their_range(n):
    ours, theirs = np.array([0.3, 0.1, 0.6])[:n], np.array([0.1, 0.2, 0.1])[:n]
    assert statistics.interval(ours, theirs) == pytest.approx(
        (min(ours - theirs), max(ours - theirs))
    )


def test_interval_is_paired():
    ours = np.array([0.1, 0.5, 0.9])
    assert statistics.interval(ours, ours - 0.01) == pytest.approx((0.01, 0.01))


def test_one_replicate_has_no_interval():
    assert statistics.interval(np.array([0.5]), np.array([0.4])) is None


def test_false_decisions_by_hand():
    # The interval of two or three is their range: it excludes 0 where all have one sign.
    assert statistics.false_decisions(2) == pytest.approx(2 * 0.5**2, abs=0.02)
    assert statistics.false_decisions(3) == pytest.approx(2 * 0.5**3, abs=0.02)
    assert 0.05 < statistics.false_decisions(20) < 0.09


@pytest.mark.parametrize(
    ('interval', 'accuracy', 'bits'),
    [
        ((0.01, 0.02), 'ahead', 'behind'),
        ((-0.02, -0.01), 'behind', 'ahead'),
        ((-0.01, 0.02), 'undecided', 'undecided'),
        ((0.0, 0.02), 'undecided', 'undecided'),
        ((1e-17, 0.02), 'undecided', 'undecided'),
        ((-0.02, -1e-17), 'undecided', 'undecided'),
        (None, 'undecided', 'undecided'),
    ],
)
def test_verdicts(interval, accuracy, bits):
    comparison = Comparison(1, 2.0, 3, 0.01, interval)
    assert (comparison.verdict(ACCURACY), comparison.verdict(BITS)) == (accuracy, bits)


def test_techniques_are_compared_over_the_replicates_that_both_have():
    one = [(0.9, 0.8, 0.7)] * LEVELS
    other = [(0.6, 0.7, 0.5)] * LEVELS
    rows = table({'lr_rewind': one, 'fine_tune': other})
    rows = rows[(rows.technique != 'fine_tune') | (rows.replicate != 1)]
    found = statistics.compare(rows.iloc[::-1], 'lr_rewind', 'fine_tune', 'test_accuracy')
    assert [each.level for each in found] == [1, 2, 3]
    assert [each.n for each in found] == [2, 2, 2]
    assert found[0].difference == pytest.approx((0.3 + 0.2) / 2)
    assert found[0].interval == pytest.approx((0.2, 0.3))
    assert found[1].compression == pytest.approx(110 / 35)


def test_each_level_is_compared_with_its_own_dense_network():
    rows = table({'lr_rewind': [(0.91, 0.91, 0.91), (0.8, 0.8, 0.8), (0.7, 0.71, 0.72)]})
    found = statistics.compare(rows, 'lr_rewind', 'dense', 'test_accuracy')
    assert [each.difference for each in found] == pytest.approx([0, -0.11, -0.2])
    assert found[0].interval == pytest.approx((-0.01, 0.01))
    assert found[2].interval == pytest.approx((-0.2, -0.2))


def held_case():
    """Dense mean 0.91; test medians +0.1, -0.3, -0.1 points, validation +0.1, +0.2, -2."""
    rows = table({'lr_rewind': [(0.5, 0.911, 0.912), (0.5, 0.907, 1.0), (0.909, 0.909, 0.5)]})
    val = {0: 0.90, 1: 0.901, 2: 0.902, 3: 0.88}
    return rows.assign(val_accuracy=rows.level.map(val))


@pytest.mark.parametrize(
    ('criterion', 'chosen', 'reported', 'any_level', 'contiguous'),
    [
        (0.0, 2, -0.003, 1, 1),
        (-0.0025, 2, -0.003, 3, 1),
        (-0.01, 2, -0.003, 3, 3),
        (0.001, 2, -0.003, 1, 1),
        (0.0015, 2, -0.003, None, None),
        (0.0025, None, None, None, None),
    ],
)
def test_largest_compression_by_hand(criterion, chosen, reported, any_level, contiguous):
    compression = {None: None, 1: 110 / 60, 2: 110 / 35, 3: 110 / 22}
    held = statistics.held(held_case(), 'lr_rewind', criterion)
    assert (held.chosen, held.any, held.contiguous) == tuple(
        compression[level] for level in (chosen, any_level, contiguous)
    )
    assert held.reported == (None if reported is None else pytest.approx(reported))


def test_search_cost_of_rounds_of_one_shot_and_of_small_networks():
    same = [(0.9, 0.9, 0.9)] * LEVELS
    rows = table({'lr_rewind': same, 'slr': same, 'small_dense': same}, step=100)
    rows.loc[rows.technique == 'slr', 'train_steps'] = 150  # each level from the dense 100
    rows.loc[rows.technique == 'small_dense', 'train_steps'] = 100
    steps, whole = statistics.search_steps(rows, 'lr_rewind')
    assert (steps.tolist(), whole) == ([200, 300, 400], 400)
    steps, whole = statistics.search_steps(rows, 'slr')
    assert (steps.tolist(), whole) == ([150, 150, 150], 100 + 3 * 50)
    assert statistics.search_steps(rows, 'small_dense')[1] == 300


def test_the_search_of_a_control_that_branches_off_holds_that_of_the_first_technique():
    same = [(0.9, 0.9, 0.9)] * LEVELS
    rows = table({'lr_rewind': same, 'reinit': same}, step=100)  # the dense 100, rounds of 100
    steps, whole = statistics.search_steps(rows, 'reinit', 'lr_rewind')
    assert (steps.tolist(), whole) == ([200, 300, 400], 100 + 2 * 100 + 3 * 100)
    assert statistics.search_steps(rows, 'lr_rewind', 'lr_rewind')[1] == 400


def test_the_deviation_is_the_sample_one():
    assert statistics.mean_std([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert statistics.mean_std([1.0]) == (1.0, None)


def test_a_technique_is_compared_with_the_dense_networks_of_its_own_replicates():
    rows = table({'lr_rewind': [(0.90,)], 'fine_tune': [(0.95,)]}, dense=(0.90,), levels=1)
    other = rows[rows.technique != 'lr_rewind'].assign(unit='1/0')
    other.loc[other.technique == 'dense', ['val_accuracy', 'test_accuracy']] = 0.96
    both = pd.concat([rows[rows.technique != 'fine_tune'], other])
    assert statistics.deltas(both, 'lr_rewind', 'test').delta.tolist() == pytest.approx([0])
    assert statistics.deltas(both, 'fine_tune', 'test').delta.tolist() == pytest.approx([-0.01])
