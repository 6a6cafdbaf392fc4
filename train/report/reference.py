"""Curves of a reference: one subset of a table such as the paper's results, drawn beside ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from train.errors import BadInput

SELECTORS = ('network', 'dataset', 'mode', 'prune_method', 'retrain_time')
COLUMNS = (
    *SELECTORS,
    'method',
    'density',
    'compression',
    'test_median',
    'test_min',
    'test_max',
    'delta_median',
    'val_median',
)
BEST = 'validation'
_METHODS = {
    'lr_rewinding': 'lr_rewind',
    'weight_rewinding': 'weight_rewind',
    'fine_tuning': 'fine_tune',
    'reinitialize': 'reinit',
}


class Reference(NamedTuple):
    """What a reference file says about one network, as differences to its dense mean."""

    name: str
    chosen: dict[str, str]
    """The subset: values of the selecting columns."""
    curves: dict[str, pd.DataFrame]
    """By technique: `compression`, `median`, `min` and `max`, smallest compression first."""


def load(path: Path, select: Mapping[str, str | None]) -> Reference:
    """Reads the subset of a reference file that is drawn beside our curves.

    Args:
      path: a CSV with `COLUMNS`; accuracies are fractions, `delta_median` is the median less the
        mean of the dense networks.
      select: values of `SELECTORS`; a column needs one where the file has several left. The
        retrain time may be `validation`: at each point the one with the best validation score.

    Returns:
      The curves, by our names of the techniques; methods that have none keep theirs.

    Raises:
      BadInput: no such file, a column is missing, the choice is not unique or matches nothing, or
        the scores are not fractions.
    """
    table = _read(path)
    chosen = {}
    for column in SELECTORS:
        if column == 'retrain_time' and not select.get(column):
            if not table.duplicated(['method', 'density']).any():
                continue  # chosen already, one for each point
        if column == 'retrain_time' and select.get(column) == BEST:
            table, chosen[column] = _best(table), 'of the best validation score'
            continue
        value = _choose(path, table, column, select.get(column))
        table, chosen[column] = table[_text(table[column]) == value], value
    if table[['test_min', 'test_median', 'test_max']].abs().max().max() > 1:
        raise BadInput(f'{path}: the scores of {chosen} are no fractions of right predictions')
    if table.duplicated(['method', 'density']).any():
        raise BadInput(f'{path}: several rows for a method and density of {chosen}')
    curves = {}
    for method, rows in table.sort_values('compression').groupby('method'):
        dense = rows.test_median - rows.delta_median
        name = _METHODS.get(str(method), str(method))
        if name in curves:
            raise BadInput(f'{path}: {method} and another method are both {name}')
        curves[name] = pd.DataFrame(
            {
                'compression': rows.compression,
                'median': rows.delta_median,
                'min': rows.test_min - dense,
                'max': rows.test_max - dense,
            }
        )
    return Reference(path.name, chosen, curves)


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise BadInput(f'the reference {path} cannot be read: {error}') from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise BadInput(
            f'the reference {path} lacks the columns {", ".join(missing)}; '
            f'it has {", ".join(map(str, table))}'
        )
    for column in COLUMNS[COLUMNS.index('density') :]:
        if not pd.api.types.is_numeric_dtype(table[column]) or table[column].isna().any():
            raise BadInput(f'the reference {path} has values in {column} that are no numbers')
    if (table.compression <= 0).any():
        raise BadInput(f'the reference {path} has compressions that are not above 0')
    return table[list(COLUMNS)]


def _best(table: pd.DataFrame) -> pd.DataFrame:
    ranked = table.sort_values(['val_median', 'retrain_time'], ascending=[False, True])
    return ranked.drop_duplicates(['method', 'density'])


def _choose(path: Path, table: pd.DataFrame, column: str, wanted: str | None) -> str:
    there = list(dict.fromkeys(_text(table[column])))
    if wanted is None and len(there) == 1:
        return there[0]
    if wanted is None or wanted not in there:
        said = 'choose one' if wanted is None else f'{wanted!r} is not there'
        raise BadInput(
            f'{path}, --reference_{column}: {said}; the file has {", ".join(there)}'
            + (f', or {BEST}: the best at each point' if column == 'retrain_time' else '')
        )
    return wanted


def _text(column: pd.Series) -> pd.Series:
    return column.map(lambda value: f'{value:g}' if isinstance(value, float) else str(value))
