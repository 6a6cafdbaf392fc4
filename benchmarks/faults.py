"""A campaign of faults: runs are killed, damaged and starved, and have to end with the same bits.

    python -m benchmarks.faults
    python -m benchmarks.faults --kills=4 --pair_kills=2 --seed=1

A small run (digits, two techniques, checkpoints and pruning every second or so) is left alone once,
and then killed with SIGKILL at moments drawn from its whole duration, the preparation of the data
included, started again until it is finished, and compared byte by byte with the one left alone: its
results, its table of layers, its saved networks. Then the same with two processes, of which one or
both are killed. Then files of checkpoints are cut short, flipped in a bit or deleted; the disk is
full (a tmpfs, which needs root); and the number of devices changes, after which masks are compared.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from benchmarks import timing
from train import results

KILLS = flags.DEFINE_integer('kills', 80, 'Kills of runs of one process.')
PAIR_KILLS = flags.DEFINE_integer('pair_kills', 20, 'Kills of runs of two processes.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')

ROOT = Path(__file__).parents[1]
RUN = (
    '--config=configs/digits.py',
    '--config.train.steps=120',
    '--config.train.steps_per_dispatch=10',
    '--config.checkpoint.every_steps=20',
    '--config.prune.densities=(0.5, 0.2)',
    '--config.retrain.techniques=("lr_rewind", "weight_rewind")',
    '--config.retrain.rewind_step=30',
)


def start(workdir, data, *, devices=2, processes=1, cache=None):
    """Starts the processes of a run, each with its own devices."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    env['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices}'
    if cache:
        env |= {
            'JAX_COMPILATION_CACHE_DIR': str(cache),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        }
    joint = ['--distributed', f'--coordinator=127.0.0.1:{port}', f'--processes={processes}']
    made = []
    for number in range(processes):
        command = [sys.executable, '-m', 'train.main', *RUN, f'--workdir={workdir}']
        command += [f'--config.data.directory={data}']
        command += [*joint, f'--process={number}'] if processes > 1 else []
        with (workdir.parent / f'{workdir.name}.{number}.log').open('a') as log:
            made.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log))
    return made


def wait(processes):
    """Waits for all; returns the exit codes."""
    return [process.wait(timeout=600) for process in processes]


def finish(workdir, data, **options):
    """Starts a run until it is finished; more than one start is an error."""
    codes = wait(start(workdir, data, **options))
    if any(codes):
        raise SystemExit(f'{workdir} ended with {codes}: see {workdir.parent}/*.log')


def kept_bytes(workdir):
    names = [workdir / 'results.csv', workdir / 'layers.csv', workdir / 'run.json']
    names += sorted((workdir / 'models').rglob('*.safetensors'))
    return {str(path.relative_to(workdir)): path.read_bytes() for path in names}


def same(workdir, alone):
    """Tells whether a finished run has the bytes of the one left alone."""
    return kept_bytes(workdir) == kept_bytes(alone)


