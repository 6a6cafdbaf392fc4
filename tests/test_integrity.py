"""Damaged checkpoints are found, told, and not used."""

import shutil
import time

import pytest
from test_loop import tiny

from train import loop, report
from train.errors import BadInput, Broken, Interrupted

pytestmark = pytest.mark.promotes  # optax and flax do


@pytest.fixture(autouse=True, scope='module')
def unreported():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda *_: None)
        yield


def config(directory):
    return tiny(directory, retrain__techniques=('lr_rewind', 'weight_rewind'))


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    """A run that was stopped in its third segment, at step 70, and its whole twin."""
    folder = tmp_path_factory.mktemp('integrity')
    loop.run(config(folder), folder / 'whole')
    asked = iter([None] * 7)
    with pytest.raises(Interrupted):
        loop.run(config(folder), folder / 'stopped', lambda: next(asked, 15))
    return folder


def kept_bytes(workdir):
    names = [workdir / 'results.csv', *sorted((workdir / 'models').rglob('*.safetensors'))]
    return {path.relative_to(workdir).as_posix(): path.read_bytes() for path in names}


def largest(checkpoint):
    return max((path for path in checkpoint.rglob('d/*')), key=lambda path: path.stat().st_size)


def truncate(checkpoint):
    path = largest(checkpoint)
    path.write_bytes(path.read_bytes()[:-1])


def flip(checkpoint):
    path = largest(checkpoint)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose(checkpoint):
    largest(checkpoint).unlink()


def unseal(checkpoint):
    (checkpoint / 'checksums.json').write_text('{')


@pytest.mark.parametrize(
    ('harm', 'steps', 'message'),
    [
        (truncate, (70, 60), 'is not as it was written'),
        (flip, (60, 40), 'is not as it was written'),  # the end of a round: others begin there
        (lose, (70, 60), 'is missing'),
        (unseal, (70, 60), 'cannot be read'),
        (flip, (40, 20), 'is not as it was written'),
    ],
)
def test_the_newest_whole_one_is_used(harm, steps, message, *, stopped, tmp_path, capsys):
    step, before = steps
    workdir = tmp_path / 'run'
    shutil.copytree(stopped / 'stopped', workdir)
    harm(workdir / 'checkpoints' / str(step))
    loop.run(config(stopped), workdir)
    said = capsys.readouterr().out
    assert message in said and f'going on from step {before} of the run' in said
    assert kept_bytes(workdir) == kept_bytes(stopped / 'whole')


def test_none_is_whole(stopped, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(stopped / 'stopped', workdir)
    checkpoints = [path for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()]
    for path in checkpoints:
        truncate(path)
    with pytest.raises(BadInput, match=r'no checkpoint of .* is whole: .*nothing was touched'):
        loop.run(config(stopped), workdir)
    assert all(largest(path).exists() for path in checkpoints)


def test_a_workdir_that_disappears(tmp_path):
    workdir, dispatches = tmp_path / 'run', iter(range(100))

    def vanish():
        if next(dispatches) == 3:
            time.sleep(1)  # until what is being saved is
            shutil.rmtree(workdir)

    with pytest.raises(Broken, match='checkpoints has disappeared, with all that was saved'):
        loop.run(config(tmp_path), workdir, vanish)
    assert not workdir.exists()
