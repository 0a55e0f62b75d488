"""From a table back to its records: provenance and `explain`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from attngrid.analysis.frames import collect, write_results
from attngrid.cli.main import main
from attngrid.core.validation import validate
from attngrid.render.layout import write_table
from attngrid.render.tables import build_table
from attngrid.study.schema import Study
from conftest import environment
from made_up import ROOT, enter_study, fake_record


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return enter_study(tiny, tmp_path, monkeypatch)


def test_a_table_names_the_records_behind_it(study: Study) -> None:
    fake_record(study.cells[0], 20.0)
    results = collect(study)
    file = ROOT / "workflow/tables/csm_table1.yaml"
    table = build_table(study, results.summary, file, cells=results.cells)
    write_table(table)
    comment = Path("tables/tiny.csm_table1.tex").read_text("utf-8").rpartition("\\endgroup")[2]
    assert all(line.startswith("%") for line in comment.strip().splitlines())
    assert "reference/csm_table1.csv" in comment
    assert f"configuration {study.digest[:12]}, 1 records:" in comment
    assert study.cells[0].id in comment
    assert study.cells[1].id not in comment


def test_a_configurations_digest_omits_defaults(tiny: dict[str, Any]) -> None:
    first = validate(Study, tiny, "t").digest
    assert validate(Study, tiny | {"data": {"download": False}}, "t").digest == first
    assert validate(Study, tiny | {"data": {"download": True}}, "t").digest != first


def test_a_table_without_records_says_so(study: Study) -> None:
    results = collect(study)
    file = ROOT / "workflow/tables/csm_table1.yaml"
    table = build_table(study, results.summary, file, cells=results.cells)
    assert table.provenance[-1] == "no record: nothing of it was measured"


def test_explain_prints_the_chain_to_the_command(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    none = [cell for cell in study.cells if cell.attention == "none"]
    fake_record(none[0], 20.0)
    assert main(["explain", "tables/tiny.csm_table3.tex:resnet-18"]) == 0
    printed = capsys.readouterr().out
    assert "Accuracy: 80.00" in printed
    assert str(none[0].record) in printed
    assert none[0].digest in printed
    assert "top-1 error 20.00 %" in printed
    assert f"not run: there is no {none[1].record}" in printed
    assert f"attngrid train config/tiny.yaml {none[0].id}" in printed
    assert main(["explain", "tables/tiny.csm_table3.tex:1"]) == 0
    assert capsys.readouterr().out == printed


def test_a_closed_pipe_is_not_a_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        ["attngrid", "schema"], stdout=write, stderr=subprocess.PIPE, env=environment(), timeout=60
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_explain_names_a_record_that_was_edited(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = study.cells[0]
    fake_record(cell, 20.0)
    cell.record.write_text(cell.record.read_text().replace('"seed": 0', '"seed": 7'))
    assert main(["explain", "tables/tiny.grid.md:ResNet-18"]) == 0
    assert f"refused: {cell.record}: config: is not that of this cell" in capsys.readouterr().out


def test_explain_a_claim(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(study, collect(study))
    assert main(["claims"]) == 0
    row = "ResNet-50: CSM over baseline, parameters"
    assert main(["explain", f"tables/claims.tex:{row}"]) == 0
    printed = capsys.readouterr().out
    assert "csm_lightweight/resnet50/params: contradicted" in printed
    assert "counted: 88491992 25557032" in printed


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("tables/tiny.csm_table3.tex", "expected tables/STUDY.TABLE.tex:ROW"),
        (
            "tables/tiny.csm_table3.tex:ResNet-99",
            "found row 'ResNet-99', expected 1 to 8 or a label: ResNet-18",
        ),
        ("tables/tiny.csm_table9.tex:1", "study tiny has the tables cbam_table4"),
        ("tables/tinny.csm_table3.tex:1", "unknown study 'tinny': did you mean tiny"),
        ("tables/csm_table3.tex:1", "names no study; expected tables/STUDY.csm_table3.tex:ROW"),
        ("tables/claims.tex:1", "`attngrid claims` writes it"),
    ],
)
def test_an_unknown_row_table_or_study_is_named(
    study: Study, capsys: pytest.CaptureFixture[str], key: str, expected: str
) -> None:
    assert main(["explain", key]) == 1
    assert expected in capsys.readouterr().err
