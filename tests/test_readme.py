"""The README's example runs, and what it says is so."""

import re
import runpy
from pathlib import Path

import jax
import pytest

import jaxprune as jp

README = (Path(__file__).parents[1] / 'README.md').read_text()


def block(name):
    return re.search(f'<!-- {name} -->\n```[a-z]*\n(.*?)```', README, re.DOTALL)[1]


@pytest.mark.promotes  # optax does
def test_the_ten_lines_run(tmp_path, capsys):
    path = tmp_path / 'example.py'
    path.write_text(block('example'))
    left = runpy.run_path(str(path))
    check_pruned(left['state'], 10)
    assert 'params/layers_0/kernel' in capsys.readouterr().out
    assert float(jax.jit(left['loss'])(left['state'].params)) < 2.3


def untrained(levels):
    """The ten lines, without the training between the rounds."""
    text = block('example').replace('range(300)', 'range(0)')
    return text.replace('(1, 11)', f'(1, {levels + 1})')


def check_pruned(state, level):
    masks = jp.get_masks(state.opt_state)
    assert jp.masks.density(masks) == round(0.8**level * 1664) / 1664
    for path, mask in jp.tree.named_leaves(masks):
        if mask is not None:
            weights = dict(jp.tree.named_leaves(state.params))[path]
            assert ((weights != 0) == mask).all()


@pytest.mark.promotes
def test_the_ten_lines_prune_before_they_train_again():
    exec(untrained(levels=2), left := {})
    assert int(left['state'].step) == 0
    check_pruned(left['state'], 2)


@pytest.mark.promotes
def test_the_rounds_as_one_call_run(capsys):
    exec(block('example').replace('(1, 11)', '(1, 2)'), names := {})
    capsys.readouterr()
    exec(block('iterate'), names)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f'{level} {round(1664 * 0.8**level) / 1664}' for level in range(1, 11)]


@pytest.mark.promotes
def test_the_smaller_network_runs(capsys):
    exec(untrained(levels=1), names := {})
    capsys.readouterr()
    exec(block('smaller'), names)
    assert names['small']['params']['layers_0']['kernel'].shape == (16, 32)
    assert names['logits'].shape == (256, 10)
    assert 'total' in capsys.readouterr().out


@pytest.mark.promotes
def test_the_ten_lines_prune_a_network_with_attention():
    """Whose biases of heads are no kernels: 8 entries that start at 0 and would go first."""
    of_heads = untrained(levels=2).replace(
        'nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])',
        'nn.Sequential([nn.MultiHeadDotProductAttention(num_heads=4), nn.Dense(10)])',
    )
    assert 'Attention' in of_heads
    exec(
        of_heads.replace('model.apply(p, x)', 'model.apply(p, x[:, None])[:, 0]').replace(
            'init(key, x)', 'init(key, x[:, None])'
        ),
        names := {},
    )
    assert jp.masks.density(jp.get_masks(names['state'].opt_state)) < 0.65


def test_every_path_it_names_exists():
    root = Path(__file__).parents[1]
    for name in re.findall(r'configs/\w+\.py|docs/[\w.]+|train/\w+\.py', README):
        assert (root / name).exists(), name


def test_every_name_it_names_exists():
    for name in re.findall(r'\bjp\.([a-z_.]+[a-z_])', README):
        found = jp
        for part in name.split('.'):
            found = getattr(found, part)
