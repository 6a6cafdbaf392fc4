"""Writes a report: the same sections as a page of HTML, and as Markdown with its pictures."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import jinja2

from train.errors import BadInput
from train.report import described, figures, measured, reference, runs, sentences
from train.report.blocks import Drawing, Section
from train.report.figures import Picture
from train.report.names import ACCURACY, BITS
from train.report.runs import Study
from train.report.statistics import compare
from train.results import write_whole


def write(
    directories: Sequence[Path | str],
    out: Path | str,
    *,
    reference_file: Path | str | None = None,
    reference_select: Mapping[str, str | None] | None = None,
    baseline: str | None = None,
    require_intervals: bool = False,
) -> list[Path]:
    """Writes `report.html`, `report.md` and its pictures.

    Args:
      directories: workdirs of runs of one study: other techniques or other seeds, all else alike.
      out: where to; made if it is not there. It may be the workdir of a run.
      reference_file: a CSV whose curves are drawn beside ours; see `train.report.reference`.
      reference_select: which of its rows: values of network, dataset, mode, prune_method,
        retrain_time, each needed where the file has several.
      baseline: the technique that the others are compared with; by default fine-tuning, or the
        last one.
      require_intervals: refuses runs with fewer than two replicates, instead of deciding nothing.

    Returns:
      The files, the same bytes for the same input.

    Raises:
      BadInput: a run is half-written, the runs cannot be compared, there is no such technique, or
        the reference is not usable; nothing was written.
    """
    study = runs.load([Path(directory) for directory in directories])
    theirs = None
    if reference_file is not None:
        theirs = reference.load(Path(reference_file), reference_select or {})
    sections = contents(study, theirs, baseline, require_intervals)
    pictures = draw(sections)
    files = {f'{name}.png': picture.png for name, picture in pictures.items()}
    for template in ('report.md.j2', 'report.html.j2'):
        text = render(template, study, sections, pictures)
        files[template.removesuffix('.j2')] = text.encode()
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f'cannot write to {out}: {error}') from error
    for name, content in files.items():
        write_whole(Path(out) / name, content)
    return [Path(out) / name for name in reversed(files)]


def draw(sections: Sequence[Section]) -> dict[str, Picture]:
    """Draws the pictures of all sections, by their names."""
    drawings = [block for section in sections for block in section.blocks]
    return {
        block.name: figures.draw(block.name, block.alt, block.figure)
        for block in drawings
        if isinstance(block, Drawing)
    }


def contents(
    study: Study,
    theirs: reference.Reference | None,
    baseline: str | None,
    require_intervals: bool,
) -> list[Section]:
    """Makes the sections of a report; the arguments are those of `write`, read."""
    metric = BITS if study.is_text else ACCURACY
    baseline = sentences.choose_baseline(study.techniques, baseline)
    compared = {
        (one, other): compare(study.results, one, other, f'test_{metric.column}')
        for one, other in sentences.pairs(study.techniques, baseline)
    }
    if require_intervals:
        sentences.require_intervals(study, compared)
    sections = [
        measured.found(study, compared, metric),
        measured.curves(study),
        measured.headline(study),
        measured.differences(study, compared, baseline, metric),
        None if theirs is None else measured.beside(study, theirs),
        measured.levels(study),
        described.cost(study),
        described.layers(study),
        described.reading(study),
        described.provenance(study),
    ]
    return [section for section in sections if section is not None]


def render(
    template: str, study: Study, sections: Sequence[Section], pictures: Mapping[str, Picture]
) -> str:
    """Fills a template of this package.

    Args:
      template: its name; `.html` in it escapes what HTML would take for markup.
      study: the runs.
      sections: of `contents`.
      pictures: of `draw`.

    Returns:
      The text.
    """
    environment = jinja2.Environment(
        autoescape='.html' in template,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters['markdown'] = _markdown
    source = resources.files(__package__).joinpath(template).read_text()
    data, model = study.about['dataset'], study.about['model']
    return environment.from_string(source).render(
        title=f'{data["name"]}, {model["name"]}: pruned and retrained',
        subtitle=_subtitle(study),
        status=described.status(study),
        sections=sections,
        pictures=pictures,
    )


def _subtitle(study: Study) -> str:
    replicates = study.results.unit.nunique()
    names = len(study.techniques)
    levels = study.results.level.max()
    return ', '.join(
        (
            sentences.count(names, 'technique', 'techniques'),
            sentences.count(replicates, 'replicate', 'replicates'),
            sentences.count(levels, 'level', 'levels'),
        )
    )


def _markdown(text: str) -> str:
    """Escapes what Markdown would take for markup."""
    return re.sub(r'([\\`*_|<>\[\]])', r'\\\1', text)
