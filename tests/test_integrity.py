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


def unrecord(checkpoint):
    path = checkpoint / '_CHECKPOINT_METADATA'
    path.write_text(path.read_text().replace(r'\"level\": 0', r'\"level\": 1'))


def replace(checkpoint):
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.with_name('60'), checkpoint)


@pytest.mark.parametrize(
    ('harm', 'steps', 'messages'),
    [
        (truncate, (70, 60), ['is not as it was written']),
        (lose, (70, 60), ['is missing']),
        (unseal, (70, 60), ['cannot be read']),
        (replace, (70, 60), ['70 is that of step 60']),
        (unrecord, (70, 60), ['the progress in', 'is not as it was written']),
        # later rounds begin from these: what came after them has to be made again
        (flip, (60, 40), ['not as it was written; what is still to do restores step 60', '70']),
        (flip, (40, 20), ['what is still to do restores step 40, so that steps 60, 70, which are']),
        (shutil.rmtree, (40, 20), ['40 is missing; what is still to do restores step 40, so that']),
    ],
)
def test_the_newest_whole_one_is_used(harm, steps, messages, *, stopped, tmp_path, capsys):
    step, before = steps
    workdir = tmp_path / 'run'
    shutil.copytree(stopped / 'stopped', workdir)
    harm(workdir / 'checkpoints' / str(step))
    loop.run(config(stopped), workdir)
    said = capsys.readouterr().out
    assert f'going on from step {before} of the run' in said
    assert all(message in said for message in messages), said
    assert kept_bytes(workdir) == kept_bytes(stopped / 'whole')


def contents(workdir):
    return {path: path.read_bytes() for path in sorted(workdir.rglob('*')) if path.is_file()}


@pytest.mark.parametrize(
    ('harmed', 'message'),
    [
        # all later rounds begin there, or rewind to it, and nothing before is there
        ((20,), r'20/.*written; what is still to do restores step 20\. Put .*and 3 of 4'),
        ((20, 40), r'20/.*written; .*40/.*written; what is still to do restores steps 20, 40\. '),
        ((20, 40, 60, 70), r'20/.*; .*40/.*; .*60/.*written; and 1 more\. Put .*and 0 of 4'),
    ],
)
def test_none_can_be_gone_on_from(harmed, message, *, stopped, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(stopped / 'stopped', workdir)
    for step in harmed:
        truncate(workdir / 'checkpoints' / str(step))
    before = contents(workdir / 'checkpoints')
    with pytest.raises(BadInput, match=message):
        loop.run(config(stopped), workdir)
    assert contents(workdir / 'checkpoints') == before


@pytest.mark.parametrize(('step', 'before'), [(20, 120), (40, 120), (120, 110)])
def test_a_finished_run_needs_its_tables_and_models(step, before, *, stopped, tmp_path, capsys):
    workdir = tmp_path / 'run'
    shutil.copytree(stopped / 'whole', workdir)
    flip(workdir / 'checkpoints' / str(step))
    (workdir / 'results.csv').unlink()
    loop.run(config(stopped), workdir)
    said = capsys.readouterr().out
    assert f'going on from step {before} of the run' in said and 'made again' not in said
    assert ('its results are written again' in said) == (before == 120)
    assert kept_bytes(workdir) == kept_bytes(stopped / 'whole')


def test_a_model_that_is_gone_is_made_again(stopped, tmp_path, capsys):
    workdir = tmp_path / 'run'
    shutil.copytree(stopped / 'whole', workdir)
    flip(workdir / 'checkpoints' / '80')
    (workdir / 'models' / 'replicate_0' / 'lr_rewind.safetensors').unlink()
    loop.run(config(stopped), workdir)
    assert 'restores step 80, so that steps 100, 110, 120, which' in capsys.readouterr().out
    assert kept_bytes(workdir) == kept_bytes(stopped / 'whole')


def test_a_workdir_that_disappears(tmp_path):
    workdir, dispatches = tmp_path / 'run', iter(range(100))

    def vanish():
        if next(dispatches) == 3:
            time.sleep(1)  # until what is being saved is
            shutil.rmtree(workdir)

    with pytest.raises(Broken, match='checkpoints has disappeared, with all that was saved'):
        loop.run(config(tmp_path), workdir, vanish)
    assert not workdir.exists()
