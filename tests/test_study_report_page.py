"""The report itself: what it says, in both of its forms, and the command that writes it."""

import html
import json
import re
import subprocess
import sys

import matplotlib.image
import pytest
import study_runs

from train import report
from train.errors import BadInput
from train.report import __main__ as command
from train.report import page, runs, sentences
from train.report.names import ACCURACY, BITS
from train.report.statistics import compare

# Against fine-tuning: ahead at levels 1 and 2, behind at 3; one replicate of each sign at level 4.
FINE_TUNE = [(0.90, 0.90, 0.90), (0.88, 0.88, 0.88), (0.80, 0.80, 0.80), (0.7, 0.7, 0.7)]
LR_REWIND = [(0.91, 0.92, 0.93), (0.89, 0.90, 0.90), (0.70, 0.71, 0.72), (0.6, 0.7, 0.8)]
CONTROL = [(0.5, 0.5, 0.5)] * 4


def made(tmp_path, accuracies=None, *, name='run', about=None, timings=True, **options):
    if accuracies is None:
        accuracies = {'lr_rewind': LR_REWIND, 'fine_tune': FINE_TUNE, 'random_masks': CONTROL}
    dense = options.pop('dense', study_runs.DENSE)
    levels = min(map(len, accuracies.values()))
    rows = study_runs.rows(accuracies, dense=dense, levels=levels)
    config = study_runs.config(
        **{'techniques': tuple(accuracies), 'levels': levels, 'replicates': len(dense)} | options
    )
    return study_runs.write(tmp_path / name, rows, config=config, about=about, timings=timings)


def contents(directory, baseline=None, **options):
    study = runs.load([directory])
    sections = page.contents(study, None, baseline, options.get('require_intervals', False))
    return study, {section.title: section.blocks for section in sections}


