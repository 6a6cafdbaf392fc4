"""A run that is killed, or asked to stop, ends with the same bits as one left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TWO_DEVICES = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}

# Kills itself, as kill -9 does, at the n-th time it comes to one of the places where state changes.
KILLED = """
import os, signal, sys
place, turns = sys.argv.pop(1), int(sys.argv.pop(1))
from train import checkpoint, loop, results, step
from absl import app, flags
from train.main import main

def killing(function, before):
    def call(*args, **kwargs):
        global turns
        turns -= 1
        if before and turns == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        value = function(*args, **kwargs)
        if turns == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return value
    return call

room, name, when = place.split('.')
room = {'checkpoint': checkpoint, 'loop': loop, 'results': results}[room]
setattr(room, name, killing(getattr(room, name), when == 'before'))
app.run(main)
"""


def command(workdir, data, model='lenet300'):
    return [
        '--config=configs/digits.py',
        f'--workdir={workdir}',
        f'--config.data.directory={data}',
        f'--config.model.name={model}',
        '--config.train.steps=60',
        '--config.train.steps_per_dispatch=10',
        '--config.checkpoint.every_steps=20',
        '--config.prune.densities=(0.5, 0.2)',
        '--config.replicates=2',
        '--config.retrain.techniques=("lr_rewind", "weight_rewind")',
        '--config.retrain.share=0.5',
        '--config.retrain.rewind_step=30',
    ]


def call(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=TWO_DEVICES,
        capture_output=True,
        text=True,
        check=False,
    )


def run(workdir, data, model='lenet300'):
    return call('-m', 'train.main', *command(workdir, data, model))


def kept_bytes(workdir):
    paths = [workdir / name for name in ('results.csv', 'layers.csv', 'run.json')]
    paths += [*sorted((workdir / 'models').rglob('*.safetensors'))]
    return {path.relative_to(workdir).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp('tfds')


@pytest.fixture(scope='module')
def left_alone(prepared, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('left') / 'alone'
    done = run(workdir, prepared)
    assert done.returncode == 0, done.stderr
    return kept_bytes(workdir)


# Where state changes: before, while and after a checkpoint is written (it is written in the
# background), between the checkpoint and the results, inside a round, at the very end.
PLACES = [
    ('checkpoint.save.before', 2),
    ('checkpoint.save.after', 3),
    ('results.write_tables.before', 2),
    ('results.append_timing.before', 2),
    ('loop.check_finite.after', 4),
    ('loop.begin.after', 2),
    ('results.write_model.after', 2),
]


@pytest.mark.slow
def test_killed_at_every_kind_of_place_in_turn(left_alone, prepared, tmp_path):
    workdir = tmp_path / 'killed'
    for place, turns in PLACES:
        killed = call('-c', KILLED, place, str(turns), *command(workdir, prepared))
        assert killed.returncode == -signal.SIGKILL, (place, killed.stderr)
    assert run(workdir, prepared).returncode == 0
    assert kept_bytes(workdir) == left_alone


@pytest.mark.exhaustive
def test_killed_at_random_times(prepared, tmp_path):
    """With batch statistics, in a network that takes its time to compile."""
    alone, workdir, draw = tmp_path / 'alone', tmp_path / 'killed', random.Random(0)
    for _ in range(3):
        arguments = [sys.executable, '-m', 'train.main', *command(workdir, prepared, 'convnet')]
        process = subprocess.Popen(arguments, cwd=ROOT, env=TWO_DEVICES, stdout=subprocess.DEVNULL)
        time.sleep(draw.uniform(10, 40))
        process.kill()
        process.wait()
    for place in (alone, workdir):
        assert run(place, prepared, 'convnet').returncode == 0
    assert kept_bytes(workdir) == kept_bytes(alone)


@pytest.mark.parametrize(
    'number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)]
)
def test_asked_to_stop(left_alone, prepared, tmp_path, number):
    workdir = tmp_path / 'stopped'
    arguments = [sys.executable, '-u', '-m', 'train.main', *command(workdir, prepared)]
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=TWO_DEVICES,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while 'dense' not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert f'stopped by {number.name} after ' in message
    assert 'the same command goes on from there' in message
    resumed = run(workdir, prepared)
    assert resumed.returncode == 0
    assert 'resuming' in resumed.stdout
    assert kept_bytes(workdir) == left_alone


@pytest.mark.slow
def test_a_device_out_of_memory_ends_with_a_message(prepared, tmp_path):
    """Networks of 100 GB, where the process may have 16."""
    limited = ['bash', '-c', 'ulimit -v 16000000; exec "$@"', 'bash']
    given = ['--config.replicates=200000', f'--config.data.directory={prepared}']
    command = [sys.executable, '-m', 'train.main', '--config=configs/digits.py', *given]
    found = subprocess.run(
        [*limited, *command, f'--workdir={tmp_path / "run"}'],
        cwd=ROOT,
        env={**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 4, found.stderr
    assert 'Broken: a device is out of memory' in found.stderr
    assert 'Lower config.train.batch_size or config.replicates' in found.stderr


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (['--config.train.stepz=3'], 2, '\'stepz\'\nDid you mean "steps"'),
        (['--config=configs/none.py'], 2, 'configs/none.py'),
        (['--no_such_flag=3'], 2, 'no_such_flag'),
        (['--processes=2'], 2, 'need --distributed'),
        (['--config.prune.rate=1.5'], 2, r'rate must be in (0, 1), got 1.5'),
        (['--config.prune.levels=80'], 2, 'which keeps 3 of 50200 weights, the level before 3'),
        (['--config.prune.rate=0.999999'], 2, 'the level before 50200'),
        (['--config.data.name=cifar10'], 2, 'download_and_prepare'),
        (['--config.data.name=no_such_data'], 2, 'no dataset is named'),
        (['--workdir=/dev/null/run'], 2, 'cannot write to /dev/null/run'),
        (['--config.train.steps=many'], 2, 'many'),
    ],
)
def test_bad_input_ends_with_a_message_and_no_traceback(
    prepared, tmp_path, arguments, code, message
):
    first = [f'--config.data.directory={prepared}', f'--workdir={tmp_path / "run"}']
    began = time.monotonic()
    found = call('-m', 'train.main', '--config=configs/digits.py', *first, *arguments)
    assert found.returncode == code, found.stderr
    assert message in found.stderr
    assert 'Traceback' not in found.stderr
    assert time.monotonic() - began < 60  # nothing waits for a network
    assert not (tmp_path / 'run').exists()
