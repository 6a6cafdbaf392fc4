"""Executes notebooks from their .py files and keeps the outputs in the .ipynb beside them.

python -m notebooks.execute [NAME ...]

What would differ from run to run without meaning is left out: times, random identifiers, versions.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbclient
from nbformat import NotebookNode

HERE = Path(__file__).parent
SOURCES = sorted(set(HERE.glob('*.py')) - {Path(__file__)})


def execute(notebook: NotebookNode) -> NotebookNode:
    """Runs all cells in a fresh kernel of this Python, in an empty directory.

    Args:
      notebook: what to run; it gains the outputs.

    Returns:
      The same notebook.

    Raises:
      CellExecutionError: a cell failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout=300,
            coalesce_streams=True,
            kernel_name='python3',
            resources={'metadata': {'path': folder}},
            record_timing=False,
        )
        # tests set flags of XLA for themselves; the notebooks set their own
        return client.execute(env={k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'})


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Leaves out identifiers, versions, and the texts that stand in for pictures and tables."""
    notebook.metadata.pop('language_info', None)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f'cell-{number}', {}
        for output in cell.get('outputs', []):
            output.get('metadata', {}).clear()
            output.pop('transient', None)
            if {'image/png', 'text/html'} & {*output.get('data', {})}:
                del output.data['text/plain']
    return notebook


def main() -> None:
    """Executes the notebooks that are named, or all."""
    for source in SOURCES:
        if sys.argv[1:] and source.stem not in sys.argv[1:]:
            continue
        began = time.monotonic()
        notebook = tidy(execute(jupytext.read(source)))
        jupytext.write(notebook, source.with_suffix('.ipynb'))
        print(f'{source.stem}: {time.monotonic() - began:.0f} s')


if __name__ == '__main__':
    main()
