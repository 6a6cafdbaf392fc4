import itertools

import pytest

from train import timeline
from train.timeline import Segment, Training

LAYOUT = {
    'trainings': [
        Training('lr_rewind', 4, 'lr_rewind'),
        Training('weight_rewind', 7, 'weight_rewind'),
        Training('reinit', 10, 'lr_rewind'),
        Training('small_dense', 10, None),
    ],
    'plan': (0.5, 0.25),
    'train_steps': 10,
}


def test_layout_by_hand():
    assert timeline.segments(**LAYOUT) == [
        Segment('dense', 0, 1.0, 0, 10, None),
        Segment('lr_rewind', 1, 0.5, 10, 4, 10),
        Segment('lr_rewind', 2, 0.25, 14, 4, 14),
        Segment('weight_rewind', 1, 0.5, 18, 7, 10),
        Segment('weight_rewind', 2, 0.25, 25, 7, 25),
        Segment('reinit', 1, 0.5, 32, 10, 10),
        Segment('reinit', 2, 0.25, 42, 10, 14),
        Segment('small_dense', 1, 0.5, 52, 10, None),
        Segment('small_dense', 2, 0.25, 62, 10, None),
    ]


def test_one_shot_prunes_the_dense_network_at_every_level():
    segments = timeline.segments(**LAYOUT, iterative=False)
    assert [s.source for s in segments] == [None, *[10] * 6, None, None]


def test_segments_follow_each_other_and_start_from_ends():
    segments = timeline.segments(**LAYOUT)
    ends = {segment.end for segment in segments}
    for before, after in itertools.pairwise(segments):
        assert after.start == before.end
    assert all(s.source in ends for s in segments if s.source is not None)


def test_the_cost_of_a_network_is_that_of_all_it_descends_from():
    segments = timeline.segments(**LAYOUT)
    found = [timeline.cost(segments, segment) for segment in segments]
    assert found == [10, 14, 18, 17, 24, 20, 24, 10, 10]


@pytest.mark.parametrize(
    ('step', 'place'), [(0, 0), (9, 0), (10, 1), (13, 1), (14, 2), (25, 4), (32, 5), (72, 9)]
)
def test_locates_the_segment_that_goes_on(step, place):
    assert timeline.locate(timeline.segments(**LAYOUT), step) == place


@pytest.mark.parametrize(
    ('step', 'expected'),
    [
        (2, set()),
        (5, {3}),
        (10, {3, 10}),
        (14, {3, 10, 14}),
        (20, {3, 10, 14}),  # in a round, which is compared with what it pruned; another rewinds
        (27, {10, 14, 25}),  # the last that rewinds has begun
        (45, {14}),
        (52, set()),
        (72, set()),
    ],
)
def test_what_is_still_restored_by_hand(step, expected):
    segments = timeline.segments(**LAYOUT)
    assert timeline.needed(segments, step, {'weight_rewind': 3}) == expected
    assert timeline.needed(segments, step, {'weight_rewind': 0}) == expected - {3}
