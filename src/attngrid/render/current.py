"""Write a study's tables, figures and report, from the records that exist."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from attngrid.analysis import frames
from attngrid.analysis.dependencies import has_statistics
from attngrid.analysis.frames import Results, load_results
from attngrid.core.errors import AttngridError, UnknownNameError
from attngrid.render.layout import Table, write_table
from attngrid.render.report import write_report
from attngrid.render.tables import build_table
from attngrid.render.verdicts import study_claims, write_verdicts
from attngrid.study.schema import Study

log = logging.getLogger(__name__)


def write_tables(study: Study, names: Iterable[str] = ()) -> None:
    """Write the tables of these names, or all; if one fails, the others are still written.

    Raises:
        UnknownNameError: a name is unknown; nothing is written.
        AttngridError: tables failed; one line for each.
    """
    names = _checked_names(f"table of study {study.study}", names, study.descriptions)
    failed: list[str] = []
    _write_tables(study, load_results(study.study), names, failed)
    _raise_errors(failed)


def write_figures(study: Study, names: Iterable[str] = ()) -> None:
    """Draw the figures of these names, or all; raises as ``write_tables``."""
    names = _checked_names(f"figure of study {study.study}", names, study.figures)
    failed: list[str] = []
    _write_figures(study, load_results(study.study), names, failed)
    _raise_errors(failed)


def write_page(study: Study) -> None:
    """Write the report from the collected frames and the figures that are drawn."""
    results = load_results(study.study)
    files = study.descriptions.values()
    tables = [build_table(study, results.summary, file, cells=results.cells) for file in files]
    write_report(study, results, tables, study_claims(study), study.figures)


def render_current(study: Study, ended: bool) -> None:
    """Collect the records that exist; write tables, verdicts, figures and report.

    ``ended`` says that no cell of the study runs any more.

    Raises:
        AttngridError: files failed; one line for each. All others are written.
    """
    frames.write_results(study, frames.collect(study, ended=ended))
    results = load_results(study.study)  # read back, so that every command uses the same frames
    failed: list[str] = []
    tables = _write_tables(study, results, study.descriptions, failed)
    if has_statistics():
        with _collect_errors(failed):
            write_verdicts(study)
    else:
        log.warning('no verdicts and no bold: pip install "attngrid[evidence]"')
    figures = _write_figures(study, results, study.figures, failed)
    if find_spec("snakemake"):
        with _collect_errors(failed):
            write_report(study, results, tables, study_claims(study), figures)
    else:
        log.warning('no report, whose charts come with Snakemake: pip install "attngrid[workflow]"')
    log.info("%s: %s", study.study, frames.counts(results.cells))
    if results.trials is not None:
        log.info("%s, trials: %s", study.study, frames.counts(results.trials))
    for line in frames.unfinished(results):
        log.info("  %s", line)
    _raise_errors(failed)


def _write_tables(
    study: Study, results: Results, names: Iterable[str], failed: list[str]
) -> list[Table]:
    """Write and return tables; add the messages of those that fail to ``failed``."""
    tables = []
    for name in names:
        with _collect_errors(failed):
            file = study.descriptions[name]
            table = build_table(study, results.summary, file, cells=results.cells)
            write_table(table)
            tables.append(table)
    return tables


def _write_figures(
    study: Study, results: Results, names: Iterable[str], failed: list[str]
) -> list[str]:
    """Draw figures; return their names, and add the messages of the others to ``failed``."""
    drawn = []
    for name in names:
        with _collect_errors(failed):
            from attngrid.render.figures import write_figure  # matplotlib takes a second to import

            write_figure(study, name, results)
            drawn.append(name)
    return drawn


def _checked_names(kind: str, names: Iterable[str], known: Iterable[str]) -> Iterable[str]:
    for name in names:
        if name not in known:
            raise UnknownNameError(kind, name, known)
    return names or known


@contextmanager
def _collect_errors(failed: list[str]) -> Iterator[None]:
    try:
        yield
    except AttngridError as error:
        failed.append(str(error))


def _raise_errors(failed: list[str]) -> None:
    if failed:
        raise AttngridError("\n".join(failed))
