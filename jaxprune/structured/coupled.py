"""Groups: the slices of parameters that must go together when a channel, head or unit goes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from jaxprune import report, tree
from jaxprune.structured import dims, trace, vanish
from jaxprune.structured.dims import Dim
from jaxprune.structured.trace import Axes, Barrier, Block
from jaxprune.tree import Params

Keep: TypeAlias = Mapping[str, np.ndarray]
"""Which units of a group stay, booleans (size,), by the name of the group; a group that is not
named stays whole."""


class Slice(NamedTuple):
    """One axis of a leaf that a group cuts."""

    path: str
    axis: int
    units: np.ndarray
    """The unit that each position along the axis belongs to, -1 for none."""


class Group(NamedTuple):
    """A row of units; a unit is what goes at once, in every leaf that it cuts."""

    name: str
    """The leaf and axis that it cuts first, as `'Dense_0/kernel:1'`; with the place among the
    groups along that axis, the outermost 0, where there are several: `'qkv/kernel:1.0'`."""
    size: int
    slices: tuple[Slice, ...]
    inexact: str
    """Where the function sums entries of removed units that need not be 0, so that removing them
    is not the same as setting their weights to zero; empty for none."""


class Groups(NamedTuple):
    """What can be removed from a function of parameters, and what cannot, and why."""

    fn: Callable[..., Any]
    params: Params
    """Shapes and dtypes."""
    groups: tuple[Group, ...]
    kept: Mapping[tuple[str, int], str]
    """Why an axis of a leaf, or a part of it, stays whole, by path and axis."""
    barriers: tuple[Barrier, ...]
    """Equations that are not understood, so that what they touch stays whole."""
    unused: tuple[str, ...]
    """Leaves that the function does not use."""

    def named(self, name: str) -> Group:
        """Returns the group of a name."""
        found = {group.name: group for group in self.groups}
        if name not in found:
            raise ValueError(f'no group is named {name!r}; they are {sorted(found)}')
        return found[name]

    def table(self, *, width: int = 100) -> str:
        """Draws the groups, barriers and unused leaves as text; needs the extra `report`."""
        rows = [
            (group.name, str(group.size), f'{weights(self, group):,}', where, '' if i else note)
            for group in self.groups
            for note in [f'not exact: {group.inexact}' if group.inexact else '']
            for i, where in enumerate(_cuts(group))
        ]
        rows = [
            row if i == 0 or row[0] != rows[i - 1][0] else ('', '', '', *row[3:])
            for i, row in enumerate(rows)
        ]
        lines = [report.draw(('group', 'units', 'weights a unit', 'cuts', ''), rows, width=width)]
        lines += [
            f'not known, kept whole around it: {b.primitive} ({b.where})' for b in self.barriers
        ]
        lines += [f'not used by the function: {path}' for path in self.unused]
        return '\n'.join(lines)


def groups(
    fn: Callable[..., Any],
    params: Params,
    *args: Any,
    protect: Sequence[str] = (),
    outputs: bool = False,
) -> Groups:
    """Finds which slices of the parameters must go together, from the function's jaxpr.

    Nothing is computed. What is tied is read off the program and never off sizes or names, so that
    a batch as large as a layer is wide confuses nothing. The axes of inputs and outputs stay whole,
    and so does all that meets a primitive that is not known.

    Args:
      fn: a function of the parameters and other arguments, in evaluation mode: what training also
        returns, as updated batch statistics, would be kept whole as an output.
      params: pytree of arrays, or of their shapes; with all that shrinks along, such as batch
        statistics: `model.init(...)` as it is.
      *args: the other arguments, or their shapes.
      protect: paths of leaves that stay whole, or patterns in which `*` stands for anything.
      outputs: whether the axes of outputs may be cut too.

    Returns:
      The groups, in the order in which the function uses them.

    Raises:
      ValueError: a leaf that is no array; the function returns no array, or what it does depends on
        values; a path that matches no leaf; nothing can be removed.
    """
    names = [path for path, _ in tree.arrays(params)]
    closed, _ = trace.closed_jaxpr(fn, params, *args)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), params)
    block, barriers = traced(closed, len(names))
    for axes in [] if outputs else block.outs:
        for dim in axes:
            dims.keep(dim, 'it is an axis of the output')
    protected = tree.by_path(dict.fromkeys(protect, True), names) if protect else {}
    for path, axes in zip(names, block.ins, strict=False):
        for dim in axes:
            if path in protected:
                dims.keep(dim, f'{path} is protected')
    order = uses(block)[: len(names)]
    unused = tuple(path for path, use in zip(names, order, strict=True) if use is None)
    given = [vanish.whole(axes) if i < len(names) else {} for i, axes in enumerate(block.ins)]
    sums = vanish.sums(block, given)
    found, kept = _collect(list(zip(names, block.ins, order, strict=False)), sums)
    if not found:
        shown = '; '.join(f'{path}:{axis}: {why}' for (path, axis), why in list(kept.items())[:8])
        raise ValueError(f'no unit of the parameters can be removed: {shown}')
    return Groups(fn, shapes, found, kept, tuple(dict.fromkeys(barriers)), unused)


def traced(closed: Any, leaves: int, *, tangents: bool = False) -> tuple[Block, list[Barrier]]:
    """Walks through a function whose first arguments are the leaves of parameters."""
    barriers: list[Barrier] = []
    free = [trace.fresh(aval) for aval in closed.in_avals[:leaves]]
    fixed = [trace.fresh(aval, 'it is an axis of an input') for aval in closed.in_avals[leaves:]]
    return trace.trace(closed, [*free, *fixed], barriers, tangents=tangents), barriers


def uses(block: Block) -> list[int | None]:
    """Counts the equation that first uses each argument of a program, `None` where none does."""
    first: dict[Any, int] = {}
    for number, step in enumerate(block.steps):
        for var in trace.variables(step.eqn):
            first.setdefault(var, number)
    for result in block.jaxpr.outvars:
        if not trace.is_literal(result):
            first.setdefault(result, len(block.steps))
    return [first.get(var) for var in block.jaxpr.invars]


def rows(groups: Groups, axes: Mapping[str, Axes]) -> dict[str, Dim]:
    """Finds the row of each group in the program traced again, from the dims of its leaves."""
    return {
        group.name: row
        for group in groups.groups
        for row, index in dims.columns(axes[group.slices[0].path][group.slices[0].axis])
        if np.array_equal(index, group.slices[0].units)
    }


def weights(found: Groups, group: Group) -> int:
    """Counts the parameters that one unit of a group holds, on the average."""
    shapes = {path: leaf.shape for path, leaf in tree.present(found.params)}
    total = 0
    for path in dict.fromkeys(cut.path for cut in group.slices):
        left = 1.0  # share that is in no unit
        for cut in group.slices:
            if cut.path == path:
                left *= float(np.mean(cut.units < 0))
        total += round((1 - left) * np.prod(shapes[path]))
    return round(total / group.size)


Leaf: TypeAlias = tuple[str, Axes, int | None]
"""Path, dims, and the place of its first use."""


def _collect(leaves: Sequence[Leaf], sums: vanish.Sums) -> Any:
    """Lists what each free row of units cuts, and why other axes stay."""
    cuts: dict[Dim, list[Slice]] = {}
    kept: dict[tuple[str, int], str] = {}
    for path, axes, use in sorted(leaves, key=lambda leaf: (leaf[2] is None, leaf[2])):
        for axis, dim in enumerate(axes):
            for row, index in dims.columns(dim):
                why = row.kept or _why_kept(row, use, sums)
                if why:
                    kept.setdefault((path, axis), why)
                else:
                    cuts.setdefault(row, []).append(Slice(path, axis, index))
    rank = {path: len(axes) for path, axes, _ in leaves}
    firsts = {row: next((c for c in own if rank[c.path] > 1), own[0]) for row, own in cuts.items()}
    along: dict[tuple[str, int], list[Dim]] = {}
    for row, own in cuts.items():
        for cut in own:
            if row not in (beside := along.setdefault(cut[:2], [])):
                beside.append(row)
    found = []
    for row, own in cuts.items():
        first = firsts[row]
        beside = along[first[:2]]
        place = f'.{beside.index(row)}' if len(beside) > 1 else ''
        name = f'{first.path}:{first.axis}{place}'
        found.append(Group(name, row.size, tuple(own), sums.where.get(row, '')))
    return tuple(found), kept


def _why_kept(row: Dim, use: int | None, sums: vanish.Sums) -> str:
    if use is None:
        return 'the function does not use it'
    if row.size == 1:
        return 'it is a single unit'
    return '' if row in sums.vanishing else 'nothing sums over it'


def _cuts(group: Group) -> list[str]:
    return list(dict.fromkeys(f'{cut.path}:{cut.axis}' for cut in group.slices))
