"""The trainer really trains: a tiny run of two rounds, on eight devices."""

import csv
import json
import shutil
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
import test_readme

import jaxprune as jp
from configs import digits
from train import config as config_lib
from train import data, loop, models, progress, results, workdirs
from train import step as step_lib
from train.errors import BadInput, Diverged, Interrupted
from train.report import page

pytestmark = pytest.mark.promotes  # optax and flax do


def tiny(directory: Path, **fields: object) -> ml_collections.ConfigDict:
    config = digits.get_config()
    config.data.directory = str(directory)
    config.train.steps, config.train.steps_per_dispatch = 40, 10
    config.prune.rate, config.prune.levels = 0.5, 2
    config.retrain.techniques = ('lr_rewind', 'weight_rewind', 'fine_tune')
    config.retrain.share, config.retrain.rewind_step = 0.5, 20
    config.checkpoint.every_steps = 10
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in fields.items()})
    return config


def convnet(directory: Path, **fields: object) -> ml_collections.ConfigDict:
    """A run of the convolutional network, in turn and on few examples: its steps are slow here."""
    small = {'replicate_by': 'map', 'train__batch_size': 16}
    return tiny(directory, model__name='convnet', **small | fields)


@pytest.fixture(scope='session')
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp('tfds')


@pytest.fixture(scope='module')
def finished(prepared, tmp_path_factory):
    """A finished run of the convolutional network, which has batch statistics."""
    workdir = tmp_path_factory.mktemp('run')
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: 'backend_compile' in name and compiled.append(name)
    )
    levels = []
    with pytest.MonkeyPatch.context() as patch:
        timing = results.append_timing

        def count(*args):
            levels.append(len(compiled))
            timing(*args)

        patch.setattr(results, 'append_timing', count)
        loop.run(convnet(prepared), workdir)
    jax.monitoring.clear_event_listeners()
    return workdir, levels


def rows_of(workdir):
    with (workdir / 'results.csv').open() as file:
        return list(csv.DictReader(file))


def test_rows_are_those_of_the_plan(finished):
    rows = rows_of(finished[0])
    assert list(rows[0]) == list(results.COLUMNS)
    assert [(row['technique'], int(row['level'])) for row in rows] == [
        ('dense', 0),
        *[(t, level) for t in ('lr_rewind', 'weight_rewind', 'fine_tune') for level in (1, 2)],
    ]
    assert [int(row['train_steps']) for row in rows[:3]] == [40, 60, 80]
    for row in rows:
        assert float(row['density']) == pytest.approx(0.5 ** int(row['level']), abs=1e-4)
        assert float(row['test_accuracy']) * 360 == pytest.approx(
            round(float(row['test_accuracy']) * 360)
        )


def test_it_learns(finished):
    assert float(rows_of(finished[0])[0]['val_accuracy']) > 0.5


def test_all_rounds_share_their_compilations(finished):
    dense, first, *later = finished[1]
    assert first > dense > 0  # the first round compiles the pruning
    assert set(later) == {first}  # and no later one anything, whatever its technique


def test_everything_is_written(finished):
    workdir, _ = finished
    names = {path.name for path in workdir.iterdir()}
    assert {'config.json', 'results.csv', 'layers.csv', 'run.json', 'timings.csv'} <= names
    assert json.loads((workdir / 'config.json').read_text())['model']['name'] == 'convnet'
    html = (workdir / 'report.html').read_text()
    assert '<svg' in html
    assert 'http-equiv' not in html
    assert 'src=' not in html  # nothing is loaded from elsewhere
    assert 'Conv_0/kernel' in html


def test_the_saved_model_computes_what_was_reported(finished, prepared):
    workdir, _ = finished
    config = convnet(prepared)
    path = workdir / 'models/replicate_0/lr_rewind.safetensors'
    variables, masks, about = results.read_model(path)
    assert jp.masks.density(masks) == float(rows_of(workdir)[2]['density'])
    jax.tree.map(
        np.testing.assert_array_equal,
        jp.masks.apply(variables['params'], masks),
        variables['params'],
    )
    dataset = data.load(
        'digits', directory=str(prepared), validation_examples=237, seed=config.seed
    )
    model = models.build('convnet', num_classes=10)
    prepare = step_lib.preprocessing(about)
    logits = model.apply(variables, prepare(dataset.test.inputs), train=False)
    accuracy = float((logits.argmax(-1) == dataset.test.labels).mean())
    assert accuracy == pytest.approx(float(rows_of(workdir)[2]['test_accuracy']), abs=1e-6)


