"""The examples of docs/ run, their links lead somewhere, and their tables have today's shape."""

import functools
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import jaxprune as jp
from benchmarks import scores as benchmark
from benchmarks import scores_report

pytestmark = pytest.mark.promotes  # optax does, and x @ kernel + bias

DOCS = Path(__file__).parents[1] / 'docs'
PAGES = sorted(DOCS.glob('*.md'))
OWN, JAXPRUNER, CHOICE, SMALLER, SCALE = (
    (DOCS / f'{name}.md').read_text()
    for name in (
        'add_your_own_score',
        'coming_from_jaxpruner',
        'choose_a_score',
        'structured',
        'scale',
    )
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


@pytest.mark.slow
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


def layers():
    """Parameters with the paths that the pages use."""
    keys = jax.random.split(jax.random.key(0), 3)
    sides = {'Dense_0': (20, 40), 'Dense_1': (40, 40), 'Dense_2': (40, 4)}
    return {
        name: {'kernel': jax.random.normal(key, shape), 'bias': jnp.zeros(shape[1])}
        for key, (name, shape) in zip(keys, sides.items(), strict=True)
    }


def forward(params, x):
    for layer in params.values():
        x = jnp.tanh(x @ layer['kernel']) + layer['bias']
    return x


def test_each_score_is_called_as_its_table_says():
    table = re.search(r'<!-- calls -->\n(.*?)\n\n', CHOICE, re.DOTALL)[1]
    rows = [line.strip('| ').split(' | ') for line in table.splitlines()[2:]]
    assert {name.strip('`') for name, _ in rows} == set(benchmark.SCORES)
    params, x = layers(), jax.random.normal(jax.random.key(1), (12, 20))
    given = {'jp': jp, 'params': params, 'key': jax.random.key(2)}
    given |= {'loss': lambda p, x: jnp.mean(forward(p, x) ** 2), 'grads': params}
    given |= {'batches': x.reshape(3, 4, 20), 'examples': x, 'tx': optax.sgd(0.1)}
    given |= {'density': 0.5, 'schedule': jp.gradual.one_shot(1)}
    given |= {'output': lambda p: forward(p, jnp.ones((1, 20)))}
    half = lambda scored: jp.masks.leaf_top(scored, 0.5)
    for name, cell in rows:
        assert f'jp.scores.{name.strip("`")}(' in cell
        first, *others = re.findall('`(jp.*?)`', cell)
        found = [jax.eval_shape(lambda call=first: half(eval(call, given)))]
        for call in others:
            makes = lambda call=call: eval(call, given)
            found.append(
                jax.eval_shape(lambda f=makes: jp.get_masks(f().init(params)))
                if call.startswith('jp.gradual')
                else jax.eval_shape(makes)
            )
        for masks in found:
            expected = {path: w.shape for path, w in jp.tree.present(params) if w.ndim > 1}
            assert {path: m.shape for path, m in jp.tree.present(masks)} == expected


def kept(masks):
    return {path: int(mask.sum()) for path, mask in jp.tree.present(masks)}


def test_rules_for_layers_run():
    lines = block(CHOICE, 'rules').split('\n')
    given, found = {'jp': jp, 'params': layers()}, []
    for line in filter(None, lines):
        exec(line, given)
        if line.startswith('masks'):
            found.append(kept(given['masks']))
    by_rule, by_leaf, allocated = found
    assert sum(by_rule.values()) == sum(allocated.values()) == 256
    assert by_rule['Dense_2/kernel'] == allocated['Dense_2/kernel'] == 160
    assert by_leaf == {'Dense_0/kernel': 40, 'Dense_1/kernel': 160, 'Dense_2/kernel': 80}


@pytest.mark.slow
def test_units_of_several_sizes_share_a_budget():
    masks = run(CHOICE, 'units', jp=jp, params=layers())['masks']
    channels = np.asarray(masks['Dense_0']['kernel'])
    assert (channels == channels[:1]).all() and 0 < channels.sum() < 256
    assert 236 < sum(kept(masks).values()) <= 256  # a channel more would not fit


def coming(name, **given):
    names = {'jp': jp, 'optax': optax, 'functools': functools, 'params': layers()}
    names |= {'masks': jp.masks, 'gradual': jp.gradual, 'TrainState': TrainState}
    return run(JAXPRUNER, name, **names | given)


def test_a_train_state_begins_sparse():
    model = types.SimpleNamespace(apply=forward)
    tx = jp.gradual.static(optax.sgd(0.1), 0.25, jax.random.key(0))
    state = coming('train state', model=model, tx=tx)['state']
    masks = jp.get_masks(state.opt_state)
    assert jp.masks.density(masks) == 0.25
    for name, layer in state.params.items():
        np.testing.assert_array_equal(layer['kernel'] != 0, masks[name]['kernel'])


def test_what_is_chained_inside_keeps_zeros():
    tx, params = coming('chain')['tx'], layers()
    masks = jp.masks.leaf_top(jp.scores.magnitude(params), 0.5)
    updates, _ = tx.update(params, jp.set_masks(tx.init(params), masks), params)
    after = optax.apply_updates(params, updates)
    for name, layer in after.items():
        np.testing.assert_array_equal(layer['kernel'] != 0, masks[name]['kernel'])


@pytest.mark.slow
def test_patterns_and_rules_are_bound_to_what_makes_masks():
    given, params = coming('patterns'), layers()
    found = given['two_of_four'](jp.scores.magnitude(params), 0.5)
    groups = np.asarray(found['Dense_1']['kernel']).reshape(10, 4, 40)
    assert (groups.sum(1) == 2).all()
    first = kept(jp.get_masks(given['tx'].init(params)))  # straight-through begins sparse
    assert sum(first.values()) == 256 and first['Dense_2/kernel'] == 160


@pytest.mark.slow
def test_the_examples_of_removal_run(capsys):
    given = run(SMALLER, 'shrink')
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert given['logits'].shape == (2, 10)
    assert 'params/Conv_0/kernel:3' in capsys.readouterr().out
    assert count(given['small']) < count(given['variables'])
    trained = run(SMALLER, 'train', **given)
    assert np.isfinite(trained['value'])
    rounds = run(SMALLER, 'rounds', **trained)
    sizes = [count(rounds['now']['params']), count(given['small']['params'])]
    assert sizes[0] < sizes[1] and np.isfinite(
        rounds['now_loss'](rounds['now'], given['x'], jnp.array([3, 7]))[0]
    )
    given = rounds  # the page's blocks run one after another
    ranked = run(SMALLER, 'importance', **given)
    assert set(ranked['by_median']) >= set(ranked['by_activation']) >= set(ranked['by_scale'])
    within = run(SMALLER, 'budget', **given)
    assert within['count'](within['keep']) <= count(given['variables'])
    pruned = run(SMALLER, 'compact', **given)
    assert count(pruned['small']) < count(given['variables'])
    wanted = given['evaluate'](pruned['pruned'], given['x'])
    np.testing.assert_allclose(pruned['smaller'](pruned['small'], given['x']), wanted, atol=1e-5)


def test_magnitudes_that_are_not_held_rank_as_those_that_are():
    params = {'kernel': jax.random.normal(jax.random.key(0), (30, 20)), 'bias': jnp.ones(20)}
    masks = run(SCALE, 'absolute', jp=jp, params=params)['masks']
    expected = jp.masks.global_top(jp.scores.magnitude(params), 0.1)
    assert masks['bias'] is None
    np.testing.assert_array_equal(masks['kernel'], expected['kernel'])


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


@pytest.mark.slow
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