def verdicts(study, metric, baseline='fine_tune'):
    return [
        sentences.verdict(pair, compare(study.results, *pair, f'test_{metric.column}'), metric)
        for pair in sentences.pairs(study.techniques, baseline)
    ]


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A report on text with several predictions an example, so that it has every section."""
    tmp_path = tmp_path_factory.mktemp('report')
    about = study_runs.about(name='<b>|text', predictions_per_example=32)
    directory = made(tmp_path, about=about)
    files = report.write([directory], tmp_path / 'out')
    assert all(path.exists() for path in files)
    return directory, tmp_path / 'out', files


def test_sentences_fall_whichever_way_the_numbers_do(tmp_path):
    study = runs.load([made(tmp_path)])
    first, *controls = verdicts(study, ACCURACY)
    assert first == (
        'Learning-rate rewinding is ahead of fine-tuning at 2 of 4 densities, behind at 1, '
        'undecided at 1.'
    )
    assert [sentence.split(' at ')[0] for sentence in controls] == [
        'Learning-rate rewinding is ahead of random masks',
        'Fine-tuning is ahead of random masks',
    ]
    # The same numbers as bits: fewer are better.
    flipped = study._replace(results=study.results.assign(test_bits=study.results.test_accuracy))
    assert verdicts(flipped, BITS)[0].endswith('at 1 of 4 densities, behind at 2, undecided at 1.')


def test_every_pair_of_main_techniques_and_each_control_once():
    techniques = ['lr_rewind', 'weight_rewind', 'fine_tune', 'reinit', 'small_dense']
    found = sentences.pairs(techniques, 'fine_tune')
    assert found[:3] == [
        ('lr_rewind', 'fine_tune'),
        ('weight_rewind', 'fine_tune'),
        ('lr_rewind', 'weight_rewind'),
    ]
    mains, controls = techniques[:3], techniques[3:]
    assert set(found[3:]) == {(main, control) for main in mains for control in controls}
    assert len(found) == 3 + 6


def test_the_method_is_said_with_its_numbers(tmp_path):
    _, sections = contents(made(tmp_path))
    texts = [block.text for block in sections['What was found'] if block.kind == 'text']
    method = ' '.join(texts)
    for part in (
        '95 %, percentile method, 9,999 resamples of the replicates, seed 0',
        'Sample size: 3 replicates.',
        '12 comparisons were made, with no correction for their number: about 3 would',
        'about 26 % of them exclude 0 (simulated), not 5 %',
    ):
        assert part in method
    limits = sections['What was found'][-1].items
    assert limits == [
        '4 operating points, fewer than five.',
        'Controls that were not run: shuffled masks, reinitialised tickets, small dense network.',
    ]


def test_one_replicate_decides_nothing(tmp_path):
    accuracies = {'lr_rewind': [(0.9,), (0.8,)], 'fine_tune': [(0.5,), (0.4,)]}
    directory = made(tmp_path, accuracies, dense=(0.9,))
    _, sections = contents(directory)
    found = sections['What was found']
    assert found[1].text.startswith('Compared by test accuracy')
    assert found[2].items == [
        'Learning-rate rewinding against fine-tuning: one replicate, nothing is decided.'
    ]
    assert found[3].text == 'One replicate: no interval; nothing is decided.'
    [differences] = sections['Difference to fine-tuning']  # no picture: there is no interval
    assert [row[2] for row in differences.rows] == ['+40.00', '+40.00']
    cells = [cell for table in sections['Level by level'][1:] for row in table.rows for cell in row]
    assert not [cell for cell in cells if '±' in cell or '[' in cell]
    with pytest.raises(BadInput, match='at least two replicates, there is one: set'):
        contents(directory, require_intervals=True)


def test_intervals_that_are_required_need_replicates_in_common(tmp_path):
    one = made(tmp_path, {'lr_rewind': LR_REWIND}, name='a')
    other = made(tmp_path, {'fine_tune': FINE_TUNE}, name='b', seed=1)
    study = runs.load([one, other])
    page.contents(study, None, None, False)
    with pytest.raises(BadInput, match='lr_rewind and fine_tune have 0 in common'):
        page.contents(study, None, None, True)
    assert verdicts(study, ACCURACY) == [
        'Learning-rate rewinding and fine-tuning share no replicate: they are not compared.'
    ]


def test_the_baseline(tmp_path):
    directory = made(tmp_path)
    assert 'Difference to random masks' in contents(directory, 'random_masks')[1]
    with pytest.raises(BadInput, match=r"no technique 'foo' .*lr_rewind, fine_tune, random_masks"):
        contents(directory, 'foo')
    assert sentences.choose_baseline(['lr_rewind', 'clr', 'reinit'], None) == 'clr'


def test_levels_by_hand(tmp_path):
    _, sections = contents(made(tmp_path))
    _, rewinding, *_ = sections['Level by level']
    assert rewinding.caption == 'learning-rate rewinding'
    dense, first, *_ = rewinding.rows
    assert dense == (
        '0', '100.00 %', '110', '1.00×', '1.1', '3', '', '91.00 ± 1.00', '', '90.00 ± 1.00'
    )  # fmt: skip
    assert first == (
        '1', '50.00 %', '60', '1.83×', '0.6', '3', '46.00 ± 0.50', '92.00 ± 1.00',
        '+1.00 [+1.00, +1.00]', '91.00 ± 1.00',
    )  # fmt: skip


def test_the_headline_table_marks_the_largest_and_the_none(tmp_path):
    accuracies = {'lr_rewind': [(0.91,) * 3, (0.92,) * 3], 'fine_tune': [(0.9,) * 3, (0.8,) * 3]}
    _, sections = contents(made(tmp_path, accuracies))
    _, table = sections['Largest compression that holds']
    assert table.rows[0] == (
        'learning-rate rewinding', '−0', '3.14×*', '+1.00', '3.14×*', '3.14×*'
    )  # fmt: skip
    assert table.rows[4] == ('fine-tuning', '−0.25', '—', '—', '—', '—')
    assert table.rows[5] == ('fine-tuning', '−1', '1.83×', '−1.00', '1.83×', '1.83×')


def test_search_cost_and_wall_time_by_hand(tmp_path):
    _, sections = contents(made(tmp_path))
    _, epochs, _, seconds = sections['Search cost']
    assert epochs.rows[0] == ('0', '10.0', '10.0', '10.0')  # 100 steps of 8 among 80 examples
    assert epochs.rows[-2:] == [('4', *['50.0'] * 3), ('whole search', *['50.0'] * 3)]
    assert seconds.rows[:2] == [('dense', '1.5'), ('learning-rate rewinding', '6.0')]
    _, sections = contents(made(tmp_path, name='untimed', timings=False))
    assert sections['Search cost'][-1].text == 'No wall times: there is no timings.csv.'


def test_layers_by_hand(tmp_path):
    _, sections = contents(made(tmp_path))
    _, table = sections['Layers']
    # At level 4, 16 weights are kept: the 10 that are not prunable, 4 and 2.
    assert [row[:4] for row in table.rows] == [
        ('Dense_0/bias', '10', '10', '10'),
        ('Dense_0/kernel', '8 × 10', '80', '4 (5.00 %)'),
        ('Dense_1/kernel', '10 × 2', '20', '2 (10.00 %)'),
        ('total', '', '110', '16'),
    ]


def test_a_network_of_other_shapes_has_a_table_of_its_own(tmp_path):
    directory = made(tmp_path, {'lr_rewind': LR_REWIND, 'small_dense': CONTROL})
    path = directory / 'layers.csv'
    lines = path.read_text().splitlines(keepends=True)
    small = [
        line.replace('8x10,80,80', '8x3,24,24') if ',small_dense,' in line else line
        for line in lines
    ]
    path.write_text(''.join(small))
    _, sections = contents(directory)
    _, large, small = sections['Layers']
    assert large.headers[3:] == ('learning-rate rewinding',)
    assert small.headers[3:] == ('small dense network',)
    assert small.rows[1][:3] == ('Dense_0/kernel', '8 × 3', '24')


def test_what_is_smaller_physically_is_said(tmp_path):
    said = contents(made(tmp_path))[1]['How to read this']
    assert 'zeros in dense arrays' in said[1].text and len(said) == 2
    small = made(tmp_path, {'lr_rewind': LR_REWIND, 'small_dense': CONTROL}, name='small')
    assert contents(small)[1]['How to read this'][2].text.startswith('The small dense network')
    units = made(tmp_path, name='units')
    config = json.loads((units / 'config.json').read_text())
    config['prune']['pattern'] = 'groups'
    (units / 'config.json').write_text(json.dumps(config))
    said = contents(units)[1]['How to read this']
    assert 'removed physically' in said[1].text and 'dense arrays, held' not in said[1].text


def test_a_run_still_going_on_is_marked(tmp_path):
    directory = made(tmp_path, levels=6)
    study = runs.load([directory])
    for template in ('report.html.j2', 'report.md.j2'):
        assert 'Unfinished: 13 of 19 cells' in page.render(template, study, [], {})
    finished = runs.load([made(tmp_path, name='finished')])
    assert 'Unfinished' not in page.render('report.md.j2', finished, [], {})


def test_both_forms_say_the_same(written):
    directory, out, _ = written
    _, sections = contents(directory)
    page_text = html.unescape(re.sub(r'<[^>]*>', '', (out / 'report.html').read_text()))
    plain = re.sub(r'\\(.)', r'\1', (out / 'report.md').read_text())
    said = 0
    for title, blocks in sections.items():
        texts = [title]
        for block in blocks:
            if block.kind == 'table':
                texts += [cell for row in block.rows for cell in row]
            elif block.kind == 'bullets':
                texts += block.items
            elif block.kind == 'text':
                texts.append(block.text)
            elif block.kind == 'listing':
                texts.append(block.text)
            else:
                texts.append(block.caption)
        for text in texts:
            assert text in page_text
            assert text in plain
        said += len(texts)
    assert said > 200


def test_the_page_needs_nothing_else(written):
    text = (written[1] / 'report.html').read_text()
    assert not re.search(r'(src|href)="(?!#|data:image/png)', text)
    names = re.findall(r'\bid="([^"]*)"', text)
    assert len(names) == len(set(names)) > 100
    for used in re.findall(r'(?:url\(|href=")#([^")]*)', text):
        assert used in names
    assert 'currentColor' in text and '#010203' not in text
    assert 'prefers-color-scheme: dark' in text and 'width=device-width' in text
    assert text.count('<svg') == text.count('role="img"') == 4


def test_names_are_escaped(written):
    assert '<title>&lt;b&gt;|text, lenet300' in (written[1] / 'report.html').read_text()
    markdown = (written[1] / 'report.md').read_text()
    assert markdown.startswith('# \\<b\\>\\|text, lenet300')
    for table in re.findall(r'(?:^\|.*\n)+', markdown, re.MULTILINE):
        columns = {len(re.findall(r'(?<!\\)\|', line)) for line in table.splitlines()}
        assert len(columns) == 1, table


def test_pictures_of_the_markdown_lie_beside_it_on_white(written):
    _, out, files = written
    named = re.findall(r'!\[[^\]]*\]\(([^)]*)\)', (out / 'report.md').read_text())
    assert named == ['accuracy.png', 'bits.png', 'differences.png', 'layers.png']
    assert {path.name for path in files} == {'report.html', 'report.md', *named}
    for name in named:
        pixels = matplotlib.image.imread(out / name)
        assert (pixels[0, 0] == 1).all() and pixels.min() < 0.1


def test_the_same_input_gives_the_same_bytes(written, tmp_path):
    directory, _, files = written
    for path in report.write([directory], tmp_path):
        [before] = [file for file in files if file.name == path.name]
        assert path.read_bytes() == before.read_bytes()


def test_provenance_names_every_run(tmp_path):
    one = made(tmp_path, {'lr_rewind': LR_REWIND}, name='a')
    later = {'devices': '4 x gpu', 'python': '3.11', 'versions': {'jax': '0.12'}}
    about = study_runs.about() | {'devices': '8 x gpu', 'continued': [later]}
    other = made(tmp_path, {'fine_tune': FINE_TUNE}, name='b', about=about)
    sections = page.contents(runs.load([one, other]), None, None, False)
    table, *_, first, second = sections[-1].blocks
    rows = dict(table.rows)
    assert rows['hardware, a'] == '1 x cpu' and rows['hardware, b'] == '8 x gpu, then 4 x gpu'
    assert rows['versions, a'] == 'jax 0.10.2, numpy 2.0.0'
    assert rows['versions, b'] == 'jax 0.10.2, numpy 2.0.0, then jax 0.12'
    assert rows['validation examples'] == '20, sha256 bb'
    assert rows['seeds/replicates'] == '0/0, 0/1, 0/2'
    assert (first.title, second.title) == ('config.json of a', 'config.json of b')
    assert json.loads(second.text)['retrain']['techniques'] == ['fine_tune']


def test_the_command(tmp_path, capsys):
    directory = made(tmp_path, {'lr_rewind': [(0.9, 0.8)]}, dense=(0.9, 0.9))
    assert command.main([str(directory), f'--out={tmp_path / "out"}']) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / 'out' / 'report.html')
    assert command.main([str(directory), f'--out={tmp_path / "no"}', '--baseline=foo']) == 2
    assert capsys.readouterr().err.startswith("BadInput: no technique 'foo'")
    assert command.main([str(directory), '--out=no', '--reference_mode=oneshot']) == 2
    assert 'give it as --reference=FILE' in capsys.readouterr().err
    assert not (tmp_path / 'no').exists()


def test_the_module_runs(tmp_path):
    argv = [sys.executable, '-m', 'train.report', str(tmp_path / 'none'), f'--out={tmp_path}']
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, '')
    assert 'none is no directory, expected the workdir of a run' in done.stderr
