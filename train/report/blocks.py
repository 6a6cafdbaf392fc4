"""What a report is made of, the same for both of its forms."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Text(NamedTuple):
    """A paragraph."""

    text: str
    kind: str = 'text'


class Bullets(NamedTuple):
    """A list of sentences; with a title, folded away under it."""

    items: Sequence[str]
    title: str = ''
    kind: str = 'bullets'


class Table(NamedTuple):
    """A table of texts; the first columns are words, the others numbers."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ''
    words: int = 1
    """How many columns are words."""
    kind: str = 'table'


class Drawing(NamedTuple):
    """A picture, drawn when the report is written."""

    name: str
    """Of the file, without its ending."""
    alt: str
    """What it shows, for who cannot see it."""
    figure: Callable[[], 'Figure']
    caption: str
    kind: str = 'drawing'


class Listing(NamedTuple):
    """Text of a program or a file, folded away."""

    title: str
    text: str
    kind: str = 'listing'


Block = Text | Bullets | Table | Drawing | Listing


class Section(NamedTuple):
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]