def doing(workdir):
    """Says what a run was doing when it was killed, by what lies in its folder."""
    if not (workdir / 'run.json').exists():
        return 'preparing data, compiling'
    if any((workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp*')):
        return 'saving'
    return 'training, pruning, measuring'


def campaign(folder, kills, draw, alone, moments, **options):
    """Kills runs until there were as many kills, and finishes and compares each.

    Args:
      folder: for them.
      kills: their number.
      draw: of what is left to chance.
      alone: the run that was left alone.
      moments: seconds from the start, the first and the last at which a run is killed.
      **options: of `start`.

    Returns:
      What runs were doing when they were killed, and how many of the finished runs were the same.
    """
    killed, ended = [], []
    while len(killed) < kills:
        workdir = folder / f'run_{len(ended)}'
        data = folder / f'data_{len(ended)}'  # prepared anew
        for _ in range(min(draw.randint(1, 6), kills - len(killed))):
            processes = start(workdir, data, **options)
            time.sleep(draw.uniform(*moments))
            if all(process.poll() is None for process in processes):
                killed.append(doing(workdir))
            victims = processes if draw.random() < 0.5 else [draw.choice(processes)]
            for process in victims:
                process.send_signal(signal.SIGKILL)
            wait(processes)
        finish(workdir, data, **options)
        ended.append(same(workdir, alone))
        print(f'{len(killed)} of {kills} kills', file=sys.stderr, flush=True)
        shutil.rmtree(workdir)
        shutil.rmtree(data)
    return killed, ended


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damaged(folder, alone, data, harm, **options):
    """Harms a file of the newest checkpoint of a run that is killed half-way, and finishes it."""
    workdir = folder / f'run_{harm.__name__}'
    processes = start(workdir, data, **options)
    checkpoints = workdir / 'checkpoints'
    newest = lambda: max(
        (int(p.name) for p in checkpoints.glob('*') if p.name.isdigit()), default=0
    )
    while newest() < 120:
        time.sleep(0.02)
    processes[0].kill()
    wait(processes)
    files = [path for path in (checkpoints / str(newest())).rglob('d/*') if path.stat().st_size]
    harm(max(files, key=lambda path: path.stat().st_size))
    finish(workdir, data, **options)
    log = (folder / f'{workdir.name}.0.log').read_text()
    return same(workdir, alone) and 'going on from step' in log


def full_disk(folder, alone, data, **options):
    """Runs on a disk of 1 MB, and finishes on a larger one."""
    disk = folder / 'disk'
    disk.mkdir()
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', disk], capture_output=True, check=False
    )
    if mounted.returncode:
        return None
    try:
        codes = wait(start(disk, data, **options))  # its log lies elsewhere
        said = (folder / 'disk.0.log').read_text()
        subprocess.run(['mount', '-o', 'remount,size=100m', disk], check=True)
        finish(disk, data, **options)
        return codes == [4] and 'Broken: ' in said and same(disk, alone)
    finally:
        subprocess.run(['umount', disk], check=False)


def other_devices(folder, alone, data, cache):
    """Kills a run on two devices and finishes it on one: the same masks, weights to rounding."""
    workdir = folder / 'run_devices'
    processes = start(workdir, data, devices=2, cache=cache)
    while not (workdir / 'checkpoints' / '120').exists():
        time.sleep(0.02)
    processes[0].kill()
    wait(processes)
    finish(workdir, data, devices=1, cache=cache)
    pairs = zip(
        *(sorted((w / 'models').rglob('*.safetensors')) for w in (workdir, alone)), strict=True
    )
    agree = True
    for pair in pairs:
        (params, masks, _), (others, expected, _) = map(results.read_model, pair)
        agree &= jax.tree.all(jax.tree.map(np.array_equal, masks, expected))
        agree &= jax.tree.all(
            jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-3), params, others)
        )
    return agree


def row(what, count, outcome):
    print(f'| {what} | {count} | {outcome} |', flush=True)


def told(outcome):
    return 'not possible here' if outcome is None else 'as it should' if outcome else 'FAILED'


def rows(name, moments, ended):
    """Prints what runs were doing when they were killed, and how they ended."""
    for what in sorted(set(moments)):
        row(f'{name}, killed while {what}', moments.count(what), '')
    row(
        f'{name}, all', len(moments), f'{sum(ended)} of {len(ended)} runs ended with the same bytes'
    )


def main(argv):
    del argv
    draw, outcomes = random.Random(SEED.value), []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cache, data, alone = folder / 'cache', folder / 'data', folder / 'alone'
        finish(alone, data, cache=cache)
        began = time.monotonic()
        finish(folder / 'again', data, cache=cache)
        seconds = time.monotonic() - began
        print(f'{timing.hardware()}; seed {SEED.value}; a run takes {seconds:.1f} s\n')
        print('| fault | times | outcome |\n|---|---|---|')
        outcomes.append(same(folder / 'again', alone))
        row('none: the same command again', 1, told(outcomes[-1]))
        harms = {'cut short': truncate, 'flipped in a bit': flip, 'deleted': Path.unlink}
        for name, harm in harms.items():
            outcomes.append(damaged(folder, alone, data, harm, cache=cache))
            row(f'the largest file of the newest checkpoint {name}', 1, told(outcomes[-1]))
        outcomes.append(full_disk(folder, alone, data, cache=cache) is not False)
        row('full disk, then a larger one', 1, told(outcomes[-1]))
        outcomes.append(other_devices(folder, alone, data, cache))
        row('two devices, then one: the same masks', 1, told(outcomes[-1]))
        pair = {'devices': 1, 'processes': 2, 'cache': cache}
        finish(folder / 'pair', data, **pair)
        began = time.monotonic()
        finish(folder / 'pair_again', data, **pair)
        together = time.monotonic() - began
        # from when they have found each other: before, the one that is left waits for 5 minutes
        moments = 0.4 * together, together
        found = campaign(folder, PAIR_KILLS.value, draw, folder / 'pair', moments, **pair)
        rows('two processes', *found)
        outcomes += found[1]
        found = campaign(folder, KILLS.value, draw, alone, (0, seconds), cache=cache)
        rows('one process', *found)
        outcomes += found[1]
    sys.exit(not all(outcomes))


if __name__ == '__main__':
    app.run(main)
