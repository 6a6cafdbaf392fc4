"""The whole run as a list of segments, and where in it a number of training steps lies."""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

DENSE = 'dense'


class Segment(NamedTuple):
    """One training: the dense network of a replicate, or one round of a technique."""

    replicate: int
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
        name = self.technique if self.level == 0 else f'{self.technique} level {self.level}'
        return name if self.replicate == 0 else f'{name} of replicate {self.replicate}'


def segments(
    *,
    replicates: int,
    techniques: Sequence[str],
    plan: Sequence[float],
    train_steps: int,
    retrain_steps: int,
) -> list[Segment]:
    """Lays out a run: for each replicate the dense training, then each technique's rounds.

    Args:
      replicates: networks trained, each from its own random keys.
      techniques: names of the retraining techniques.
      plan: absolute densities, level 1 first.
      train_steps: steps of a dense training.
      retrain_steps: steps of a round.

    Returns:
      The segments in the order in which they run.
    """
    result: list[Segment] = []
    start = 0
    for replicate in range(replicates):
        dense = Segment(replicate, DENSE, 0, 1.0, start, train_steps, None)
        result.append(dense)
        start = dense.end
        for technique in techniques:
            source = dense.end
            for level, density in enumerate(plan, 1):
                result.append(
                    Segment(replicate, technique, level, density, start, retrain_steps, source)
                )
                source = start = start + retrain_steps
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
