"""Reports: how many parameters each layer had and keeps, as records and as a printed table."""

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxprune import counting, packing, tree
from jaxprune.tree import Masks, Params

HEADERS = ('leaf', 'shape', 'parameters', 'kept', 'density', 'compression')


class Record(NamedTuple):
    """Counts of one leaf, or of the whole tree."""

    path: str
    shape: tuple[int, ...] | None
    """Shape of the leaf; `None` in the total."""
    parameters: int
    prunable: int
    kept: int
    """Parameters that are not pruned; those that are not prunable are all kept."""

    @property
    def density(self) -> float | None:
        """Kept weights / prunable weights, in (0, 1]; `None` where nothing is prunable."""
        if not self.prunable:
            return None
        return (self.kept - self.parameters + self.prunable) / self.prunable

    @property
    def compression(self) -> float:
        """All parameters / kept parameters; infinite where nothing is kept."""
        return self.parameters / self.kept if self.kept else float('inf')

    def cells(self) -> tuple[str, ...]:
        """Writes the record as the texts of a table's row, under `HEADERS`."""
        shape = '' if self.shape is None else ' × '.join(map(str, self.shape))
        density = '' if self.density is None else f'{self.density:.4f}'
        counts = f'{self.parameters:,}', f'{self.kept:,}'
        return self.path, shape, *counts, density, f'{self.compression:.2f}'


def records(params: Params, masks: Masks) -> list[Record]:
    """Counts the parameters of each leaf.

    Args:
      params: any pytree of arrays, or of their shapes.
      masks: booleans like `params`, packed or not; `None` where not prunable.

    Returns:
      One record a leaf, in the order of the tree; counts are Python integers.

    Raises:
      ValueError: masks unlike the parameters.
    """
    masks = packing.unpack(masks)
    tree.check_masks(masks, params)
    masks = tree.in_structure_of(masks, params)
    leaves = dict(tree.named_leaves(params))
    return [
        _record(path, leaves[path], mask)
        for path, mask in tree.named_leaves(masks)
        if leaves[path] is not None
    ]


def total(layers: Sequence[Record]) -> Record:
    """Adds up the records of all leaves."""
    return Record(
        'total',
        None,
        sum(layer.parameters for layer in layers),
        sum(layer.prunable for layer in layers),
        sum(layer.kept for layer in layers),
    )


def table(layers: Sequence[Record], *, width: int = 100) -> str:
    """Draws the records and their total as a table of text.

    Args:
      layers: what `records` returned.
      width: columns of text at most.

    Returns:
      The lines of the table.

    Raises:
      ImportError: rich is not installed (the extra `report`).
    """
    cells = [layer.cells() for layer in layers]
    return draw(HEADERS, cells, footer=total(layers).cells(), width=width)


def draw(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    footer: Sequence[str] | None = None,
    width: int = 100,
) -> str:
    """Draws a table of text, its first column to the left; texts that are too long are folded.

    Args:
      headers: of the columns.
      rows: texts, one a column.
      footer: a last row.
      width: columns of text at most.

    Returns:
      The lines of the table.

    Raises:
      ImportError: rich is not installed (the extra `report`).
    """
    try:
        import rich.box
        import rich.console
        import rich.table
        import rich.text
    except ImportError as error:
        raise ImportError("tables need rich: pip install 'jaxprune[report]'") from error
    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_footer=footer is not None)
    for place, header in enumerate(headers):
        numbers = bool(place) and any(row[place][:1].isdigit() for row in rows)
        drawn.add_column(
            header,
            footer[place] if footer else '',
            justify='right' if numbers else 'left',
            no_wrap=numbers,
            overflow='fold',
        )
    for row in rows:
        drawn.add_row(*map(rich.text.Text, row))  # a path is no markup
    text = io.StringIO()
    # in a notebook, rich would show the table at once, in colours, and write nothing
    console = rich.console.Console(file=text, width=width, color_system=None, force_jupyter=False)
    console.print(drawn)
    lines = text.getvalue().splitlines()
    return '\n'.join(line.rstrip() for line in lines if line.strip())


def _record(path: str, leaf: Any, mask: Any) -> Record:
    shape = jnp.shape(leaf)
    size = math.prod(shape)
    if mask is None:
        return Record(path, shape, size, 0, size)
    return Record(path, shape, size, size, counting.to_int(counting.count([mask])))
