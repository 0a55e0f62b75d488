"""Find the records behind a table's row, and the commands that made them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from attngrid.analysis.frames import collect, read_frame
from attngrid.core.errors import ConfigError, RecordError
from attngrid.records.record import Record, read_record
from attngrid.records.sources import kept_files
from attngrid.render.claims import claims_table
from attngrid.render.layout import Row, Table
from attngrid.render.tables import build_table
from attngrid.study.cell import Cell
from attngrid.study.paths import results_folder
from attngrid.study.schema import Study, find_study_file, load_study

_KEY = re.compile(r"(?:.*/)?([^/:]+)\.(?:tex|md|csv):(.+)")


def trace(key: str) -> tuple[Study, Path, Table, Row, list[Cell]]:
    """Find a row of a study's table.

    Args:
        key: ``tables/demo.csm_table3.tex:ROW``. ROW is the row's label or its number from 1.

    Returns:
        The study, its file, the table, the row, and the cells of its measured figures.

    Raises:
        ConfigError: no such table, study or row; the message lists the known ones.
    """
    stem, label = _split(key)
    study_name, _, name = stem.partition(".")
    if not name:
        raise ConfigError(f"{key}: names no study; expected tables/STUDY.{stem}.tex:ROW")
    collected = results_folder() / study_name / "study.json"
    file = collected if collected.is_file() else find_study_file(study_name)
    study = load_study(file)
    if name not in study.descriptions:
        known = ", ".join(study.descriptions)
        raise ConfigError(
            f"{key}: found table {name!r}; study {study.study} has the tables {known}"
        )
    results = collect(study)
    table = build_table(study, results.summary, study.descriptions[name], cells=results.cells)
    rows = _find_rows(key, table, label)
    cells = {
        cell.id: cell
        for cell, line in zip(study.cells, results.cells.to_dict("records"), strict=True)
        for row in rows
        if (cell.backbone, cell.attention) == row.model
        and row.condition in (None, line["condition"])
    }
    return study, file, table, rows[0], [*cells.values()]


def _split(key: str) -> tuple[str, str]:
    match = _KEY.fullmatch(key)
    if match is None:
        raise ConfigError(f"{key}: expected tables/STUDY.TABLE.tex:ROW, ROW a label or a number")
    return match[1], match[2].strip()


def _find_rows(key: str, table: Table, label: str) -> list[Row]:
    """Find the rows with a label, or the row with a number from 1."""
    if label.isdigit() and 1 <= int(label) <= len(table.rows):
        return [table.rows[int(label) - 1]]
    wanted = label.lower()
    # a label is found without the name of the same module, "+ CAM (= SE)", too
    labels = [(row, row.label.lower()) for row in table.rows]
    rows = [row for row, own in labels if wanted in (own, own.partition(" (= ")[0])]
    if not rows:
        known = ", ".join(dict.fromkeys(row.label for row in table.rows))
        raise ConfigError(
            f"{key}: found row {label!r}, expected 1 to {len(table.rows)} or a label: {known}"
        )
    return rows


def explain(key: str) -> Iterator[str]:
    """Yield lines that lead from a table's row to its records and their commands.

    Raises:
        ConfigError: as ``trace``.
    """
    stem, label = _split(key)
    if stem.rpartition(".")[2] == "claims":
        yield from _explain_claim(key, stem, label)
        return
    _, file, table, row, cells = trace(key)
    yield f"tables/{table.stem}.tex: {row.label}"
    for head, value in zip(table.heads, row.values, strict=True):
        yield f"  {head.group}, {head.title}: {value.text}"
    yield from (f"from {source}" for source in table.provenance if source.endswith(".csv"))
    for cell in cells:
        yield f"{cell.label}: {cell.condition}"
        if not cell.record.is_file():
            yield f"  not run: there is no {cell.record}"
        else:
            try:
                yield from _explain_record(cell.record, read_record(cell.record, cell))
            except RecordError as error:
                yield f"  refused: {error}"
        yield f"  made by: attngrid train {file} {cell.id}"


def _explain_claim(key: str, stem: str, label: str) -> Iterator[str]:
    study = stem.removesuffix("claims").removesuffix(".")
    file = results_folder() / study / "claims.csv"
    if not file.is_file():
        raise ConfigError(f"{key}: there is no {file}; `attngrid claims` writes it")
    results = read_frame(file)
    for row in _find_rows(key, claims_table(results, study), label):
        lines = results[results["claim"].isin(row.claims)]
        if row.condition is not None:
            lines = lines[lines["condition"] == row.condition]
        for line in lines.to_dict("records"):
            yield f"{line['claim']}: {line['verdict']}"
            for name, value in line.items():
                if name not in ("claim", "verdict", "records") and value == value and value != "":
                    yield f"  {name}: {value}"
            for id in str(line["records"]).split():
                for record in sorted(results_folder().glob(f"*/records/{id}.json")):
                    yield from _explain_record(record, read_record(record))


def _explain_record(file: Path, record: Record) -> Iterator[str]:
    run, metrics = record.run, record.metrics
    yield f"  {file}"
    best = f"{metrics.best_top1_error:.2f} % in epoch {metrics.best_epoch}"
    yield (
        f"    top-1 error {metrics.top1_error:.2f} %, top-5 error {metrics.top5_error:.2f} %, "
        f"best {best} of {len(metrics.curve)}"
    )
    yield f"    configuration {record.config['digest']}"
    for role, kept in kept_files(file.parents[1], record.config).items():
        yield f"    {role} {record.config[role]}, {'kept in' if kept.is_file() else 'no'} {kept}"
    yield (
        f"    commit {run.get('commit')}, torch {run.get('torch')}, {run.get('device_name')}, "
        f"{run.get('started')}, {run.get('wall_s', 0):.0f} s"
    )
