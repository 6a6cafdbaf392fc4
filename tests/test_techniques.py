"""What each technique restores, against rounds driven by hand with the library alone."""

import jax
import numpy as np
import pytest
from test_loop import convnet, rows_of, tiny

import jaxprune as jp
from train import checkpoint, loop, networks, report, results
from train.timeline import locate

pytestmark = pytest.mark.promotes  # optax and flax do

OWN_RATES = {'fine_tune': 40, 'slr': 60, 'clr': 80, 'llr': 100, 'allr': 100}
CONTROLS = ('random_masks', 'shuffled_masks', 'reinit')
TECHNIQUES = ('lr_rewind', 'weight_rewind', *OWN_RATES, *CONTROLS)


@pytest.fixture(autouse=True, scope='module')
def unreported():
    """Reports have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda *_: None)
        patch.setattr(jax, 'device_count', lambda: 1)  # as many as there are cores to run them
        yield


def captured(config, workdir, patch):
    """Runs, and keeps the points of replicate 0 at the start and the end of each segment."""
    starts, ends = {}, {}
    begin, evaluate = loop.begin, loop.evaluate

    def keep(kept, segment, points):
        point = loop.replicate(points, 0)
        kept[segment.technique, segment.level] = jax.tree.map(np.asarray, point)

    def watch_begin(run, segment):
        state = begin(run, segment)
        keep(starts, segment, state.point)
        return state

    def watch_evaluate(run, segment, points):
        keep(ends, segment, points)
        return evaluate(run, segment, points)

    patch.setattr(loop, 'begin', watch_begin)
    patch.setattr(loop, 'evaluate', watch_evaluate)
    loop.run(config, workdir)
    return starts, ends


@pytest.fixture(scope='module')
def watched(tmp_path_factory, unreported):
    folder = tmp_path_factory.mktemp('techniques')
    config = convnet(folder, prune__levels=1, retrain__techniques=TECHNIQUES)
    with pytest.MonkeyPatch.context() as patch:
        starts, ends = captured(config, folder / 'run', patch)
    with checkpoint.open_store(folder / 'run' / 'checkpoints', []) as store:
        steps = set(store.all_steps())
    return starts, ends, steps, rows_of(folder / 'run')


def moments(point):
    return jax.tree.leaves(point.opt_state.inner_state[1][0])


def count(point):
    return int(point.opt_state.inner_state[1][1].count)


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def masks_by_hand(point):
    return jp.masks.global_top(jp.scores.magnitude(point.params), 0.5)


@pytest.mark.parametrize(('technique', 'step'), [('lr_rewind', 20), *OWN_RATES.items()])
def test_weights_moments_and_statistics_go_on_and_the_schedule_moves(watched, technique, step):
    starts, ends, *_ = watched
    dense, start = ends['dense', 0], starts[technique, 1]
    masks = masks_by_hand(dense)
    assert_same(jp.get_masks(start.opt_state), masks)
    assert_same(start.params, jp.masks.apply(dense.params, masks))
    assert_same(moments(start), moments(dense))
    assert_same(start.extra, dense.extra)
    assert count(start) == step


def test_weight_rewinding_restores_weights_moments_statistics_and_schedule(watched):
    starts, ends, steps, _ = watched
    start, dense = starts['weight_rewind', 1], ends['dense', 0]
    masks = masks_by_hand(dense)
    assert_same(jp.get_masks(start.opt_state), masks)
    assert count(start) == 20
    assert 20 in steps
    for found, at_the_end in zip(moments(start), moments(dense), strict=True):
        assert (found != at_the_end).any()
    mean = lambda point: point.extra['batch_stats']['BatchNorm_0']['mean']
    assert (mean(start) != mean(dense)).all()


def test_reinitialised_tickets_are_a_new_draw_under_the_masks_of_the_first_technique(watched):
    starts, ends, *_ = watched
    start, first = starts['reinit', 1], starts['dense', 0]
    masks = masks_by_hand(ends['dense', 0])
    assert_same(jp.get_masks(start.opt_state), masks)
    kernel = lambda point: point.params['Conv_1']['kernel']
    kept = masks['Conv_1']['kernel']
    assert (kernel(start)[kept] != kernel(first)[kept]).all()
    assert (kernel(start)[~kept] == 0).all()
    assert all((moment == 0).all() for moment in moments(start))
    assert_same(start.extra, first.extra)
    assert count(start) == 0


def test_shuffled_masks_keep_as_many_weights_of_each_layer(watched):
    starts, ends, *_ = watched
    masks = jax.tree.leaves(masks_by_hand(ends['dense', 0]))
    shuffled = jax.tree.leaves(jp.get_masks(starts['shuffled_masks', 1].opt_state))
    for mask, other in zip(masks, shuffled, strict=True):
        assert mask.sum() == other.sum()
        assert (mask != other).any()
    assert count(starts['shuffled_masks', 1]) == 20  # retrained as the first technique


def test_random_masks_are_those_of_no_score(watched):
    starts, ends, *_ = watched
    masks = masks_by_hand(ends['dense', 0])
    found = jp.get_masks(starts['random_masks', 1].opt_state)
    overlap = [
        (a & b).sum() / a.sum() for a, b in zip(*map(jax.tree.leaves, (masks, found)), strict=True)
    ]
    assert max(overlap) < 0.8
    assert count(starts['random_masks', 1]) == 20


def test_allr_lowers_its_rate_by_what_pruning_has_done(watched):
    starts, ends, *_ = watched
    state = starts['allr', 1].opt_state.inner_state[-1]
    assert state.factor == np.float32(0.5)  # d1 is lower: retraining takes half the time
    assert ends['dense', 0].opt_state.inner_state[-1].factor == 1


def test_every_end_is_kept_and_its_accuracy_before_retraining_reported(watched):
    _, _, steps, rows = watched
    ends = {40 + 20 * n for n in range(len(TECHNIQUES))} | {40 + 20 * 9 + 40}
    assert ends <= steps
    pruned = {row['technique']: row['pruned_test_accuracy'] for row in rows}
    assert pruned.pop('dense') == ''
    same = {'lr_rewind', 'weight_rewind', *OWN_RATES, 'reinit'}  # one network, one set of masks
    assert len({pruned[name] for name in same}) == 1
    assert len({pruned[name] for name in CONTROLS}) == 3


def test_moments_may_begin_afresh(tmp_path, monkeypatch):
    config = tiny(
        tmp_path, prune__levels=1, retrain__techniques=('lr_rewind',), retrain__reset_moments=True
    )
    starts, _ = captured(config, tmp_path / 'run', monkeypatch)
    start = starts['lr_rewind', 1]
    assert all((moment == 0).all() for moment in moments(start))
    assert count(start) == 20


def test_rewound_to_step_0_under_masks_of_ones_the_dense_steps_come_again(tmp_path):
    config = convnet(
        tmp_path,
        retrain__techniques=('weight_rewind',),
        retrain__rewind_step=0,
        retrain__reshuffle=False,
        replicates=2,
    )
    made, pipeline = loop.prepare(config)
    segments = loop.lay_out(config)
    run = loop.Run(config, tmp_path, segments, made, pipeline, None, None, lambda: None)
    dense = loop.begin(run, segments[0])
    trainer = made.full
    copy = lambda state: jax.tree.map(jax.numpy.copy, state)
    first, losses = trainer.train(copy(dense), pipeline.sample())
    stored = loop.restore_rewind_step(run)
    ones = jax.tree.map(jax.numpy.ones_like, jp.get_masks(stored.opt_state))
    ticket = jp.rewind.put_masks(stored, ones)
    state = dense._replace(point=jax.device_put(ticket, trainer.shardings.point))
    again, same = trainer.train(copy(state), pipeline.sample())
    assert_same(same, losses)
    assert_same(again.point, first.point)


@pytest.mark.slow
@pytest.mark.parametrize(
    'fields',
    [
        {'prune__score': 'taylor', 'prune__allocation': 'erdos_renyi'},
        {'prune__score': 'fisher', 'prune__floor': 0.05},
        {'prune__score': 'lamp', 'prune__pattern': 'blocks', 'prune__block': (4, 1)},
        {'prune__score': 'grasp', 'prune__dense': ('Dense_2/kernel',)},
        {'prune__pattern': 'n_of_m', 'prune__densities': (0.5,), 'prune__allocation': 'uniform'},
        {'prune__score': 'snip', 'prune__mode': 'oneshot'},
    ],
    ids=lambda fields: ' '.join(map(str, fields.values())),
)
def test_any_score_allocation_and_pattern(tmp_path, fields):
    config = tiny(tmp_path, retrain__techniques=('lr_rewind',), **fields)
    loop.run(config, tmp_path / 'run')
    rows = rows_of(tmp_path / 'run')
    plan = loop.config_lib.density_plan(config)
    assert [float(row['density']) for row in rows[1:]] == pytest.approx(list(plan), abs=2e-3)
    path = tmp_path / 'run/models/replicate_0/lr_rewind.safetensors'
    _, masks, _ = results.read_model(path)
    if fields.get('prune__pattern') == 'blocks':
        kernel = masks['Dense_0']['kernel'].reshape(16, 4, 300)
        assert (kernel.all(1) == kernel.any(1)).all()
    if fields.get('prune__pattern') == 'n_of_m':
        assert (masks['Dense_0']['kernel'].reshape(16, 4, 300).sum(1) == 2).all()
    if 'prune__dense' in fields:
        assert masks['Dense_2']['kernel'].all()
    if fields.get('prune__mode') == 'oneshot':
        assert [int(row['train_steps']) for row in rows] == [40, 60, 60]


def test_a_small_dense_network_has_no_more_parameters(tmp_path):
    config = tiny(tmp_path, prune__levels=1, retrain__techniques=('lr_rewind', 'small_dense'))
    loop.run(config, tmp_path / 'run')
    rows = rows_of(tmp_path / 'run')
    pruned = [row for row in rows if row['technique'] == 'lr_rewind']
    small = [row for row in rows if row['technique'] == 'small_dense']
    for row, other in zip(pruned, small, strict=True):
        assert 0.9 * int(row['kept']) < int(other['kept']) <= int(row['kept'])
        assert int(other['train_steps']) == 40
        assert other['pruned_test_accuracy'] == ''
    path = tmp_path / 'run/models/replicate_0/small_dense.safetensors'
    variables, _, about = results.read_model(path)
    assert about['width'] < 1
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == int(small[-1]['kept'])


def test_a_level_that_empties_a_layer_ends_the_run_with_what_to_do(tmp_path):
    config = tiny(tmp_path, prune__densities=(0.0002,), retrain__techniques=('lr_rewind',))
    with pytest.raises(
        loop.BadInput, match=r'lr_rewind level 1, replicate 0, .*config.prune.floor'
    ):
        loop.run(config, tmp_path / 'run')
    assert [row['technique'] for row in rows_of(tmp_path / 'run')] == ['dense']


def test_the_width_of_a_small_network_by_hand():
    total = jp.report.Record('total', None, 1000, 900, 1000)
    parameters = lambda width: round(1000 * width**2)
    assert networks.width_of(156, total, parameters) == 0.505859375  # 518 / 1024: 255.9, of 256
    with pytest.raises(
        ValueError, match="'small_dense' cannot have as few parameters as the level"
    ):
        networks.width_of(10, total, lambda width: 111)


@pytest.mark.parametrize(
    'by',
    [
        pytest.param('vmap', marks=pytest.mark.slow),
        pytest.param('map', marks=pytest.mark.exhaustive),
    ],
)
def test_replicates_together_are_those_trained_alone(tmp_path, by):
    config = tiny(tmp_path, replicates=2, replicate_by=by, prune__levels=1, train__batch_size=32)
    loop.run(config, tmp_path / 'two')
    two = rows_of(tmp_path / 'two')
    config.replicates = 1
    loop.run(config, tmp_path / 'one')
    for row in rows_of(tmp_path / 'one'):
        (other,) = [
            r
            for r in two
            if r['replicate'] == '0'
            and r['technique'] == row['technique']
            and r['level'] == row['level']
        ]
        assert float(other['test_accuracy']) == pytest.approx(float(row['test_accuracy']), abs=0.02)
        assert float(other['test_bits']) == pytest.approx(float(row['test_bits']), rel=0.05)


def test_replicates_lie_over_the_devices_where_they_divide_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'device_count', lambda: len(jax.devices()))
    config = tiny(tmp_path, replicates=8, prune__levels=1, retrain__techniques=('lr_rewind',))
    made, pipeline = loop.prepare(config)
    segments = loop.lay_out(config)
    run = loop.Run(config, tmp_path, segments, made, pipeline, None, None, lambda: None)
    state, losses = made.full.train(loop.begin(run, segments[0]), pipeline.sample())
    kernel = state.point.params['Dense_0']['kernel']
    assert len(kernel.sharding.device_set) == 8
    assert kernel.addressable_shards[0].data.shape[0] == 1
    text = made.full.train.lower(state, pipeline.sample()).compile().as_text()
    assert 'all-reduce' not in text
    assert 'all-gather' not in text
    assert losses.shape == (8, 10)
    assert locate(segments, 40) == 1
