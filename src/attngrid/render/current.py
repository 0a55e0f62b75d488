"""A study's tables, figures and report, one by one or all at once from whatever records exist."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from attngrid.analysis import frames
from attngrid.analysis.dependencies import has_statistics
from attngrid.core.errors import AttngridError, UnknownNameError
from attngrid.render.layout import Table, write_table
from attngrid.render.report import write_report
from attngrid.render.tables import build_table
from attngrid.render.verdicts import study_claims, write_verdicts
from attngrid.study.schema import Study

T = TypeVar("T")
log = logging.getLogger(__name__)


def write_tables(study: Study, names: Sequence[str] = ()) -> None:
    """Write the tables of these names, or all; the others are written even if one fails.

    Raises:
        UnknownNameError: before anything is written.
        AttngridError: a line for each table that failed.
    """
    files = study.descriptions
    results = frames.load_results(study.study)
    wanted = [files[name] for name in _known(study, "table", names, files)]
    _raise(_each(wanted, lambda file: _write_table(study, results, file))[1])


def write_figures(study: Study, names: Sequence[str] = ()) -> None:
    """Draw the figures of these names, or all; raises as ``write_tables``."""
    wanted = _known(study, "figure", names, study.figures)
    _raise(_draw(study, frames.load_results(study.study), wanted)[1])


def write_page(study: Study) -> None:
    """Write the report from the collected frames and the figures that are drawn."""
    results = frames.load_results(study.study)
    files = study.descriptions.values()
    tables = [build_table(study, results.summary, file, cells=results.cells) for file in files]
    write_report(study, results, tables, study_claims(study))


def render_current(study: Study, ended: bool) -> None:
    """Collect the records that exist; write tables, verdicts, figures and report.

    Args:
        study: the configuration.
        ended: whether no cell of the study runs any more.

    Raises:
        AttngridError: a line for each file that could not be made; all others are written.
    """
    frames.write_results(study, frames.collect(study, ended=ended))
    results = frames.load_results(study.study)  # the same frames as every other command
    files = study.descriptions.values()
    tables, failed = _each(files, lambda file: _write_table(study, results, file))
    if has_statistics():
        failed += _each([study], write_verdicts)[1]
    else:
        log.warning('no verdicts and no bold: pip install "attngrid[evidence]"')
    drawn, not_drawn = _draw(study, results, study.figures)
    claims = study_claims(study)
    page = _each([tables], lambda ready: write_report(study, results, ready, claims, drawn))
    log.info("%s: %s", study.study, frames.counts(results.cells))
    if results.trials is not None:
        log.info("%s, trials: %s", study.study, frames.counts(results.trials))
    for line in frames.unfinished(results):
        log.info("  %s", line)
    _raise([*failed, *not_drawn, *page[1]])


def _write_table(study: Study, results: frames.Results, description: Path) -> Table:
    table = build_table(study, results.summary, description, cells=results.cells)
    write_table(table)
    return table


def _draw(
    study: Study, results: frames.Results, names: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The figures that were drawn, and the messages of those that failed."""

    def draw(name: str) -> str:
        from attngrid.render.figures import write_figure  # matplotlib takes a second to import

        write_figure(study, name, results)
        return name

    return _each(names, draw)


def _known(study: Study, kind: str, names: Sequence[str], known: Iterable[str]) -> Sequence[str]:
    for name in names:
        if name not in known:
            raise UnknownNameError(f"{kind} of study {study.study}", name, known)
    return names or list(known)


def _each(items: Iterable[object], make: Callable[..., T]) -> tuple[list[T], list[str]]:
    """What is made of the items, and the messages of those that fail."""
    made, failed = [], []
    for item in items:
        try:
            made.append(make(item))
        except AttngridError as error:
            failed.append(str(error))
    return made, failed


def _raise(failed: list[str]) -> None:
    if failed:
        raise AttngridError("\n".join(failed))
