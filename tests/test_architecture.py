"""The house: imports point down, the library needs jax, numpy and optax alone, no big rooms."""

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import jaxprune as jp

ROOT = Path(__file__).parents[1]
FLOORS = {
    0: {'tree', 'counting', 'precision', 'layouts', 'packing'},
    1: {'scores', 'select', 'patterns', 'budgets', 'allocate', 'choose', 'masks'},
    2: {'optimizer', 'rewind', 'rates', 'gradual', 'report', 'cost', 'structured'},
    3: {'rounds'},
    4: {'plots', '__init__'},
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
OURS = [
    path
    for folder in ('benchmarks', 'configs', 'examples', 'jaxprune', 'notebooks', 'tests', 'train')
    for path in sorted((ROOT / folder).rglob('*.py'))
]
LIBRARY = sorted((ROOT / 'jaxprune').rglob('*.py'))


def name_of(path):
    return str(path.relative_to(ROOT / 'jaxprune').with_suffix(''))


def imports(path, *, top_level):
    body = ast.parse(path.read_text())
    nodes = body.body if top_level else ast.walk(body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, [alias.name for alias in node.names]


def room_of(path):
    """A module, or the package that holds it."""
    return path.relative_to(ROOT / 'jaxprune').with_suffix('').parts[0]


def rooms_imported(path):
    for module, names in imports(path, top_level=False):
        if module == 'jaxprune':
            yield from names
        elif module.startswith('jaxprune.'):
            yield module.split('.')[1]


@pytest.mark.parametrize('path', LIBRARY, ids=name_of)
def test_imports_point_down(path):
    for room in rooms_imported(path):
        here = room_of(path)
        assert FLOOR[room] <= FLOOR[here], f'{here} imports {room}'
        assert here == '__init__' or room != 'plots'


@pytest.mark.parametrize('path', LIBRARY, ids=name_of)
def test_third_party_imports_at_the_top(path):
    allowed = {'jax', 'numpy', 'optax', 'jaxprune'} | sys.stdlib_module_names
    for module, _ in imports(path, top_level=True):
        assert module.split('.')[0] in allowed


@pytest.mark.parametrize('path', LIBRARY, ids=name_of)
def test_the_library_never_imports_the_trainer(path):
    assert not any(module.split('.')[0] == 'train' for module, _ in imports(path, top_level=False))


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda p: p.stem)
def test_configs_import_ml_collections_only(path):
    for module, _ in imports(path, top_level=False):
        assert module.split('.')[0] in {'ml_collections', 'configs'}


def test_importing_the_library_loads_nothing_else():
    code = (
        'import sys, jaxprune; '
        'print({"flax", "matplotlib", "rich", "tensorflow_datasets"} & {*sys.modules})'
    )
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == 'set()'


@pytest.mark.parametrize('path', OURS, ids=lambda p: p.stem)
def test_no_room_is_crowded(path):
    assert len(path.read_text().splitlines()) <= 400


def test_every_public_function_has_a_docstring():
    for name in jp.__all__:
        assert getattr(jp, name).__doc__


def test_the_versions_agree():
    assert metadata.version('jaxprune') == jp.__version__


def test_flax_that_breaks_under_the_newer_jax_is_excluded():
    needed = [line for line in metadata.requires('jaxprune') if line.startswith('flax')]
    assert any('>=0.12.9' in line and 'python_version >= "3.12"' in line for line in needed)
