import itertools

import pytest

from train import timeline
from train.timeline import Segment

LAYOUT = {
    'replicates': 2,
    'techniques': ('lr_rewind', 'fine_tune'),
    'plan': (0.5, 0.25),
    'train_steps': 10,
    'retrain_steps': 4,
}


def test_layout_by_hand():
    first = timeline.segments(**LAYOUT)[:6]
    assert first == [
        Segment(0, 'dense', 0, 1.0, 0, 10, None),
        Segment(0, 'lr_rewind', 1, 0.5, 10, 4, 10),
        Segment(0, 'lr_rewind', 2, 0.25, 14, 4, 14),
        Segment(0, 'fine_tune', 1, 0.5, 18, 4, 10),
        Segment(0, 'fine_tune', 2, 0.25, 22, 4, 22),
        Segment(1, 'dense', 0, 1.0, 26, 10, None),
    ]
    assert [s.end for s in first] == [10, 14, 18, 22, 26, 36]


def test_segments_follow_each_other_and_start_from_ends():
    segments = timeline.segments(**LAYOUT)
    ends = {segment.end for segment in segments}
    for before, after in itertools.pairwise(segments):
        assert after.start == before.end
    assert all(s.source in ends for s in segments if s.level > 0)


@pytest.mark.parametrize(
    ('step', 'place'), [(0, 0), (9, 0), (10, 1), (13, 1), (14, 2), (25, 4), (26, 5), (52, 10)]
)
def test_locates_the_segment_that_goes_on(step, place):
    assert timeline.locate(timeline.segments(**LAYOUT), step) == place
