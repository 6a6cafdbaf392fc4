"""The examples of docs/ run, their links lead somewhere, and their tables have today's shape."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from benchmarks import scores as benchmark
from benchmarks import scores_report

pytestmark = pytest.mark.promotes  # optax does, and x @ kernel + bias

DOCS = Path(__file__).parents[1] / 'docs'
PAGES = sorted(DOCS.glob('*.md'))
OWN, JAXPRUNER, CHOICE = (
    (DOCS / f'{name}.md').read_text()
    for name in ('add_your_own_score', 'coming_from_jaxpruner', 'choose_a_score')
)


def block(page, name):
    return re.search(f'<!-- {name} -->\n```python\n(.*?)```', page, re.DOTALL)[1]


def run(page, *names, **given):
    for name in names:
        exec(block(page, name), given)
    return given


@pytest.mark.parametrize('name', ['test_activation_against_loops', 'test_activation_under_jit'])
def test_the_own_score_passes_the_tests_of_its_page(name):
    given = run(OWN, 'score', 'network', 'test')
    [test] = [given[test] for test in given if test.startswith(name)]
    test()


def test_the_own_score_makes_masks():
    given = run(OWN, 'score', 'network', 'use')
    counts = lambda masks: [int(mask.sum()) for mask in jax.tree.leaves(masks)]
    assert sum(counts(given['masks'])) == 192
    assert counts(given['even']) == [128, 64]
    assert counts(given['pairs']) == [256, 128]
    assert min(counts(given['masks'])) > 0
    for mask, pruned in zip(
        jax.tree.leaves(given['masks']),
        (given['pruned'][layer]['kernel'] for layer in ('first', 'second')),
        strict=True,
    ):
        np.testing.assert_array_equal(mask, pruned != 0)


def test_the_own_score_prunes_during_training(capsys):
    given = run(OWN, 'score', 'network')
    before = given['loss'](given['params'], (given['x'], given['y']))
    given = run(OWN, 'during', **given)
    assert capsys.readouterr().out == '0.25\n'
    assert given['loss'](given['params'], (given['x'], given['y'])) < before


def test_the_own_score_keeps_its_contracts():
    given = run(OWN, 'score', 'network')
    params, inputs = given['params'], given['inputs_of'](given['params'], given['x'])
    bad = jax.tree.map(lambda w: w.at[(0,) * w.ndim].set(jnp.nan), params)
    with pytest.raises(ValueError, match="scores of leaf 'first/kernel' hold 1 NaN"):
        jp.masks.global_top(given['activation'](bad, inputs), 0.5)
    half = jax.tree.map(lambda w: (60000 * w / jnp.abs(w).max()).astype(jnp.float16), params)
    with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
        scores = given['activation'](half, inputs)
    for score in jax.tree.leaves(scores):
        assert score.dtype == jnp.float32
        assert jnp.isfinite(score).all()
    only = given['activation'](params, inputs, where=lambda path, leaf: path == 'second/kernel')
    assert [path for path, _ in jp.tree.present(only)] == ['second/kernel']


def test_the_loop_for_those_who_come_from_jaxpruner_runs():
    keys = jax.random.split(jax.random.key(0))
    params = {'kernel': jax.random.normal(keys[0], (20, 10)), 'bias': jnp.zeros(10)}
    batches = [jax.random.normal(keys[1], (8, 20))] * 120
    loss = lambda p, x: jnp.mean((x @ p['kernel'] + p['bias']) ** 2)
    before = loss(params, batches[0])
    given = run(JAXPRUNER, 'loop', jax=jax, optax=optax, params=params, batches=batches, loss=loss)
    assert int((given['params']['kernel'] != 0).sum()) == 20
    assert jp.masks.density(jp.get_masks(given['opt_state'])) == 0.1
    assert loss(given['params'], batches[0]) < before


@pytest.mark.parametrize('name', ['scores', 'taylor', 'floor'])
def test_the_examples_of_the_choice_run(name):
    keys = jax.random.split(jax.random.key(0), 3)
    given = {
        'params': {
            'first': 0.01 * jax.random.normal(keys[0], (20, 10)),
            'second': jax.random.normal(keys[1], (10, 20)),
        },
        'batches': jax.random.normal(keys[2], (3, 8, 20)),
        'loss': lambda p, x: jnp.mean((x @ p['first'] @ p['second']) ** 2),
        'output': lambda p: jnp.ones((1, 20)) @ p['first'] @ p['second'],
        'jp': jp,
        'jax': jax,
    }
    masks = run(CHOICE, name, **given)['masks']
    assert jp.masks.density(masks) == 0.1
    assert all(mask.any() for mask in jax.tree.leaves(masks))
    if name == 'floor':
        scores = jp.scores.magnitude(given['params'])
        with pytest.raises(ValueError, match="leaf 'first' with none"):
            jp.masks.global_top(scores, 0.1)


def shape_of(tables):
    """The lines of tables without their numbers and marks."""
    return [re.sub(r'\d[\d.]*|†', '#', line).replace(' #', '') for line in tables.splitlines()]


def test_the_tables_of_the_choice_are_what_the_benchmark_prints():
    rows = [{'when': 'dense', 'score': 'dense', 'after': np.ones(3)}]
    for when, score, allocation in benchmark.cases():
        row = {'when': when, 'score': score, 'allocation': allocation}
        row |= {'before': np.ones(3), 'after': np.ones(3), 'emptied': {}}
        rows += [row | {'density': density} for density in benchmark.DENSITIES]
    printed = shape_of(scores_report.tables(rows))
    found = re.search('<!-- scores table -->\n(.*?)\n<!-- end -->', CHOICE, re.DOTALL)[1]
    assert shape_of(found)[: len(printed)] == printed
    assert '| | ' + ' | '.join(f'{density:g}' for density in benchmark.DENSITIES) + ' |' in found


def test_every_score_is_measured_and_spoken_of():
    functions = {name for name in jp.scores.__all__ if not name.startswith('mean_')}
    assert functions == set(benchmark.SCORES)
    prose = CHOICE.split('<!-- scores table -->', maxsplit=1)[0]
    for name in functions:
        assert f'`{name}`' in prose


def test_a_short_benchmark_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, 'SEEDS', 2)
    monkeypatch.setattr(benchmark, 'EPOCHS', 1)
    monkeypatch.setattr(benchmark, 'DENSITIES', (0.5, 0.1))
    cases = [
        ('trained', 'movement', 'global_top'),
        ('untrained', 'magnitude', 'global_top'),
    ]
    monkeypatch.setattr(benchmark, 'cases', lambda: cases)
    dense, *rows = benchmark.measure()
    assert dense['after'].shape == (2,)
    assert [row['density'] for row in rows] == [0.5, 0.1] * 2
    assert [bool(row['emptied']) for row in rows] == [False, False, False, True]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_every_link_and_name_exists(page):
    text = page.read_text()
    for target in re.findall(r'\]\((?!https?:)([^)#]+)', text):
        assert (DOCS / target).exists(), target
    for name in re.findall(r'\bjp\.([a-zA-Z_.]+[a-zA-Z_])', text):
        found = jp
        for part in name.split('.'):
            found = getattr(found, part)
