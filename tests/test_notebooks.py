"""The notebooks run, are small, and hold the outputs of the .py files beside them."""

from pathlib import Path

import jupytext
import pytest

from notebooks import execute

ROOT = Path(__file__).parents[1]
NAMES = ('prune_in_ten_lines', 'many_devices', 'from_dense_to_tiny', 'smaller_for_real')
REPOSITORY = 'github.com/jaxprune/jaxprune'
BADGE = 'https://colab.research.google.com/github/jaxprune/jaxprune/blob/main/notebooks/'


@pytest.fixture(params=NAMES)
def source(request):
    return ROOT / 'notebooks' / f'{request.param}.py'


def kept(source):
    return jupytext.read(source.with_suffix('.ipynb'))


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def test_these_are_all():
    assert {path.stem for path in execute.SOURCES} == set(NAMES)
    assert {path.stem for path in (ROOT / 'notebooks').glob('*.ipynb')} == set(NAMES)


def test_the_kept_one_is_made_from_its_source(source):
    cells = lambda notebook: [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert cells(kept(source)) == cells(jupytext.read(source))


def test_it_is_short(source):
    lines = [line.strip() for cell in code(kept(source)) for line in cell.source.splitlines()]
    assert sum(bool(line) and not line.startswith('#') for line in lines) < 60


def test_each_cell_of_code_is_introduced(source):
    kinds = [cell.cell_type for cell in kept(source).cells]
    assert kinds == ['markdown', 'code'] * (len(kinds) // 2)


def test_it_opens_in_colab_and_installs_itself(source):
    notebook = kept(source)
    assert f'({BADGE}{source.stem}.ipynb)' in notebook.cells[0].source
    assert '%pip install' in code(notebook)[0].source
    assert REPOSITORY in code(notebook)[0].source


def test_its_outputs_are_those_of_one_run_without_what_changes(source):
    notebook = kept(source)
    numbers = [cell.execution_count for cell in code(notebook)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [cell.id for cell in notebook.cells] == [f'cell-{n}' for n in range(len(notebook.cells))]
    assert not any(cell.metadata for cell in notebook.cells)
    assert 'language_info' not in notebook.metadata
    assert source.with_suffix('.ipynb').stat().st_size < 250_000


def test_it_draws(source):
    drawn = [output for output in outputs(kept(source)) if 'image/png' in output.get('data', {})]
    assert drawn
    assert not any(output.output_type == 'error' for output in outputs(kept(source)))


@pytest.mark.slow
def test_it_runs(source):
    found = execute.execute(jupytext.read(source))
    shown = lambda notebook: [output.data for output in outputs(notebook) if 'data' in output]
    kinds = lambda notebook: [sorted(data) for data in shown(notebook)]
    assert kinds(execute.tidy(found)) == kinds(kept(source))


def test_the_readme_lists_it(source):
    assert f'notebooks/{source.stem}.ipynb' in (ROOT / 'README.md').read_text()
