"""Pictures of the report, and the reference that is drawn beside."""

import numpy as np
import pytest
import study_runs

from train.errors import BadInput
from train.report import described, figures, measured, page, reference, runs
from train.report.names import ACCURACY
from train.report.statistics import Comparison

HEADER = (
    'network,dataset,mode,prune_method,method,density,retrain_time,'
    'test_median,test_min,test_max,val_median,compression,delta_median'
)
CHOICE = 'resnet20,CIFAR-10,iterative,Unstructured'
ROWS = (
    f'{CHOICE},lr_rewinding,0.5,90,0.90,0.89,0.93,0.85,2,-0.01',
    f'{CHOICE},lr_rewinding,0.5,182,0.92,0.91,0.93,0.84,2,0.01',
    f'{CHOICE},lr_rewinding,0.25,90,0.88,0.87,0.89,0.82,4,-0.03',
    f'{CHOICE},lr_rewinding,0.25,182,0.86,0.85,0.87,0.83,4,-0.05',
    f'{CHOICE},weight_rewinding_low_lr,0.5,90,0.80,0.80,0.80,0.80,2,-0.11',
    'gnmt,WMT16 En-De,oneshot,Unstructured,fine_tuning,0.5,5,26,25,27,24,2,-0.5',
)
RESNET = {'network': 'resnet20'}
LEVELS = [(0.90, 0.91, 0.95), (0.88, 0.90, 0.91), (0.80, 0.81, 0.82)]


def file(tmp_path, rows=ROWS, header=HEADER):
    path = tmp_path / 'summary.csv'
    path.write_text('\n'.join((header, *rows)) + '\n')
    return path


@pytest.fixture
def study(tmp_path):
    accuracies = {'lr_rewind': LEVELS, 'fine_tune': LEVELS}
    return runs.load([study_runs.write(tmp_path / 'run', study_runs.rows(accuracies))])


def test_a_subset_of_the_reference(tmp_path):
    found = reference.load(file(tmp_path), RESNET | {'retrain_time': '182'})
    assert found.chosen == {
        'network': 'resnet20',
        'dataset': 'CIFAR-10',
        'mode': 'iterative',
        'prune_method': 'Unstructured',
        'retrain_time': '182',
    }
    assert set(found.curves) == {'lr_rewind'}
    curve = found.curves['lr_rewind']
    assert curve.compression.tolist() == [2, 4]
    assert curve['median'].tolist() == pytest.approx([0.01, -0.05])
    assert curve['min'].tolist() == pytest.approx([0.0, -0.06])  # against the dense mean 0.91
    assert curve['max'].tolist() == pytest.approx([0.02, -0.04])


def test_the_retrain_time_of_the_best_validation_score(tmp_path):
    found = reference.load(file(tmp_path), RESNET | {'retrain_time': 'validation'})
    assert found.curves['lr_rewind']['median'].tolist() == pytest.approx([-0.01, -0.05])
    assert set(found.curves) == {'lr_rewind', 'weight_rewinding_low_lr'}


def test_what_is_unique_needs_no_choice(tmp_path):
    found = reference.load(file(tmp_path, [ROWS[0], ROWS[3]]), {})
    assert found.curves['lr_rewind']['median'].tolist() == pytest.approx([-0.01, -0.05])
    assert 'retrain_time' not in found.chosen


@pytest.mark.parametrize(
    ('select', 'message'),
    [
        ({}, '--reference_network: choose one; the file has resnet20, gnmt$'),
        ({'network': 'vgg'}, "--reference_network: 'vgg' is not there; the file has resnet20, gn"),
        (RESNET, '--reference_retrain_time: choose one; the file has 90, 182, or validation: the'),
        (RESNET | {'mode': 'oneshot'}, "_mode: 'oneshot' is not there; the file has iterative$"),
        ({'network': 'gnmt'}, 'the scores of .*gnmt.* are no fractions'),
    ],
)
def test_a_choice_is_asked_for(tmp_path, select, message):
    with pytest.raises(BadInput, match=message):
        reference.load(file(tmp_path), select)


def test_a_reference_that_is_no_such_table(tmp_path):
    with pytest.raises(BadInput, match=r'cannot be read: .*No such file'):
        reference.load(tmp_path / 'none.csv', {})
    place = HEADER.split(',').index('compression')
    header = HEADER.replace('density', 'share').replace('test_min', 'least')
    with pytest.raises(BadInput, match='lacks the columns density, test_min; it has network, data'):
        reference.load(file(tmp_path, header=header), {})
    with pytest.raises(BadInput, match='values in delta_median that are no numbers'):
        reference.load(file(tmp_path, [ROWS[0][:-5] + 'x']), {})
    negative = ','.join(['-2' if i == place else x for i, x in enumerate(ROWS[0].split(','))])
    with pytest.raises(BadInput, match='compressions that are not above 0'):
        reference.load(file(tmp_path, [negative]), {})
    with pytest.raises(BadInput, match='several rows for a method and density'):
        reference.load(file(tmp_path, [ROWS[0]] * 2), {'retrain_time': '90'})