def test_the_readmes_lines_read_the_model(finished, prepared, tmp_path, monkeypatch):
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'runs' / 'digits').symlink_to(finished[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TFDS_DATA_DIR', str(prepared))
    exec(test_readme.block('model'), names := {})
    accuracy = float((names['logits'].argmax(-1) == names['test'].labels).mean())
    assert accuracy == pytest.approx(names['about']['test_accuracy'], abs=1e-6)


def test_the_file_names_what_it_holds(finished):
    path = finished[0] / 'models/replicate_0/fine_tune.safetensors'
    with safetensors.safe_open(path, 'numpy') as file:
        about = json.loads(file.metadata()['about'])
        assert (about['model'], about['technique'], about['level']) == ('convnet', 'fine_tune', 2)
        assert {'params/Conv_0/kernel', 'masks/Conv_0/kernel'} <= set(file.keys())
        assert any(name.startswith('batch_stats/') for name in file.keys())


def test_a_finished_run_is_left_as_it_is(finished, prepared):
    workdir, _ = finished
    before = (workdir / 'results.csv').read_bytes()
    loop.run(convnet(prepared), workdir)
    assert (workdir / 'results.csv').read_bytes() == before


def test_another_config_is_refused_and_nothing_is_touched(finished, prepared):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
    with pytest.raises(
        BadInput, match=r'(?s)run of another config.*train.batch_size: 16 there, 32'
    ):
        loop.run(convnet(prepared, train__batch_size=32), workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before


@pytest.mark.parametrize('name', [pytest.param('adam', marks=pytest.mark.slow), 'adamw'])
def test_other_optimizers_scores_and_allocations(prepared, tmp_path, name):
    config = tiny(
        prepared,
        optimizer__name=name,
        optimizer__learning_rate=1e-3,
        prune__score='random',
        prune__allocation='uniform',
        retrain__techniques=('lr_rewind',),
    )
    loop.run(config, tmp_path / 'run')
    _, masks, _ = results.read_model(tmp_path / 'run/models/replicate_0/lr_rewind.safetensors')
    assert [float(m.mean()) for m in jax.tree.leaves(masks)] == pytest.approx([0.25] * 3, abs=1e-3)


def test_replicates_differ_and_share_nothing(prepared, tmp_path):
    config = tiny(prepared, replicates=2, prune__levels=1, retrain__techniques=('weight_rewind',))
    config.retrain.rewind_step = 0  # drawn anew from the replicate's key
    loop.run(config, tmp_path / 'run')
    weights = [
        results.read_model(tmp_path / f'run/models/replicate_{r}/dense.safetensors')[0]
        for r in (0, 1)
    ]
    a, b = (w['params']['Dense_0']['kernel'] for w in weights)
    assert (a != b).mean() > 0.9
    assert [row['replicate'] for row in rows_of(tmp_path / 'run')] == ['0', '1', '0', '1']


def test_a_diverged_run_stops_at_once(prepared, tmp_path):
    config = tiny(prepared, optimizer__learning_rate=1e30, retrain__techniques=('lr_rewind',))
    with pytest.raises(
        Diverged, match=r'the loss became (nan|inf) at step . of 40 of dense, replicate 0'
    ):
        loop.run(config, tmp_path / 'run')
    assert rows_of(tmp_path / 'run') == []


def test_a_late_divergence_keeps_the_last_good_checkpoint(prepared, tmp_path, monkeypatch):
    def poison(run, segment):
        state = begin(run, segment)
        if segment.level == 2:
            state.point.params['Dense_0']['bias'] += np.nan
        return state

    begin = loop.begin
    monkeypatch.setattr(loop, 'begin', poison)
    config = tiny(prepared, retrain__techniques=('lr_rewind',))
    with pytest.raises(
        Diverged, match=r'at step 1 of 20 of lr_rewind level 2.*at step 60 of the run'
    ):
        loop.run(config, tmp_path / 'run')
    monkeypatch.setattr(loop, 'begin', begin)
    loop.run(config, tmp_path / 'run')
    assert len(rows_of(tmp_path / 'run')) == 3


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('data.name', 'no_such_data', "no dataset is named 'no_such_data'"),
        ('data.name', 'cifar10', 'not prepared'),
        ('data.validation_examples', 5000, 'validation_examples=5000'),
        ('model.name', 'alexnet', 'alexnet'),
        ('train.batch_size', 8000, 'more than the 1200 training examples'),
        ('data.test_split', 'train[:50%]', 'name a whole split that is not trained on'),
        ('data.normalize', 'imagenet', 'for RGB images; an input of .* has the shape'),
        ('prune.dense', ('nope',), 'config.prune does not fit the network: .*nope'),
        ('prune.dense', (5,), 'config.prune does not fit the network'),
        ('prune.floor', 0.6, 'config.prune does not fit the network: .*floor'),
        ('prune.pattern', 'n_of_m', 'config.prune does not fit the network'),
        ('model.name', 'transformer', 'the network of config.model does not train on inputs'),
        ('model.name', 'conv1d', 'the network of config.model does not train on inputs'),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(prepared, tmp_path, field, value, message):
    config = tiny(prepared)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(BadInput, match=message):
        loop.run(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_run_on_other_data_is_not_gone_on_with(finished, prepared, tmp_path):
    shutil.copytree(finished[0], tmp_path / 'run')
    path = tmp_path / 'run' / 'run.json'
    about = json.loads(path.read_text())
    about['dataset']['fingerprint']['train'] = 'another'
    path.write_text(json.dumps(about))
    with pytest.raises(BadInput, match=r'run\.json says that this run began on another dataset'):
        loop.run(convnet(prepared), tmp_path / 'run')
    assert json.loads(path.read_text()) == about
    path.write_text('{')
    with pytest.raises(BadInput, match=r'run\.json cannot be read'):
        loop.run(convnet(prepared), tmp_path / 'run')


def test_wall_times_that_were_cut_are_told_before_more_are_added(finished, prepared, tmp_path):
    shutil.copytree(finished[0], tmp_path / 'run')
    path = tmp_path / 'run' / 'timings.csv'
    path.write_text(path.read_text()[:-3])
    with pytest.raises(
        BadInput, match=r"timings\.csv, line \d+, is '.*, not technique,level,seconds"
    ):
        loop.run(convnet(prepared), tmp_path / 'run')
    path.write_bytes(b'\xff\x00')
    with pytest.raises(BadInput, match=r'timings\.csv, line 1, is '):
        loop.run(convnet(prepared), tmp_path / 'run')
    path.unlink()
    loop.run(convnet(prepared), tmp_path / 'run')


def test_a_file_where_a_folder_belongs(tmp_path):
    config = tiny(tmp_path)
    (tmp_path / 'config.json').write_text(config_lib.to_json(config))
    (tmp_path / 'checkpoints').write_text('')
    with pytest.raises(BadInput, match='checkpoints is no folder'):
        loop.run(config, tmp_path)
    with pytest.raises(BadInput, match='cannot write to x'):
        loop.run(config, Path('x' * 300))


def test_a_stopped_run_can_be_reported(prepared, tmp_path):
    stops = iter([None] * 8 + [15])
    with pytest.raises(Interrupted):
        loop.run(tiny(prepared), tmp_path / 'run', lambda: next(stops))
    page.write([tmp_path / 'run'], tmp_path / 'out')
    assert 'Unfinished' in (tmp_path / 'out' / 'report.md').read_text()
    timings = (tmp_path / 'run' / 'timings.csv').read_text().splitlines()
    assert len(timings) == 1 + 4  # two rounds that were finished, the dense training, one stopped


def test_a_workdir_that_cannot_be_written(prepared, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(BadInput, match='file is not a folder one can write to'):
        loop.run(tiny(prepared), tmp_path / 'file' / 'run')


@pytest.mark.parametrize('name', ['checkpoints', 'results.csv'])
def test_what_others_wrote_is_not_overwritten(prepared, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(BadInput, match=rf'{name} but no config\.json'):
        loop.run(tiny(prepared), tmp_path)


@pytest.mark.parametrize('workdir', ['', 'run[1]', 'gs://bucket/run', 'a\\b'])
def test_workdirs_that_cannot_be(prepared, workdir):
    with pytest.raises(BadInput, match='name a folder of its own'):
        loop.run(tiny(prepared), Path(workdir))


def test_a_second_run_in_one_workdir_is_refused(prepared, tmp_path):
    config = tiny(prepared)
    with workdirs.claim(tmp_path / 'run', config):
        with pytest.raises(BadInput, match='another run is in'):
            loop.run(config, tmp_path / 'run')


def test_a_broken_config_file_is_named(prepared, tmp_path):
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(BadInput, match=r'config\.json cannot be read'):
        loop.run(tiny(prepared), tmp_path)


def test_data_that_cannot_be_prepared(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(BadInput, match="data set 'digits' cannot be prepared or read in"):
        loop.run(tiny(tmp_path / 'file'), tmp_path / 'run')


def test_progress_in_a_log_is_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, '_SECONDS_BETWEEN_LINES', -1.0)
    with progress.display(total=10, done=5) as display:
        display.advance(6, 'lr_rewind level 1  1/5', 0.5)
        display.advance(7, 'lr_rewind level 1  2/5', 0.25)
        display.say('a line')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'lr_rewind level 1  1/5  loss 0.5000   60% of the run'
    assert lines[1].startswith('lr_rewind level 1  2/5  loss 0.2500   70% of the run, ')
    assert lines[2:] == ['a line']


def test_progress_on_a_terminal_is_a_bar_with_lines_above(capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')  # rich takes the output for a terminal's
    with progress.display(total=10, done=0) as display:
        display.advance(5, 'dense  5/10', 0.25)
        display.say('a line')
    output = capsys.readouterr().out
    assert 'a line' in output
    assert '━' in output
    assert 'loss 0.2500' in output


def test_a_weight_that_the_last_update_makes_infinite_is_seen(prepared, tmp_path, monkeypatch):
    optimizer = step_lib.optimizer

    def explode_at_the_end(config):
        inner = optimizer(config)
        last = config.train.steps - 1

        def update(updates, state, params, **extra):
            updates, state = inner.update(updates, state, params, **extra)
            count = jax.tree.leaves(state.inner_state[1][1])[0]
            factor = jax.numpy.where(count == last + 1, jax.numpy.inf, 1.0)
            return jax.tree.map(lambda u: u * factor, updates), state

        return inner._replace(update=update)

    monkeypatch.setattr(step_lib, 'optimizer', explode_at_the_end)
    with pytest.raises(Diverged, match='at step 40 of 40 of dense'):
        loop.run(tiny(prepared), tmp_path / 'run')
