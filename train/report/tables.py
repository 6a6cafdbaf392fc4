"""Tables of a run directory, checked as they are read."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from train import results
from train.errors import BadInput
from train.report.names import DENSE, FROM_SCRATCH

_SHARES = ('val_accuracy', 'test_accuracy', 'pruned_val_accuracy', 'pruned_test_accuracy')
_PRUNED = ('pruned_val_accuracy', 'pruned_test_accuracy')
RESULTS, LAYERS = results.COLUMNS, results.LAYER_COLUMNS
TIMINGS = ('technique', 'level', 'seconds')
_WORDS = ('technique', 'path', 'shape')


def read_json(path: Path, fields: Sequence[str]) -> dict[str, Any]:
    """Reads an object from JSON.

    Args:
      path: of the file.
      fields: dotted names that the object must have.

    Returns:
      The object.

    Raises:
      BadInput: no such file, no JSON, or a field is missing.
    """
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise BadInput(f'{path} is no JSON, perhaps half-written: {error}') from error
    missing = [name for name in fields if not _has(content, name)]
    if missing:
        raise BadInput(f'{path} lacks {", ".join(missing)}: it was written by another version')
    return content


def read_results(path: Path) -> pd.DataFrame:
    """Reads `results.csv`: one row a replicate, technique and level.

    Raises:
      BadInput: no such file, half-written, a column is missing, or a value cannot be.
    """
    table = read_csv(path, RESULTS, may_lack=_PRUNED)
    for column in ('replicate', 'level', 'kept', 'macs', 'train_steps'):
        wrong = (table[column] % 1 != 0) | (table[column] < 0)
        _refuse(path, wrong, f'{column} is no whole number from 0')
        table = table.astype({column: int})
    if table.empty:
        raise BadInput(f'{path} has no row yet: wait for the first dense networks')
    sparse = table.technique != DENSE
    pruned = sparse & (table.technique != FROM_SCRATCH)
    for column in _PRUNED:
        _refuse(path, table[column].isna() & pruned, f'{column} is empty in a pruned row')
    for column in _SHARES:
        _refuse(path, ~table[column].dropna().between(0, 1), f'{column} is not in [0, 1]')
    _refuse(path, ~table.density.between(0, 1, inclusive='right'), 'density is not in (0, 1]')
    _refuse(path, (table.level == 0) == sparse, 'level 0 is for dense rows, and for them alone')
    twice = table.duplicated(['replicate', 'technique', 'level'])
    _refuse(path, twice, 'the replicate, technique and level stand twice')
    return table


def read_csv(path: Path, columns: Sequence[str], *, may_lack: Sequence[str] = ()) -> pd.DataFrame:
    """Reads a table and checks that it is whole.

    Args:
      path: of the file.
      columns: that it must have; all but the names of things are numbers.
      may_lack: columns that may hold empty cells.

    Returns:
      These columns; others are left out.

    Raises:
      BadInput: no such file, a column is missing, a row is cut short, or a number is none.
    """
    if not _text(path).endswith('\n'):
        raise BadInput(f'{path} ends in the middle of a row: it is half-written')
    try:
        with warnings.catch_warnings(action='error'):  # of rows that are too long
            table = pd.read_csv(path, dtype=str, index_col=False)
    except (ValueError, pd.errors.ParserWarning) as error:
        raise BadInput(f'{path} is no table with commas: {str(error).strip()}') from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise BadInput(f'{path} lacks the columns {", ".join(missing)}; it has {", ".join(table)}')
    table = table[list(columns)]
    for column in columns:
        empty = table[column].isna()
        if column not in may_lack:
            _refuse(path, empty, f'{column} is empty: the file is half-written')
        if column not in _WORDS:
            table = table.assign(**{column: pd.to_numeric(table[column], errors='coerce')})
            wrong = ~table[column].abs().lt(float('inf')) & ~empty
            _refuse(path, wrong, f'{column} is no finite number')
    return table


def _refuse(path: Path, wrong: pd.Series, message: str) -> None:
    if wrong.any():
        raise BadInput(f'{path}, line {wrong[wrong].index[0] + 2}: {message}')


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise BadInput(f'{path} is no text: {error}') from error
    except OSError as error:
        reason = 'not there' if isinstance(error, FileNotFoundError) else error.strerror
        raise BadInput(f'{path} is {reason}: is {path.parent} the workdir of a run?') from error


def _has(content: Any, name: str) -> bool:
    for part in name.split('.'):
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True
