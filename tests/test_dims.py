"""Dims as terms, by hand."""

import numpy as np

from jaxprune.structured import dims
from jaxprune.structured.dims import Dim


def index(dim):
    return [(row.size, own.tolist()) for row, own in dims.columns(dim)]


def test_tied_rows_are_one():
    a, b, c = Dim(3), Dim(3), Dim(3)
    dims.tie(a, b, '')
    dims.tie(c, b, '')
    assert dims.resolve(a) is dims.resolve(b) is dims.resolve(c)


def test_a_product_belongs_to_a_unit_of_each_factor():
    flat = Dim(6)
    heads, features = dims.factors(flat, (2, 3), '')
    assert index(flat) == [(2, [0, 0, 0, 1, 1, 1]), (3, [0, 1, 2, 0, 1, 2])]
    kept = {dims.resolve(heads): np.array([True, False]), dims.resolve(features): np.arange(3) > 0}
    assert dims.mask(flat, kept).tolist() == [False, True, True, False, False, False]


def test_a_concatenation_of_one_row_twice():
    row = Dim(2)
    assert index(dims.concatenation([row, row])) == [(2, [0, 1, 0, 1])]


def test_a_product_of_one_row_twice():
    row = Dim(2)
    assert index(dims.product([row, row])) == [(2, [0, 0, 1, 1]), (2, [0, 1, 0, 1])]


def test_pieces_are_cut_where_both_are():
    whole = Dim(5)
    dims.pieces(whole, (2, 3), '')
    dims.pieces(whole, (4, 1), '')
    assert [row.size for row in dims.units(whole)] == [2, 2, 1]


def test_factors_are_refined():
    whole = Dim(12)
    dims.factors(whole, (2, 6), '')
    dims.factors(whole, (4, 3), '')
    assert [row.size for row in dims.units(whole)] == [2, 2, 3]


def test_stacked_thirds_share_their_rows():
    """Queries, keys and values end to end, then reshaped to (3, 4): one row of four."""
    parts = [Dim(4) for _ in range(3)]
    _, inner = dims.factors(dims.concatenation(parts), (3, 4), '')
    assert {dims.resolve(part) for part in parts} == {dims.resolve(inner)}


def test_what_does_not_fit_stays():
    whole = Dim(6)
    dims.factors(whole, (2, 3), 'reshape (a.py:1)')
    dims.factors(whole, (3, 2), 'reshape (b.py:2)')
    assert all('b.py:2' in row.kept for row in dims.units(whole))


def test_a_reason_spreads_to_what_is_tied_later():
    a, b = Dim(4), Dim(4)
    dims.keep(a, 'first')
    dims.tie(b, a, '')
    dims.keep(b, 'second')
    assert dims.resolve(b).kept == 'first'
    parts = dims.pieces(a, (1, 3), '')
    assert all(dims.resolve(part).kept == 'first' for part in parts)


def test_random_splits_lose_no_unit():
    """Whatever a dim is split into, each unit of each of its free rows lies somewhere along it."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        whole, sizes = Dim(12), [(3, 4), (2, 6), (6, 2), (4, 3)]
        for place in rng.choice(4, 2, replace=False):
            dims.factors(whole, sizes[place], '')
        cut = int(rng.integers(1, 12))
        dims.pieces(whole, (cut, 12 - cut), '')
        for row, own in dims.columns(whole):
            if not row.kept:
                assert len(np.unique(own[own >= 0])) == row.size


def test_an_axis_tied_to_itself_shifted_by_one_is_one_unit():
    """However long it is: 3,000 pieces of pieces."""
    row = dims.Dim(3000)
    first, middle = dims.pieces(row, (1, 2999), 'a slice')
    dims.tie(row, dims.concatenation([middle, first]), 'a sum')
    [(one, index)] = dims.columns(row)
    assert one.size == 1 and (index == 0).all()
    assert dims.mask(row, {one: np.zeros(1, bool)}).sum() == 0
