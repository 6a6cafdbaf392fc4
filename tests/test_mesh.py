"""Weights split over devices: the same masks, laid out like their weights, and other meshes."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_loop import rows_of, tiny

import jaxprune as jp
from train import checkpoint, layout, loop, report, results
from train import config as config_lib
from train.errors import BadInput, Interrupted

pytestmark = pytest.mark.promotes  # optax and flax do

MESHES = (
    {'fsdp': 2, 'tensor': 2},
    pytest.param({'fsdp': 8}, marks=pytest.mark.slow),
    pytest.param({'tensor': 4}, marks=pytest.mark.slow),
)


@pytest.fixture(autouse=True, scope='module')
def unreported():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda *_: None)
        yield


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp('tfds')


def fields(directory, **mesh):
    config = tiny(directory, retrain__techniques=('lr_rewind',))
    config.mesh.update(mesh)
    return config


@pytest.fixture(scope='module')
def whole(prepared, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('whole') / 'run'
    loop.run(fields(prepared), workdir)
    return workdir


def saved(workdir):
    return results.read_model(workdir / 'models' / 'replicate_0' / 'lr_rewind.safetensors')


def agree(a, b):
    """The same masks, and weights and accuracy to within rounding."""
    for key in ('density', 'test_accuracy'):
        np.testing.assert_allclose(
            [float(row[key]) for row in rows_of(a)],
            [float(row[key]) for row in rows_of(b)],
            atol=1.5 / 360,  # an image
        )
    (params, masks, _), (others, same, _) = saved(a), saved(b)
    jax.tree.map(np.testing.assert_array_equal, masks, same)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), params, others)


@pytest.mark.parametrize('mesh', MESHES, ids=str)
def test_another_mesh_finds_the_same_masks(mesh, prepared, whole, tmp_path):
    loop.run(fields(prepared, **mesh), tmp_path / 'run')
    agree(whole, tmp_path / 'run')


@pytest.mark.parametrize('mesh', MESHES, ids=str)
def test_states_lie_as_their_weights(mesh, prepared):
    config = fields(prepared, **mesh)
    networks, _ = loop.prepare(config)
    point = networks.full.init(jax.random.split(jax.random.key(0), 1))
    weights = {path: leaf.sharding for path, leaf in jp.tree.present(point.params)}
    kernel = weights['Dense_0/kernel']
    parts = config.mesh.fsdp * config.mesh.tensor
    assert kernel.shard_shape((1, 64, 300))[1:] != (64, 300)
    assert np.prod(kernel.shard_shape((1, 64, 300))) * parts == 64 * 300
    moments = [leaf for leaf in jax.tree.leaves(point.opt_state) if leaf.shape == (1, 64, 300)]
    assert len(moments) == 2 and all(leaf.sharding == kernel for leaf in moments)
    masks = dict(jp.tree.present(jp.get_masks(point.opt_state)))
    assert {path: mask.sharding for path, mask in masks.items()} == {
        path: weights[path] for path in masks
    }


def test_a_run_goes_on_under_other_meshes(prepared, whole, tmp_path):
    asked = iter([None] * 5)
    with pytest.raises(Interrupted):
        loop.run(fields(prepared, fsdp=8), tmp_path / 'run', lambda: next(asked, 15))
    asked = iter([None])
    with pytest.raises(Interrupted):
        loop.run(fields(prepared, tensor=2), tmp_path / 'run', lambda: next(asked, 15))
    with checkpoint.open_store(tmp_path / 'run' / 'checkpoints', ()) as store:
        assert store.latest_step() == 60
    loop.run(fields(prepared), tmp_path / 'run')
    agree(whole, tmp_path / 'run')
    about = json.loads((tmp_path / 'run' / 'run.json').read_text())
    devices = [part['devices'] for part in (about, *about['continued'])]
    assert devices == ['8 x cpu, fsdp 8', '8 x cpu, tensor 2', '8 x cpu']


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 2])
def test_a_run_goes_on_with_fewer_devices(devices, prepared, whole, tmp_path, monkeypatch):
    asked = iter([None] * 6)
    with pytest.raises(Interrupted):
        loop.run(fields(prepared), tmp_path / 'run', lambda: next(asked, 15))
    monkeypatch.setattr(jax, 'device_count', lambda: devices)
    loop.run(fields(prepared), tmp_path / 'run')
    agree(whole, tmp_path / 'run')


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [
        ((6, 8), P('fsdp', 'tensor')),
        ((7, 8), P(None, 'tensor')),
        ((8, 7), P('fsdp', None)),
        ((7, 7), P(None, None)),
        ((8,), P(None)),
        ((3, 3, 8, 16), P(None, None, 'fsdp', 'tensor')),
    ],
)
def test_which_axes_are_split(shape, expected, prepared):
    mesh = layout.make_mesh(fields(prepared, fsdp=2, tensor=2))
    assert layout.spec(shape, mesh) == expected


@pytest.mark.parametrize(
    ('processes', 'tensor', 'expected'),
    [
        ([0, 0, 0, 0], 1, [(0, 1)]),
        ([0, 0, 1, 1], 1, [(0, 2), (1, 2)]),
        ([0, 0, 1, 1], 2, [(0, 2), (1, 2)]),
        ([0, 0, 1, 1], 4, [(0, 1), (0, 1)]),  # both hold the one batch
        ([0, 1, 2, 3], 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([0, 0, 0, 1, 1, 1], 2, None),  # the part in the middle is held by both
    ],
)
def test_which_share_of_a_batch_a_process_reads(processes, tensor, expected, monkeypatch):
    devices = np.array([SimpleNamespace(process_index=number) for number in processes])
    mesh = SimpleNamespace(devices=devices.reshape(-1, 1, tensor), shape={'tensor': tensor})
    for number in sorted(set(processes)):
        monkeypatch.setattr(jax, 'process_index', lambda number=number: number)
        if expected is None:
            with pytest.raises(BadInput, match=r'tensor is 2, which divides the devices of a proc'):
                layout.feeding(mesh)
        else:
            assert layout.feeding(mesh) == expected[number]


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'mesh.fsdp': 3}, 'mesh.fsdp is 3, expected a divisor of 8 devices'),
        ({'mesh.tensor': 0}, 'mesh.tensor is 0, expected at least 1'),
        ({'mesh.fsdp': 2, 'replicates': 2}, 'replicates is 2, expected 1 where mesh'),
        ({'mesh.fsdp': 2, 'prune.pattern': 'groups'}, "prune.pattern is 'groups'"),
        ({'mesh.tensor': 2, 'train.batch_size': 6}, 'expected a multiple of 4 devices'),
    ],
)
def test_bad_fields(given, message, prepared):
    config = fields(prepared)
    config.update_from_flattened_dict(given)
    with pytest.raises(BadInput, match=message):
        config_lib.check(config, 8)
