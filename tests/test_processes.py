"""Two processes with four devices each train one network together."""

import csv
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import photographs
import pytest

from configs import digits
from train import processes, results, workdirs
from train.errors import BadInput

ROOT = Path(__file__).parents[1]


def test_a_workdir_that_is_not_that_of_process_0(tmp_path, monkeypatch):
    monkeypatch.setattr(workdirs, '_VISIBLE', 0.2)
    monkeypatch.setattr(processes, 'writes', lambda: False)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / '.lock').write_text('the token of a run before')
    with (
        pytest.raises(BadInput, match='run of this process is not the workdir of process 0'),
        workdirs.claim(tmp_path / 'run', digits.get_config()),
    ):
        raise AssertionError
    assert not (tmp_path / 'run' / 'config.json').exists()


def test_processes_need_as_many_devices(monkeypatch):
    devices = [SimpleNamespace(process_index=number) for number in (0, 0, 0, 1)]
    monkeypatch.setattr(jax, 'devices', lambda: devices)
    with pytest.raises(BadInput, match='as many devices: process 0 has 3, process 1 has 1'):
        processes.check_devices()


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def start(workdir, data, *more, slurm=False, devices=4, count=2, own=((), ())):
    """Starts the processes, which find each other by flags or by what SLURM tells."""
    port = free_port()
    made = []
    for number in range(count):
        env = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
        env['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices}'
        flags = []
        if slurm:
            env |= {'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': '127.0.0.1', 'SLURM_NTASKS': '2'}
            env |= {'SLURM_PROCID': str(number), 'SLURM_LOCALID': str(number)}
            env |= {'JAX_COORDINATOR_PORT': str(port), 'SLURM_STEP_NUM_TASKS': '2'}
        else:
            flags = [f'--coordinator=127.0.0.1:{port}', f'--processes={count}']
            flags += [f'--process={number}']
        command = [sys.executable, '-m', 'train.main', '--distributed', *flags]
        command += ['--config=configs/digits.py', f'--workdir={workdir}']
        command += [f'--config.data.directory={data}', '--config.train.steps=40']
        command += ['--config.train.steps_per_dispatch=10', '--config.prune.densities=(0.5, 0.2)']
        command += ['--config.checkpoint.every_steps=20', *more]
        command += ['--config.retrain.techniques=("lr_rewind", "weight_rewind")']
        command += ['--config.retrain.rewind_step=10', *own[number]]
        made.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return made


def end(processes, seconds=300):
    """Waits for all, and returns the exit codes and what each printed."""
    said = [process.communicate(timeout=seconds) for process in processes]
    return [process.returncode for process in processes], said


def kept_bytes(workdir):
    paths = [workdir / name for name in ('results.csv', 'layers.csv')]
    paths += [*sorted((workdir / 'models').rglob('*.safetensors'))]
    return {path.relative_to(workdir).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return tmp_path_factory.mktemp('tfds')


@pytest.fixture(scope='module')
def left_alone(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('together') / 'run'
    codes, said = end(start(workdir, data))
    assert codes == [0, 0], said
    assert 'done:' in said[0][0] and 'level' not in said[1][0]  # one prints
    return workdir


@pytest.mark.slow
def test_they_find_the_masks_that_one_process_finds(left_alone, data, tmp_path):
    codes, said = end(start(tmp_path / 'run', data, devices=8, count=1))
    assert codes == [0], said
    (params, masks, _), (others, same, _) = (
        results.read_model(workdir / 'models' / 'replicate_0' / 'lr_rewind.safetensors')
        for workdir in (left_alone, tmp_path / 'run')
    )
    jax.tree.map(np.testing.assert_array_equal, masks, same)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, others)
    assert (left_alone / 'report.html').exists()


def wait_for_checkpoint(workdir, processes, step=20):
    while not (workdir / 'checkpoints' / str(step)).exists():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


@pytest.mark.slow
def test_one_is_asked_to_stop_and_one_is_killed(left_alone, data, tmp_path):
    """All stop at the same step; the one that is left says what happened; the bits are the same."""
    workdir = tmp_path / 'run'
    asked = start(workdir, data, slurm=True)
    wait_for_checkpoint(workdir, asked)
    asked[1].send_signal(signal.SIGTERM)
    codes, said = end(asked)
    assert codes == [143, 143] and 'stopped by SIGTERM' in said[0][1], said

    halved = start(workdir, data)
    wait_for_checkpoint(workdir, halved, 40)
    halved[1].kill()
    codes, said = end(halved)
    assert codes[0] != 0 and codes[1] == -signal.SIGKILL, said
    assert any(text in said[0][1] for text in ('another process failed', 'another task died'))

    codes, said = end(start(workdir, data))
    assert codes == [0, 0], said
    assert kept_bytes(workdir) == kept_bytes(left_alone)


@pytest.mark.exhaustive
def test_weights_split_over_processes(left_alone, data, tmp_path):
    codes, said = end(start(tmp_path / 'run', data, '--config.mesh.fsdp=8'))
    assert codes == [0, 0], said
    masks, same = (
        results.read_model(workdir / 'models' / 'replicate_0' / 'lr_rewind.safetensors')[1]
        for workdir in (left_alone, tmp_path / 'run')
    )
    jax.tree.map(np.testing.assert_array_equal, masks, same)


@pytest.mark.slow
def test_they_share_a_config(data, tmp_path):
    workdir = tmp_path / 'run'
    codes, said = end(start(workdir, data, own=((), ('--config.seed=1',))))
    assert codes == [2, 2] and not workdir.exists(), said
    assert 'the config of this process is not that of process 0' in said[1][1]
    assert 'another process of this run cannot begin' in said[0][1]
    codes, said = end(start(workdir, data, own=((), ('--workdir=/dev/null/run',))))
    assert codes == [2, 2] and not workdir.exists(), said
    assert 'cannot write to /dev/null/run' in said[1][1] and 'another process' in said[0][1]


@pytest.mark.exhaustive
def test_they_share_a_workdir(data, tmp_path):
    workdir = tmp_path / 'run'
    codes, said = end(start(workdir, data, own=((), (f'--workdir={tmp_path / "other"}',))))
    assert codes == [2, 2], said
    assert 'other of this process is not the workdir of process 0' in said[1][1]
    assert 'another process of this run cannot begin' in said[0][1]
    assert not any((workdir / name).exists() for name in ('run.json', 'checkpoints'))


STREAMED = (
    '--config.data.name=photographs',
    '--config.data.streaming=True',
    '--config.data.test_split=validation',
    '--config.data.validation_examples=5',
    '--config.data.normalize=imagenet',
    '--config.data.image_size=12',
    '--config.train.batch_size=8',
)


@pytest.mark.exhaustive
@pytest.mark.parametrize('mesh', ['tensor', 'fsdp'])
def test_streamed_batches_are_those_of_one_process(mesh, tmp_path):
    """Along the axis of tensors the processes read the same rows of a batch, else rows each."""
    photographs.prepare(tmp_path / 'tfds')
    more = (*STREAMED, f'--config.mesh.{mesh}=2')
    bits = []
    for count in (1, 2):
        workdir = tmp_path / f'{count}'
        codes, said = end(start(workdir, tmp_path / 'tfds', *more, devices=2 // count, count=count))
        assert codes == [0] * count, said
        with (workdir / 'results.csv').open() as file:
            dense, *_ = csv.DictReader(file)
        bits.append([float(dense[name]) for name in ('val_bits', 'test_bits', 'test_accuracy')])
    np.testing.assert_allclose(*bits, rtol=1e-4)


@pytest.mark.exhaustive
def test_a_second_run_is_refused_by_all(left_alone, data):
    with (left_alone / '.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        codes, said = end(start(left_alone, data))
    assert codes == [2, 2]
    assert 'another run is in' in said[0][1] and 'another process' in said[1][1]


def test_no_processes_to_be_found():
    command = [sys.executable, '-m', 'train.main', '--distributed', '--workdir=runs/none']
    command += ['--config=configs/digits.py']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and 'set --coordinator=HOST:PORT' in done.stderr
