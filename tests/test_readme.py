"""The README's example runs, and what it says is so."""

import re
import runpy
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
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


def check_pruned(state, level):
    masks = jp.get_masks(state.opt_state)
    assert jp.masks.density(masks) == round(0.8**level * 1664) / 1664
    for path, mask in jp.tree.named_leaves(masks):
        if mask is not None:
            weights = dict(jp.tree.named_leaves(state.params))[path]
            assert ((weights != 0) == mask).all()


@pytest.mark.promotes
def test_the_ten_lines_prune_before_they_train_again():
    untrained = block('example').replace('range(300)', 'range(0)').replace('(1, 11)', '(1, 3)')
    exec(untrained, left := {})
    assert int(left['state'].step) == 0
    check_pruned(left['state'], 2)


@pytest.mark.promotes
def test_the_rounds_as_one_call_run(capsys):
    tx = jp.pruned(optax.sgd(optax.constant_schedule(0.1)))
    params = {'kernel': jax.random.normal(jax.random.key(0), (10, 10))}
    names = {'jp': jp, 'params': params, 'opt_state': tx.init(params), 'train': lambda p, _: p}
    exec(block('iterate'), names)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f'{level} {round(100 * 0.8**level) / 100}' for level in range(1, 11)]


@pytest.mark.promotes
def test_the_smaller_network_runs(capsys):
    model, x = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)]), jnp.ones((3, 16))
    names = {
        'jp': jp,
        'jax': jax,
        'model': model,
        'x': x,
        'params': model.init(jax.random.key(0), x),
    }
    exec(block('smaller'), names)
    assert names['small']['params']['layers_0']['kernel'].shape == (16, 32)
    assert names['logits'].shape == (3, 10)
    assert 'total' in capsys.readouterr().out


def test_every_path_it_names_exists():
    root = Path(__file__).parents[1]
    for name in re.findall(r'configs/\w+\.py|docs/[\w.]+|train/\w+\.py', README):
        assert (root / name).exists(), name


def test_every_name_it_names_exists():
    for name in re.findall(r'\bjp\.([a-z_.]+[a-z_])', README):
        found = jp
        for part in name.split('.'):
            found = getattr(found, part)
