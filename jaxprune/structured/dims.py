"""Dimensions of arrays as terms: which positions along two axes are the same units.

An axis is a `Dim`: a row of units, or the concatenation or product of other dims. A flattened
axis of heads and their features is a product of two dims, so that a head goes or a feature of every
head; fused queries, keys and values are a concatenation of three. To `tie` two dims is to say that
their units go together; where one has structure, the other gets the same. Nothing depends on how
long an axis is, and two axes of one length are never taken for one another.

A dim that is `kept` keeps all its units, for the reason that it names.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np


@dataclasses.dataclass(eq=False, slots=True)
class Dim:
    """A row of `size` units, compared by identity; read through `resolve` only."""

    size: int
    kept: str = ''
    """Why all of its units stay; empty where they may go."""
    how: Literal['units', 'concatenation', 'product'] = 'units'
    parts: tuple['Dim', ...] = ()
    """What it is made of; of a product the outermost first."""
    same: 'Dim | None' = None
    """The dim that it was tied to."""


def resolve(dim: Dim) -> Dim:
    """Finds the dim that stands for all that were tied to it."""
    while dim.same is not None:
        if dim.same.same is not None:
            dim.same = dim.same.same
        dim = dim.same
    return dim


def units(dim: Dim) -> list[Dim]:
    """Lists the rows of units that a dim is made of, each once."""
    return list(dict.fromkeys(_rows(dim)))


def keep(dim: Dim, why: str) -> None:
    """Keeps all units of a dim, unless an earlier reason does."""
    for row in _rows(dim):
        row.kept = row.kept or why


def product(dims: Sequence[Dim]) -> Dim:
    """Flattens axes into one, the first outermost."""
    parts = [part for dim in dims for part in _parts(dim, 'product') if part.size != 1]
    return _made('product', parts, int(np.prod([dim.size for dim in dims], dtype=np.int64)))


def concatenation(dims: Sequence[Dim]) -> Dim:
    """Joins axes end to end."""
    parts = [part for dim in dims for part in _parts(dim, 'concatenation') if part.size]
    return _made('concatenation', parts, sum(dim.size for dim in dims))


def factors(dim: Dim, sizes: Sequence[int], why: str) -> list[Dim]:
    """Splits a dim into the factors of a product, the outermost first."""
    made = [Dim(size) for size in sizes]
    tie(product(made), dim, why)
    return made


def pieces(dim: Dim, sizes: Sequence[int], why: str) -> list[Dim]:
    """Splits a dim into pieces end to end."""
    made = [Dim(size) for size in sizes]
    tie(concatenation(made), dim, why)
    return made


def tie(a: Dim, b: Dim, why: str) -> None:
    """Makes the units of two dims of one size go together.

    Args:
      a: a dim.
      b: a dim of the same size.
      why: the reason to keep both whole where their structures do not fit, as 2 x 3 and 3 x 2.
    """
    left: list[Iterator[tuple[Dim, Dim]]] = [iter([(a, b)])]
    while (
        left
    ):  # no recursion: a row that is tied to itself shifted by one goes as deep as it is long
        pair = next(left[-1], None)
        if pair is None:
            left.pop()
        else:
            left.append(_tie(*pair, why))


def _tie(a: Dim, b: Dim, why: str) -> Iterator[tuple[Dim, Dim]]:
    """Ties two dims, and yields what is to be tied within them before it goes on."""
    a, b = resolve(a), resolve(b)
    if a is b:
        return
    assert a.size == b.size, f'{a.size} != {b.size}: {why}'
    if a.how != 'units':
        a, b = b, a
    if a.how == 'units':
        a.same = b
        if a.kept:
            keep(b, a.kept)
    elif _is_kept(a) and _is_kept(b):
        return
    elif a.how == b.how:
        yield from _align(a, b, why)
    else:
        yield from _cut(*((a, b) if a.how == 'product' else (b, a)), why)


def columns(dim: Dim) -> list[tuple[Dim, np.ndarray]]:
    """Lists which unit each position along an axis belongs to.

    Returns:
      Rows of units, each with an integer array (size,): the unit of the row that a position belongs
      to, -1 for none. A position of a product belongs to a unit of each factor.
    """
    dim = resolve(dim)
    if dim.how == 'units':
        return [(dim, np.arange(dim.size))]
    if dim.size == 0:
        return []
    found: list[tuple[Dim, np.ndarray]] = []
    if dim.how == 'product':
        inner = dim.size
        for part in dim.parts:
            inner //= part.size
            outer = dim.size // part.size // inner
            for row, index in columns(part):
                found.append((row, np.tile(np.repeat(index, inner), outer)))
        return found
    start = 0
    for part in _parts(dim, 'concatenation'):
        for row, index in columns(part):
            whole = np.full(dim.size, -1)
            whole[start : start + part.size] = index
            place = next(
                (
                    number
                    for number, (other, taken) in enumerate(found)
                    if other is row and (taken[start : start + part.size] < 0).all()
                ),
                None,
            )
            if place is None:
                found.append((row, whole))
            else:
                found[place] = row, np.maximum(found[place][1], whole)
        start += part.size
    return found


def mask(dim: Dim, kept: Mapping[Dim, np.ndarray]) -> np.ndarray:
    """Tells which positions along an axis stay.

    Args:
      dim: the axis.
      kept: booleans by row of units; rows that are not named stay whole.

    Returns:
      Booleans (size,): a position stays where each unit that it belongs to does.
    """
    dim = resolve(dim)
    if dim.how == 'units':
        return kept[dim] if dim in kept else np.ones(dim.size, bool)
    if dim.how == 'concatenation':
        return np.concatenate([mask(part, kept) for part in _parts(dim, 'concatenation')])
    result = np.ones(1, bool)
    for part in dim.parts:
        result = np.logical_and.outer(result, mask(part, kept)).ravel()
    return result


def _rows(dim: Dim) -> Iterator[Dim]:
    left = [dim]  # no recursion: pieces of pieces lie as deep as an axis is long
    while left:
        dim = resolve(left.pop())
        if dim.how == 'units':
            yield dim
        left.extend(reversed(dim.parts))


def _parts(dim: Dim, how: str) -> list[Dim]:
    found, left = [], [dim]
    while left:
        dim = resolve(left.pop())
        if dim.how == how:
            left.extend(reversed(dim.parts))
        else:
            found.append(dim)
    return found


def _made(how: Literal['concatenation', 'product'], parts: Sequence[Dim], size: int) -> Dim:
    if len(parts) == 1:
        return parts[0]
    return Dim(size, how=how, parts=tuple(parts)) if parts else Dim(size)


def _is_kept(dim: Dim) -> bool:
    return all(row.kept for row in _rows(dim))


def _align(a: Dim, b: Dim, why: str) -> Iterator[tuple[Dim, Dim]]:
    """Ties two products, or two concatenations, part by part from the first on."""
    how = a.how
    left, right = _parts(a, how), _parts(b, how)
    while left and right:
        x, y = left.pop(0), right.pop(0)
        if x.size < y.size:
            x, y, left, right = y, x, right, left
        if x.size == y.size:
            yield x, y
        elif how == 'concatenation':
            first, rest = pieces(x, (y.size, x.size - y.size), why)
            yield first, y
            left.insert(0, rest)
        elif x.size % y.size == 0:
            first, rest = factors(x, (y.size, x.size // y.size), why)
            yield first, y
            left.insert(0, rest)
        else:
            return _keep_both(a, b, why)


def _cut(whole: Dim, joined: Dim, why: str) -> Iterator[tuple[Dim, Dim]]:
    """Ties a product to a concatenation, by cutting the outermost factor."""
    outer, *rest = _parts(whole, 'product')
    parts = _parts(joined, 'concatenation')
    inner = whole.size // outer.size
    if any(part.size % inner for part in parts):
        return _keep_both(whole, joined, why)
    cut = pieces(outer, [part.size // inner for part in parts], why)
    for piece, part in zip(cut, parts, strict=True):
        yield product([piece, *rest]), part


def _keep_both(a: Dim, b: Dim, why: str) -> None:
    reason = f'its units go together in two ways that do not fit each other, at {why}'
    keep(a, reason)
    keep(b, reason)
