"""How the report calls the techniques, and what it measures them by."""

from typing import NamedTuple

DENSE = 'dense'
FROM_SCRATCH = 'small_dense'
BRANCHES = ('shuffled_masks', 'reinit')  # prune the networks of the first technique
TECHNIQUES = {
    'lr_rewind': 'learning-rate rewinding',
    'weight_rewind': 'weight rewinding',
    'fine_tune': 'fine-tuning',
    'slr': 'SLR',
    'clr': 'CLR',
    'llr': 'LLR',
    'allr': 'ALLR',
}
CONTROLS = {
    'random_masks': 'random masks',
    'shuffled_masks': 'shuffled masks',
    'reinit': 'reinitialised tickets',
    FROM_SCRATCH: 'small dense network',
}
NAMES = {DENSE: 'dense', **TECHNIQUES, **CONTROLS}
_ORDER = list(NAMES)


class Metric(NamedTuple):
    """What networks are compared by, and how it is written."""

    column: str
    """`accuracy` or `bits`: the columns of `results.csv` without `val_` and `test_`."""
    scale: float
    unit: str
    decimals: int
    small: float
    """Differences up to this one are drawn on a linear scale, larger ones on a logarithmic."""
    higher_is_better: bool

    def value(self, number: float) -> str:
        """Writes a value, in the unit of the tables."""
        return f'{number * self.scale:.{self.decimals}f}'

    def difference(self, number: float) -> str:
        """Writes a difference with its sign."""
        return f'{number * self.scale:+.{self.decimals}f}'.replace('-', '−')


ACCURACY = Metric('accuracy', 100, 'points', 2, 1.0, higher_is_better=True)
BITS = Metric('bits', 1, 'bits', 4, 0.1, higher_is_better=False)


def prose(technique: str) -> str:
    """Names a technique in words; one that this module does not know keeps its own name."""
    return NAMES.get(technique, technique)


def ordered(techniques: set[str]) -> list[str]:
    """Sorts techniques: those of the paper, later ones, unknown ones, then the controls."""
    known = {name: number for number, name in enumerate(_ORDER)}
    first_control = known[next(iter(CONTROLS))]
    return sorted(techniques, key=lambda name: (known.get(name, first_control - 0.5), name))


def percent(share: float, decimals: int = 2) -> str:
    """Writes a share in percent."""
    return f'{100 * share:.{decimals}f} %'