def test_ours_and_theirs_share_an_axis(tmp_path, study):
    theirs = reference.load(file(tmp_path), RESNET | {'retrain_time': '182'})
    axes, *blank = figures.beside(study, theirs).axes
    assert not blank and axes.get_title() == 'learning-rate rewinding'
    ours, reference_line = [line for line in axes.lines if line.get_label()[0] != '_']
    assert ours.get_xdata() == pytest.approx([2, 4, 100 / 12])
    assert ours.get_ydata() == pytest.approx([0, -1, -10])  # medians less the dense mean 0.91
    assert reference_line.get_xdata() == pytest.approx([2, 4])
    assert reference_line.get_ydata() == pytest.approx([1, -5])
    section = measured.beside(study, theirs)
    assert section.blocks[0].text.endswith('182. Not in the reference: fine-tuning.')


def test_a_reference_without_our_techniques_is_said(tmp_path, study):
    theirs = reference.load(file(tmp_path, [ROWS[4]]), {})
    [text] = measured.beside(study, theirs).blocks
    assert 'Not in these runs: weight_rewinding_low_lr.' in text.text
    assert text.text.count('Not in') == 2


def test_the_report_draws_the_reference(tmp_path, study):
    theirs = reference.load(file(tmp_path), RESNET | {'retrain_time': '182'})
    sections = page.contents(study, theirs, None, False)
    assert 'Beside the reference' in [section.title for section in sections]


def test_differences_are_drawn_with_their_intervals():
    levels = [
        Comparison(1, 2.0, 3, 0.02, (0.01, 0.04)),
        Comparison(2, 4.0, 3, -0.03, (-0.03, -0.03)),
        Comparison(3, 8.0, 1, 0.5, None),
    ]
    figure = figures.differences({'clr': levels}, 'fine_tune', ['clr', 'fine_tune'], ACCURACY)
    [bars] = figure.axes[0].containers
    points, _, [reach] = bars.lines
    assert points.get_ydata() == pytest.approx([2, -3])
    assert np.log2(np.array(points.get_xdata(), float)) == pytest.approx([1, 2], abs=0.05)
    ends = [segment[:, 1].tolist() for segment in reach.get_segments()]
    assert ends == [pytest.approx([1, 4]), pytest.approx([-3, -3])]


def test_layers_are_drawn_by_level(study):
    drawing = described.layers(study).blocks[0]
    first, second, bar = drawing.figure().axes
    assert [axes.get_title() for axes in (first, second)] == [
        'learning-rate rewinding',
        'fine-tuning',
    ]
    # 50, 25 and 12 weights are kept, four fifths of them in the first kernel, which has 80.
    cells = first.collections[0].get_array()
    assert cells[0].tolist() == pytest.approx([40 / 80, 20 / 80, 9 / 80])
    assert cells[1].tolist() == pytest.approx([10 / 20, 5 / 20, 3 / 20])
    assert [text.get_text() for text in first.get_yticklabels()] == [
        'Dense_0/kernel',
        'Dense_1/kernel',
    ]
    assert bar.get_ylabel() == 'density (%)'
    assert all(tick == round(tick) for tick in first.get_xticks())


def test_a_layer_with_nothing_left_has_no_colour_of_the_scale(study):
    layers = study.layers.copy()
    gone = (layers.path == 'Dense_1/kernel') & (layers.level == 3)
    layers.loc[gone, 'kept'] = 0
    drawing = described.layers(study._replace(layers=layers)).blocks[0]
    cells = drawing.figure().axes[0].collections[0].get_array()
    assert np.ma.getmaskarray(cells).tolist() == [[False] * 3, [False, False, True]]


def test_a_drawing_follows_the_colours_of_the_page():
    from matplotlib.figure import Figure

    def figure():
        drawn = Figure()
        drawn.subplots().plot([1, 2], label='<line>')
        return drawn

    picture = figures.draw('a', 'two "points"', figure)
    assert picture.svg.startswith('<svg role="img" aria-label="two &quot;points&quot;"')
    assert 'stroke: currentColor' in picture.svg and 'id="a-figure_1"' in picture.svg
    assert not picture.svg[: picture.svg.index('>')].count('width=')
    assert picture == figures.draw('a', 'two "points"', figure)
