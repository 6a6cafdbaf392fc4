"""Reading run directories: what is whole, what can be compared, what is put together."""

import json

import pandas as pd
import pytest
import study_runs

from train.errors import BadInput
from train.report import runs

LEVELS = [(0.90, 0.91, 0.92), (0.88, 0.90, 0.91), (0.80, 0.81, 0.82)]
BOTH = {'lr_rewind': LEVELS, 'fine_tune': LEVELS}


def made(tmp_path, name='a', accuracies=None, *, dense=study_runs.DENSE, about=None, **config):
    accuracies = BOTH if accuracies is None else accuracies
    config = study_runs.config(techniques=tuple(accuracies), **config)
    rows = study_runs.rows(accuracies, dense=dense)
    return study_runs.write(tmp_path / name, rows, config=config, about=about)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def cut(path, characters):
    path.write_text(path.read_text()[:-characters])


def drop_column(path, name):
    lines = [line.split(',') for line in path.read_text().splitlines()]
    place = lines[0].index(name)
    path.write_text(''.join(','.join(x[:place] + x[place + 1 :]) + '\n' for x in lines))


def drop_rows(path, start):
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(start)]
    assert len(kept) < len(lines)
    path.write_text(''.join(kept))


def test_a_run_is_read_whole(tmp_path):
    study = runs.load([made(tmp_path)])
    assert len(study.results) == 3 + 2 * 3 * 3
    assert study.techniques == ['lr_rewind', 'fine_tune']
    assert sorted(study.results.unit.unique()) == ['0/0', '0/1', '0/2']
    [row] = study.results.query('unit == "0/1" and technique == "fine_tune" and level == 2').iloc
    assert (row.test_accuracy, row.pruned_test_accuracy, row.kept) == (0.90, 0.45, 35)
    assert study.runs[0].finished == study.runs[0].planned


@pytest.mark.parametrize('name', ['config.json', 'run.json', 'results.csv', 'layers.csv'])
def test_a_missing_file_is_named(tmp_path, name):
    directory = made(tmp_path)
    (directory / name).unlink()
    with pytest.raises(BadInput, match=f'{name} is not there: is .* the workdir of a run'):
        runs.load([directory])


@pytest.mark.parametrize(
    ('name', 'breaks', 'message'),
    [
        ('results.csv', lambda path: cut(path, 1), 'ends in the middle of a row'),
        ('results.csv', lambda path: cut(path, 20), 'ends in the middle of a row'),
        ('layers.csv', lambda path: cut(path, 3), 'ends in the middle of a row'),
        ('results.csv', lambda path: edit(path, ',0.9,', ',,'), 'line 2: test_accuracy is empty'),
        ('results.csv', lambda path: edit(path, ',0.9,', ',x,'), 'line 2: test_accuracy is no fin'),
        ('results.csv', lambda path: edit(path, ',0.9,', ',inf,'), 'test_accuracy is no finite'),
        ('results.csv', lambda path: edit(path, ',0.9,', ',1.9,'), r'test_accuracy is not in \[0,'),
        ('results.csv', lambda path: edit(path, '0,dense,0,1.0', '0,dense,0,0'), 'density is not'),
        ('results.csv', lambda path: edit(path, '0,dense,0', '0,dense,1'), 'level 0 is for dense'),
        ('results.csv', lambda path: edit(path, '1,dense,0', '0,dense,0'), 'line 3: .* twice'),
        ('results.csv', lambda path: edit(path, ',0.44,0.44,', ',,,'), 'pruned_val_accuracy is em'),
        (
            'results.csv',
            lambda path: drop_column(path, 'val_bits'),
            'lacks the columns val_bits; it has replicate, technique',
        ),
        ('results.csv', lambda path: drop_rows(path, '2,lr_rewind,3'), 'replicates 0, 1 of lr_rew'),
        ('results.csv', lambda path: path.write_text('a,b\n1,2,3\n'), 'is no table with'),
        ('results.csv', lambda path: drop_rows(path, ('0', '1', '2')), 'has no row yet'),
        ('layers.csv', lambda path: drop_column(path, 'kept'), 'lacks the columns kept'),
        ('config.json', lambda path: cut(path, 10), 'no JSON, perhaps half-written'),
        ('config.json', lambda path: edit(path, '"levels"', '"rounds"'), 'lacks prune.levels'),
        ('run.json', lambda path: edit(path, '"fingerprint"', '"x"'), 'lacks dataset.fingerprint'),
    ],
)
def test_a_broken_file_is_refused(tmp_path, name, breaks, message):
    directory = made(tmp_path)
    breaks(directory / name)
    with pytest.raises(BadInput, match=message):
        runs.load([directory])


