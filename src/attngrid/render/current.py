"""A study's tables, figures and report, one by one or all at once from whatever records exist."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from attngrid.analysis import frames
from attngrid.analysis.optional import can_test
from attngrid.core.errors import AttngridError, ConfigError, UnknownNameError
from attngrid.render.report import write_report
from attngrid.render.tables import Table, build_table, write_table
from attngrid.render.verdicts import study_claims, write_verdicts
from attngrid.study.schema import Study

REFERENCE = Path("reference")
T = TypeVar("T")
log = logging.getLogger(__name__)


def write_tables(study: Study, source: Path, names: Sequence[str] = ()) -> None:
    """Write the tables of these names, or all; one that fails does not keep back the others.

    Raises:
        ConfigError: an unknown name; the message begins with ``source``, the configuration.
        AttngridError: a line for each table that failed.
    """
    names = _known(source, "table", names, study.descriptions)
    results = frames.load_results(study.study)
    _, failed = _each(names, lambda name: _write_table(study, results, study.descriptions[name]))
    _raise(failed)


def write_figures(study: Study, source: Path, names: Sequence[str] = ()) -> None:
    """Draw the figures of these names, or all; raises as ``write_tables``."""
    names = _known(source, "figure", names, study.figures)
    results = frames.load_results(study.study)
    _raise(_draw(study, results, names)[1])


def write_page(study: Study) -> None:
    """Write the report from the collected frames and the figures that are drawn."""
    results = frames.load_results(study.study)
    tables = [
        build_table(study, results.summary, file, cells=results.cells)
        for file in study.descriptions.values()
    ]
    write_report(study, results, tables, study_claims(study))


def render_current(study: Study, ended: bool) -> None:
    """Collect the records that exist; write tables, verdicts, figures and report.

    Args:
        study: the configuration.
        ended: whether no cell of the study runs any more.

    Raises:
        AttngridError: a line for each file that could not be made; all others are written.
    """
    frames.write_results(study, frames.collect(study, trained_by_now=ended))
    results = frames.load_results(study.study)  # what everybody else reads
    tables, failed = _each(
        study.descriptions.values(), lambda file: _write_table(study, results, file)
    )
    if can_test():
        failed += _each([study], write_verdicts)[1]
    else:
        log.warning('no verdicts and no bold: pip install "attngrid[evidence]"')
    drawn, not_drawn = _draw(study, results, study.figures) if study.figures else ([], [])
    failed += not_drawn
    failed += _each(
        [tables], lambda ready: write_report(study, results, ready, study_claims(study), drawn)
    )[1]
    log.info("%s: %s", study.study, frames.counts(results.cells))
    if results.trials is not None:
        log.info("%s, trials: %s", study.study, frames.counts(results.trials))
    for line in frames.unfinished(results):
        log.info("  %s", line)
    _raise(failed)


def _write_table(study: Study, results: frames.Results, description: Path) -> Table:
    table = build_table(study, results.summary, description, cells=results.cells)
    write_table(table)
    return table


def _draw(
    study: Study, results: frames.Results, names: Iterable[str]
) -> tuple[list[str], list[str]]:
    """The names of the figures that were drawn, and messages of those that were not."""
    from attngrid.render.figures import write_figure  # matplotlib takes a second to import

    def draw(name: str) -> str:
        write_figure(study, name, results, REFERENCE)
        return name

    return _each(names, draw)


def _known(source: Path, kind: str, names: Sequence[str], known: Iterable[str]) -> Sequence[str]:
    for name in names:
        if name not in known:
            raise ConfigError(f"{source}: {kind}s: {UnknownNameError(kind, name, known)}")
    return names or list(known)


def _each(items: Iterable[object], make: Callable[..., T]) -> tuple[list[T], list[str]]:
    """What is made of each item, and the messages of the errors on the way."""
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
