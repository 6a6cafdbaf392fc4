"""Rounds that remove units: the smaller networks are trained, saved, and reported."""

import csv
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import convnet, prepared, rows_of, tiny  # noqa: F401

import jaxprune as jp
from jaxprune import structured
from train import config as config_lib
from train import data, loop, models, results, step, units
from train.errors import BadInput, Interrupted

pytestmark = pytest.mark.promotes

SHORT = {'train__steps': 20, 'train__steps_per_dispatch': 10, 'retrain__rewind_step': 10}


@pytest.fixture(autouse=True, scope='module')
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'device_count', lambda: 1)  # as many as there are cores to run them
        yield


@pytest.fixture(scope='module')
def finished(prepared, one_device, tmp_path_factory):  # noqa: F811
    workdir = tmp_path_factory.mktemp('units')
    loop.run(fields(convnet, prepared, **SHORT), workdir)
    return workdir


def fields(make, directory, **more):
    given = {'prune__pattern': 'groups', 'retrain__techniques': ('lr_rewind',)}
    return make(directory, **given | more)


def test_each_round_has_no_more_weights_than_its_density(finished):
    for row in rows_of(finished):
        level, density = int(row['level']), float(row['density'])
        assert density <= 0.5**level < density + 0.2


def test_the_saved_model_is_smaller_and_whole(finished):
    variables, masks, about = results.read_model(
        finished / 'models' / 'replicate_0' / 'lr_rewind.safetensors'
    )
    widths = [variables['params'][f'Conv_{n}']['kernel'].shape for n in range(3)]
    assert widths[0][3] == widths[1][2] < 16 or widths[1][3] == widths[2][2] < 32
    assert variables['batch_stats']['BatchNorm_1']['mean'].shape == (widths[1][3],)
    assert all(mask.all() for _, mask in jp.tree.present(masks))
    count = sum(leaf.size for _, leaf in jp.tree.present(masks))
    whole = 16 * 9 + 16 * 32 * 9 + 32 * 32 * 9 + 32 * 10
    assert count / whole == pytest.approx(about['density'], abs=1e-6)


def test_sizes_are_those_of_the_saved_model(prepared, finished):  # noqa: F811
    """Biases and scales of units that are gone are gone too; products are the smaller ones."""
    variables, _, about = results.read_model(
        finished / 'models' / 'replicate_0' / 'lr_rewind.safetensors'
    )
    saved = {path: leaf.size for path, leaf in jp.tree.present(variables['params'])}
    assert about['kept'] == sum(saved.values()) == int(rows_of(finished)[-1]['kept'])
    with (finished / 'layers.csv').open() as file:
        layers = [row for row in csv.DictReader(file) if int(row['level']) == about['level']]
    assert {row['path']: int(row['kept']) for row in layers} == saved
    networks, _ = loop.prepare(fields(convnet, prepared, **SHORT))
    whole = networks.total.parameters
    assert about['compression'] == pytest.approx(whole / sum(saved.values()))
    dataset = data.load('digits', directory=str(prepared), validation_examples=237, seed=0)
    inputs = step.preprocessing(about)(dataset.test.inputs[:1])
    model = models.build(about['model'], num_classes=about['num_classes'])
    costs = jp.cost.layers(units.network(about, model, inputs), variables, inputs)
    assert about['macs'] == jp.cost.total(costs).macs


def test_the_saved_model_restores_by_itself(prepared, finished):  # noqa: F811
    dataset = data.load('digits', directory=str(prepared), validation_examples=237, seed=0)
    page = (Path(__file__).parents[1] / 'docs' / 'structured.md').read_text()
    [example] = re.findall('<!-- restore -->\n```python\n(.*?)```', page, re.DOTALL)
    example = example.replace('runs/units_digits', str(finished))
    example = example.replace('directory=None', f'directory={str(prepared)!r}')
    exec(example, names := {'jax': jax})
    right = (np.asarray(names['logits']).argmax(-1) == dataset.test.labels).mean()
    assert right == pytest.approx(float(rows_of(finished)[-1]['test_accuracy']))
    resized = structured.resized(names['model'])(names['variables'], names['inputs'], train=False)
    np.testing.assert_allclose(resized, names['logits'], atol=1e-4)


def test_the_dense_network_with_zeros_computes_the_same(prepared, finished):  # noqa: F811
    """What the run measured at the smaller size, by the whole model on the whole state."""
    run_config = fields(convnet, prepared, **SHORT)
    networks, pipeline = loop.prepare(run_config)
    assert networks.groups is not None
    part = next(pipeline.evaluate('test'))
    with loop.checkpoint.open_store(finished / 'checkpoints', ()) as store:
        last = loop.lay_out(run_config)[-1]
        keys = jax.random.split(jax.random.key(0), 1)
        point = loop.checkpoint.restore(
            store,
            last.end,
            jax.eval_shape(lambda: loop.TrainState(networks.full.init(keys), jnp.int32(0), keys)),
        ).point
    small = networks.at(last, point)
    assert small is not networks.full
    a, b = networks.full.measure(point, part), small.measure(point, part)
    np.testing.assert_array_equal(a.right, b.right)
    np.testing.assert_allclose(a.nats, b.nats, rtol=1e-5)
    stats = point.extra['batch_stats']['BatchNorm_0']['var'][0]
    kept = structured.kept_by(
        networks.groups, jp.get_masks(jax.tree.map(lambda x: x[0], point).opt_state), under='params'
    )['params/Conv_0/kernel:3']
    np.testing.assert_array_equal(np.asarray(stats) > 0, kept)