def test_a_gap_between_levels_is_refused(tmp_path):
    directory = made(tmp_path)
    for replicate in range(3):
        drop_rows(directory / 'results.csv', f'{replicate},lr_rewind,2')
    with pytest.raises(BadInput, match='no row of lr_rewind, level 2'):
        runs.load([directory])


def test_missing_layers_of_a_cell_are_refused(tmp_path):
    directory = made(tmp_path)
    for replicate in range(3):
        drop_rows(directory / 'layers.csv', f'{replicate},fine_tune,3')
    with pytest.raises(BadInput, match=r'layers\.csv has no row of fine_tune, level 3'):
        runs.load([directory])


def test_no_pruned_network_yet(tmp_path):
    with pytest.raises(BadInput, match='no pruned network is there yet'):
        runs.load([made(tmp_path, accuracies={})])


def test_no_directory(tmp_path):
    with pytest.raises(BadInput, match='no run directory'):
        runs.load([])
    with pytest.raises(BadInput, match='is no directory, expected the workdir'):
        runs.load([tmp_path / 'nothing'])


def test_techniques_of_two_runs_are_put_together(tmp_path):
    parts = [made(tmp_path, name, {name: LEVELS}) for name in ('fine_tune', 'lr_rewind')]
    whole = runs.load([made(tmp_path, 'both')])
    study = runs.load(parts)
    assert study.techniques == whole.techniques
    columns = ['unit', 'technique', 'level', 'test_accuracy', 'kept']
    sort = lambda table: table[columns].sort_values(columns).to_numpy().tolist()
    assert sort(study.results) == sort(whole.results)
    assert len(study.layers) == len(whole.layers)


def test_seeds_of_two_runs_are_more_replicates(tmp_path):
    free = {'data': {'name': 'digits', 'directory': '/elsewhere', 'validation_examples': 20}}
    study = runs.load([made(tmp_path, 'a'), made(tmp_path, 'b', seed=1, **free)])
    assert sorted(study.results.unit.unique()) == ['0/0', '0/1', '0/2', '1/0', '1/1', '1/2']
    assert len(study.results) == 2 * 21


def test_a_replicate_counts_once(tmp_path):
    with pytest.raises(BadInput, match=r'seed/replicate 0/0 of .* is in a and in b'):
        runs.load([made(tmp_path, 'a'), made(tmp_path, 'b')])


def test_techniques_need_the_same_dense_network(tmp_path):
    one = made(tmp_path, 'a', {'lr_rewind': LEVELS})
    other = made(tmp_path, 'b', {'fine_tune': LEVELS}, dense=(0.9, 0.91, 0.93))
    message = '0/2 are not the same: .*accuracy is 0.91.* in a; 0.92.* in b'
    with pytest.raises(BadInput, match=message):
        runs.load([one, other])


