import builtins
import sys

import jax.numpy as jnp
import pytest

import jaxprune as jp
from jaxprune import plots, report


def example():
    params = {'kernel': jnp.ones((4, 5)), 'bias': jnp.ones(5), 'empty': None}
    masks = {'kernel': jnp.arange(20).reshape(4, 5) < 3, 'bias': None, 'empty': None}
    return params, masks


def test_records_by_hand():
    bias, kernel = report.records(*example())
    assert bias == ('bias', (5,), 5, 0, 5)
    assert kernel == ('kernel', (4, 5), 20, 20, 3)
    assert (bias.density, bias.compression) == (None, 1.0)
    assert (kernel.density, kernel.compression) == (3 / 20, 20 / 3)
    total = report.total([bias, kernel])
    assert total == ('total', None, 25, 20, 8)
    assert (total.density, total.compression) == (3 / 20, 25 / 8)


def test_density_agrees_with_the_masks():
    params, masks = example()
    assert report.total(report.records(params, masks)).density == jp.masks.density(masks)


def test_nothing_kept_is_infinite_compression():
    params, masks = {'k': jnp.ones((2, 2))}, {'k': jnp.zeros((2, 2), bool)}
    [record] = report.records(params, masks)
    assert (record.density, record.compression) == (0.0, float('inf'))


def test_table_has_a_line_a_leaf_and_the_total():
    lines = report.table(report.records(*example())).splitlines()
    assert lines[0].split() == ['leaf', 'shape', 'parameters', 'kept', 'density', 'compression']
    assert lines[-1].split() == ['total', '25', '8', '0.1500', '3.12']
    assert any(
        line.split() == ['kernel', '4', '×', '5', '20', '3', '0.1500', '6.67'] for line in lines
    )


def test_long_paths_are_folded_and_not_cut():
    path = '/'.join(f'block_{n}' for n in range(20)) + '/kernel'
    drawn = report.table([report.Record(path, (3, 1000), 3000, 3000, 1500)], width=80)
    assert max(map(len, drawn.splitlines())) <= 80
    assert path in ''.join(line.split()[0] for line in drawn.splitlines()[2:])


def test_table_is_plain_text_in_a_notebook_too(monkeypatch):
    class ZMQInteractiveShell:  # by this name, rich knows a notebook
        pass

    expected = report.table(report.records(*example()))
    monkeypatch.setattr(builtins, 'get_ipython', ZMQInteractiveShell, raising=False)
    monkeypatch.setenv('FORCE_COLOR', '1')
    assert report.table(report.records(*example())) == expected


def test_masks_unlike_the_parameters_are_an_error():
    with pytest.raises(ValueError, match="masks have no leaf 'bias'"):
        report.records({'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}, {'kernel': None})


@pytest.fixture
def nothing_optional(monkeypatch):
    def refuse(name, *args, real=builtins.__import__, **kwargs):
        if name.split('.')[0] in ('rich', 'matplotlib'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in list(sys.modules):
        if name.split('.')[0] in ('rich', 'matplotlib'):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, '__import__', refuse)


@pytest.mark.usefixtures('nothing_optional')
def test_a_missing_library_names_the_extra():
    with pytest.raises(ImportError, match=r'jaxprune\[report\]'):
        report.table(report.records(*example()))
    with pytest.raises(ImportError, match=r'jaxprune\[report\]'):
        plots.accuracy_curve([{}])


def rows():
    for replicate in (0, 1):
        yield {'technique': 'dense', 'level': 0, 'compression': 1.0, 'test_accuracy': 0.9}
        for level in (1, 2):
            accuracy = 0.9 - 0.1 * level - 0.02 * replicate
            yield {
                'technique': 'lr_rewind',
                'level': level,
                'compression': 2.0**level,
                'test_accuracy': accuracy,
            }


def test_curve_draws_medians_bands_and_the_dense_line():
    axes = plots.accuracy_curve(list(rows())).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {'dense', 'lr_rewind'}
    assert list(lines['lr_rewind'].get_xdata()) == [2, 4]
    assert list(lines['lr_rewind'].get_ydata()) == pytest.approx([0.79, 0.69])
    low, high = axes.collections[0].get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == pytest.approx((0.68, 0.8))


def test_rows_as_read_from_a_file():
    text = [{name: str(value) for name, value in row.items()} for row in rows()]
    curves = [plots.accuracy_curve(each).axes[0].lines for each in (list(rows()), text)]
    for a, b in zip(*curves, strict=True):
        assert list(a.get_ydata()) == list(b.get_ydata())


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match='no rows'):
        plots.accuracy_curve([])


def test_names_of_the_legend_and_the_scale_of_bits():
    bits = [row | {'test_bits': 3 * row['test_accuracy']} for row in rows()]
    names = {'lr_rewind': 'learning-rate rewinding'}
    axes = plots.accuracy_curve(bits, accuracy='test_bits', names=names).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines['learning-rate rewinding'].get_ydata()) == pytest.approx([2.37, 2.07])
    assert (axes.get_ylabel(), lines['dense'].get_ydata()[0]) == ('test bits', 2.7)


def test_many_techniques_look_different_and_have_their_legend_below():
    named = [row | {'technique': f't{n}'} for n in range(18) for row in rows() if row['level']]
    figure = plots.accuracy_curve(named)
    styles = {
        (line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines
    }
    assert len(styles) == 18
    assert len(figure.legends[0].get_texts()) == 18 and figure.axes[0].get_legend() is None
