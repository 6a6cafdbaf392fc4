"""The whole run as a list of segments, and where in it a number of training steps lies."""

import bisect
from collections.abc import Mapping, Sequence
from typing import NamedTuple

DENSE = 'dense'


class Training(NamedTuple):
    """How the rounds of one technique are trained."""

    name: str
    steps: int
    """Length of a round."""
    prunes: str | None
    """The technique whose networks its rounds prune: mostly its own; `None` for one that trains
    from scratch."""


class Segment(NamedTuple):
    """One training, of all replicates: the dense networks, or one round of a technique."""

    technique: str
    """`'dense'` at level 0."""
    level: int
    density: float
    """Absolute density that the round prunes to; 1 at level 0."""
    start: int
    """Steps of the whole run before this segment."""
    steps: int
    source: int | None
    """End, in steps of the whole run, of the segment whose weights this one prunes."""

    @property
    def end(self) -> int:
        """Steps of the whole run up to the end of this segment."""
        return self.start + self.steps

    def __str__(self) -> str:
        """Names the segment in messages."""
        return self.technique if self.level == 0 else f'{self.technique} level {self.level}'


def segments(
    *,
    trainings: Sequence[Training],
    plan: Sequence[float],
    train_steps: int,
    iterative: bool = True,
) -> list[Segment]:
    """Lays out a run: the dense training, then each technique's rounds.

    Args:
      trainings: the techniques; one that prunes the networks of another comes after it.
      plan: absolute densities, level 1 first.
      train_steps: steps of a dense training.
      iterative: whether a round prunes the network of the level before, not the dense one.

    Returns:
      The segments in the order in which they run. One step of the whole run is a step of each
      replicate.
    """
    dense = Segment(DENSE, 0, 1.0, 0, train_steps, None)
    result = [dense]
    ends = {(training.name, 0): dense.end for training in trainings}
    for name, steps, prunes in trainings:
        for level, density in enumerate(plan, 1):
            source = None if prunes is None else ends[prunes, level - 1 if iterative else 0]
            segment = Segment(name, level, density, result[-1].end, steps, source)
            ends[name, level] = segment.end
            result.append(segment)
    return result


def locate(timeline: Sequence[Segment], step: int) -> int:
    """Finds the segment that a run which has taken `step` steps is in, or is about to begin.

    Args:
      timeline: what `segments` returned.
      step: steps of the whole run.

    Returns:
      The place of the segment in the timeline; its length when the run is complete.
    """
    return bisect.bisect_right([segment.end for segment in timeline], step)


def needed(timeline: Sequence[Segment], step: int, rewinds: Mapping[str, int]) -> set[int]:
    """Lists the steps, up to `step`, whose networks the segments after it begin from.

    Args:
      timeline: what `segments` returned.
      step: steps of the whole run that were taken.
      rewinds: the step that a round rewinds its weights to, by technique; 0 is drawn again.

    Returns:
      Steps of the whole run.
    """
    ahead = timeline[locate(timeline, step) :]
    begun = {segment.source for segment in ahead}  # a round that has begun compares with it
    begun |= {rewinds.get(segment.technique) for segment in ahead if segment.start >= step}
    return {source for source in begun if source and source <= step}


def cost(timeline: Sequence[Segment], segment: Segment) -> int:
    """Counts the training steps that a segment's network has cost, those it descends from too.

    Args:
      timeline: what `segments` returned.
      segment: one of them.

    Returns:
      Steps of one replicate, the dense training included.
    """
    if segment.source is None:
        return segment.steps
    source = timeline[locate(timeline, segment.source) - 1]
    return segment.steps + cost(timeline, source)