@pytest.mark.parametrize(
    ('dataset', 'config', 'message'),
    [
        (
            {'fingerprint': {'train': 'aa', 'validation': 'bx', 'test': 'cc'}},
            {},
            'differ in dataset.fingerprint.validation: bb in a, bx in b$',
        ),
        ({'num_classes': 11}, {}, 'dataset.num_classes: 10 in a, 11 in b$'),
        ({}, {'model': {'name': 'lenet5'}}, 'model.name: lenet300 in a, lenet5 in b$'),
        (
            {'train_examples': 81},
            {'train': {'steps': 100, 'batch_size': 4, 'steps_per_dispatch': 10}},
            'dataset.train_examples: 80 in a, 81 in b; train.batch_size: 8 in a, 4 in b$',
        ),
        ({}, {'levels': 4}, 'prune.levels: 3 in a, 4 in b$'),
        ({}, {'schedule': {'warmup_steps': 3}}, 'schedule.warmup_steps: absent in a, 3 in b$'),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path, dataset, config, message):
    one = made(tmp_path, 'a')
    other = made(tmp_path, 'b', seed=1, about=study_runs.about(**dataset), **config)
    with pytest.raises(BadInput, match=f'these runs cannot be compared, they .*{message}'):
        runs.load([one, other])


def test_replicates_are_retrained_alike(tmp_path):
    retrain = {'techniques': ['lr_rewind'], 'share': 0.5}
    one = made(tmp_path, 'a')
    other = made(tmp_path, 'b', {'lr_rewind': LEVELS}, seed=1, retrain=retrain)
    with pytest.raises(BadInput, match=r'both have lr_rewind, .* retrain\.share is 1\.0 and 0\.5'):
        runs.load([one, other])


def test_techniques_may_be_retrained_otherwise_and_it_is_said(tmp_path):
    retrain = {'techniques': ['llr'], 'share': 0.5}
    one = made(tmp_path, 'a', {'fine_tune': LEVELS})
    other = made(tmp_path, 'b', {'llr': LEVELS}, retrain=retrain)
    study = runs.load([one, other])
    assert runs.retraining_differences(study.runs) == ['retrain.share: 1.0 in a, 0.5 in b']


def test_equal_names_of_directories_are_told_apart(tmp_path):
    one, other = made(tmp_path / 'x', 'run'), made(tmp_path / 'y', 'run')
    with pytest.raises(BadInput, match=f'is in {one} and in {other}'):
        runs.load([one, other])


def test_a_list_of_densities_is_the_plan(tmp_path):
    directory = made(tmp_path)
    config = json.loads((directory / 'config.json').read_text())
    config['prune']['densities'] = [0.5, 0.25, 0.125, 0.1]
    (directory / 'config.json').write_text(json.dumps(config))
    [run] = runs.load([directory]).runs
    assert run.planned - run.finished == {('lr_rewind', 4), ('fine_tune', 4)}


def test_controls_that_retrain_after_others_are_no_replicates(tmp_path):
    one = made(tmp_path, 'a', {'lr_rewind': LEVELS, 'random_masks': LEVELS}, seed=0)
    other = made(tmp_path, 'b', {'weight_rewind': LEVELS, 'random_masks': LEVELS}, seed=1)
    with pytest.raises(BadInput, match=r'first of retrain\.techniques is lr_rewind and weight'):
        runs.load([one, other])


@pytest.mark.parametrize(('old', 'new'), [('lr_rewind,1,', 'lr_rewind,1.5,'), (',1,', ',-1,')])
def test_levels_are_whole_numbers(tmp_path, old, new):
    directory = made(tmp_path)
    edit(directory / 'results.csv', old, new)
    with pytest.raises(BadInput, match='level is no whole number from 0'):
        runs.load([directory])


def test_levels_saved_again_as_decimals_are_read(tmp_path):
    directory = made(tmp_path)
    path = directory / 'results.csv'
    pd.read_csv(path).astype({'level': float}).to_csv(path, index=False)
    assert runs.load([directory]).results.level.tolist()[:3] == [0, 0, 0]


def test_a_table_that_is_no_text(tmp_path):
    directory = made(tmp_path)
    (directory / 'results.csv').write_bytes(b'\xff\n')
    with pytest.raises(BadInput, match=r'results\.csv is no text'):
        runs.load([directory])