def test_a_stopped_run_ends_with_the_same_bytes(prepared, tmp_path):  # noqa: F811
    config = fields(tiny, prepared, retrain__techniques=('weight_rewind',))
    loop.run(config, tmp_path / 'whole')
    asked = iter([None] * 7)
    with pytest.raises(Interrupted):
        loop.run(config, tmp_path / 'stopped', lambda: next(asked, 15))
    loop.run(config, tmp_path / 'stopped')
    for name in ('results.csv', 'layers.csv', 'models/replicate_0/weight_rewind.safetensors'):
        assert (tmp_path / 'whole' / name).read_bytes() == (
            tmp_path / 'stopped' / name
        ).read_bytes()


@pytest.mark.slow
def test_beside_the_small_dense_network(prepared, tmp_path):  # noqa: F811
    """Which is built narrower, and has no units to remove."""
    run = fields(tiny, prepared, retrain__techniques=('lr_rewind', 'small_dense'))
    loop.run(run, tmp_path / 'run')
    for technique in ('lr_rewind', 'small_dense'):
        variables, _, about = results.read_model(
            tmp_path / 'run' / 'models' / 'replicate_0' / f'{technique}.safetensors'
        )
        count = sum(leaf.size for _, leaf in jp.tree.present(variables['params']))
        assert about['kept'] == count
        assert bool(about['removed']) == (technique == 'lr_rewind')


@pytest.mark.exhaustive
def test_multiples_and_floors(prepared, tmp_path):  # noqa: F811
    config = fields(
        tiny,
        prepared,
        prune__multiple=20,
        prune__floor=0.2,
        prune__normalize=False,
        prune__levels=1,
    )
    loop.run(config, tmp_path / 'run')
    variables, _, _ = results.read_model(
        tmp_path / 'run' / 'models' / 'replicate_0' / 'lr_rewind.safetensors'
    )
    hidden = [variables['params'][f'Dense_{n}']['bias'].size for n in range(2)]
    assert all(size % 20 == 0 for size in hidden) and hidden[0] >= 60 and hidden[1] >= 20


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'replicates': 2}, 'replicates is 2, expected 1'),
        ({'prune__allocation': 'uniform'}, "expected 'global_top'"),
        ({'retrain__techniques': ('lr_rewind', 'shuffled_masks')}, "no 'shuffled_masks'"),
        ({'prune__multiple': 0}, 'prune.multiple is 0'),
    ],
)
def test_bad_fields(prepared, given, message):  # noqa: F811
    with pytest.raises(BadInput, match=message):
        config_lib.check(fields(tiny, prepared, **given), 1)


def test_a_density_that_cannot_be_reached(prepared, tmp_path):  # noqa: F811
    config = fields(tiny, prepared, prune__floor=0.9)
    with pytest.raises(BadInput, match=r'budget=.* cannot be met'):
        loop.run(config, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'results.csv').exists()


def test_filters_by_layer_are_removed():
    """Of ResNet-56-A a tenth of the filters of the first convolution in most blocks."""
    from configs import cifar10_resnet56_filters
    from train import l1_filters

    config = cifar10_resnet56_filters.get_config()
    assert config.prune.pattern == 'groups'
    model = models.build('resnet56', num_classes=10)
    prepare = step.preprocessing({'normalize': 'none'})
    groups = units.find(config, model, prepare, np.zeros((1, 32, 32, 3), np.float32))
    shapes = groups.params['params']
    rng = np.random.default_rng(0)
    where = jax.tree.map(lambda s: s if len(s.shape) > 1 else None, shapes)
    scores = jax.tree.map(lambda s: rng.random(s.shape), where)
    masks = jax.tree.map(lambda s: np.ones(s.shape, bool), where)
    kept = structured.kept_by(
        groups, units.allocate(groups, scores, masks, 0.9, config), under='params'
    )
    densities = l1_filters.densities(config.prune.layer_densities)
    assert len(densities) > 20
    for path, density in densities.items():
        own = kept[f'params/{path}:3']
        assert own.sum() == round(density * own.size)
        filters = np.asarray(dict(jp.tree.present(scores))[path]).sum((0, 1, 2))
        assert filters[own].min() > filters[~own].max()
    others = [mask.all() for name, mask in kept.items() if name[7:-2] not in densities]
    assert all(others)
