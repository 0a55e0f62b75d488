"""From a table back to its records: provenance, `explain`, `replicate` and `export`."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scipy import stats

from attngrid.analysis.frames import collect, write_results
from attngrid.analysis.replication import compare
from attngrid.cli.main import main
from attngrid.core.validation import validate
from attngrid.render.tables import build_table, write_table
from attngrid.study.schema import Study
from attngrid.training.run import run_cell
from conftest import environment
from test_evidence import fake_record

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    for folder in ("reference", "workflow"):
        Path(folder).symlink_to(ROOT / folder)
    Path("results").mkdir()
    shutil.copy(ROOT / "results/complexity.csv", "results")
    Path("config").mkdir()
    Path("config/tiny.yaml").write_text(json.dumps(tiny))
    return validate(Study, tiny, "tiny.yaml")


def test_a_table_names_the_records_behind_it(study: Study) -> None:
    fake_record(study.cells[0], 20.0)
    results = collect(study)
    file = ROOT / "workflow/tables/csm_table1.yaml"
    table = build_table(study, results.summary, file, cells=results.cells)
    write_table(table)
    comment = Path("tables/tiny.csm_table1.tex").read_text("utf-8").partition(r"\end{table}")[2]
    assert all(line.startswith("%") for line in comment.strip().splitlines())
    assert "reference/csm_table1.csv" in comment
    assert f"configuration {study.digest[:12]}, 1 records:" in comment
    assert study.cells[0].id in comment
    assert study.cells[1].id not in comment


def test_a_configurations_digest_has_no_defaults_in_it(tiny: dict[str, Any]) -> None:
    first = validate(Study, tiny, "t").digest
    assert validate(Study, tiny | {"data": {"download": False}}, "t").digest == first
    assert validate(Study, tiny | {"data": {"download": True}}, "t").digest != first


def test_a_table_of_nothing_measured_says_so(study: Study) -> None:
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


def test_a_reader_that_ends_first_is_no_traceback() -> None:
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
        ("tables/tiny.csm_table3.tex:ResNet-99", "found no row 'ResNet-99' in 1 to 8 or ResNet-18"),
        ("tables/tiny.csm_table9.tex:1", "study tiny has the tables cbam_table4"),
        ("tables/tinny.csm_table3.tex:1", "found no study 'tinny'"),
        ("tables/csm_table3.tex:1", "of which study? found no tables/STUDY.csm_table3.tex"),
        ("tables/claims.tex:1", "`attngrid claims` makes it"),
    ],
)
def test_a_row_that_is_not_there_is_named(
    study: Study, capsys: pytest.CaptureFixture[str], key: str, expected: str
) -> None:
    assert main(["explain", key]) == 1
    assert expected in capsys.readouterr().err


# Replication.


def test_consistent_is_within_the_prediction_interval(study: Study, tmp_path: Path) -> None:
    """Three records of deviation s, one new: t(0.975, 2) · s · √(1/3 + 1)."""
    none = [cell for cell in study.cells if cell.attention == "none"]
    committed = [20.0, 20.4]
    for cell, error in zip(none, committed, strict=True):
        fake_record(cell, error)
    limit = stats.t.ppf(0.975, 1) * statistics.stdev(committed) * math.sqrt(1 / 2 + 1)
    for error, consistent in ((20.2 + 0.99 * limit, True), (20.2 + 1.01 * limit, False)):
        again = tmp_path / f"{consistent}"
        records = again / "results/tiny/records"
        records.mkdir(parents=True)
        content = none[0].record.read_text().replace("20.0", str(error))
        content = content.replace("10.0", str(error / 2))
        (records / none[0].record.name).write_text(content)
        found = compare(none, none[:1], again)
        assert found.limit == pytest.approx(limit)
        assert found.consistent == consistent
        assert found.identical == 0


def test_the_same_bits_are_consistent_whatever_their_deviation(
    study: Study, tmp_path: Path
) -> None:
    none = [cell for cell in study.cells if cell.attention == "none"]
    fake_record(none[0], 20.0)
    shutil.copytree("results", tmp_path / "again/results")
    found = compare(none, none[:1], tmp_path / "again")
    assert (found.identical, found.consistent, found.difference) == (1, True, 0.0)


@pytest.mark.slow
def test_replicate_trains_elsewhere_and_answers_by_its_exit_status(study: Study) -> None:
    """A real training, the same again; then a record that no training makes."""
    se = next(cell for cell in study.cells if cell.attention == "se" and cell.seed == 0)
    run_cell(study, se, se.record)
    before = {file: file.stat().st_mtime_ns for file in Path("results").rglob("*")}
    command = [
        sys.executable,
        "-m",
        "attngrid.cli",
        "replicate",
        "tables/tiny.grid.tex:ResNet-18 + SE",
    ]

    def replicate(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)

    done = replicate("--budget", "1ms")
    assert done.returncode == 2  # argparse
    assert "90s, 30m or 2h" in done.stderr
    done = replicate("--budget", "0.01s")
    assert done.returncode == 4, done.stderr
    assert "no training finished within 0.01 s" in done.stderr
    done = replicate("--budget", "5m")
    assert done.returncode == 0, done.stderr
    assert "1 trained again, 1 equal to the bit" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in before} == before
    record = json.loads(se.record.read_text())
    for line in (record["metrics"], record["metrics"]["curve"][-1]):
        for name in line:
            if name.endswith("top1_error") and name != "train_top1_error":
                line[name] = 3.0
    se.record.write_text(json.dumps(record))
    done = replicate("--budget", "5m")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "not consistent" in done.stdout


def test_replicate_without_a_record_says_so(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replicate", "tables/tiny.grid.tex:ResNet-18"]) == 1
    assert "no record of it is here" in capsys.readouterr().err


# Logs.


def events(file: Path) -> list[Any]:
    """TensorBoard's file, read by its format: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, found = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_tensorboards_logs_are_the_records_curves(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = study.cells[0]
    fake_record(cell, 40.0, 30.0)
    assert main(["export", "config/tiny.yaml", "--tensorboard", "logs"]) == 0
    (file,) = Path("logs").rglob("events.*")
    assert file.parent.name == cell.id
    curve = [
        (event.step, value.simple_value)
        for event in events(file)
        for value in event.summary.value
        if value.tag == "top1_error/test"
    ]
    assert curve == [(1, 40.0), (2, 30.0)]
    assert "1 records" in capsys.readouterr().err


def test_wandb_gets_the_records_offline(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb is not among what is installed: what it would be told."""
    fake_record(study.cells[0], 40.0, 30.0)
    told: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: told.append((step, values["top1_error/test"])),
        summary={},
        finish=lambda: told.append("finished"),
    )

    def init(**options: Any) -> Any:
        told.append((options["mode"], options["id"]))
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    assert main(["export", "config/tiny.yaml", "--wandb", "logs"]) == 0
    assert told == [("offline", study.cells[0].id), (1, 40.0), (2, 30.0), "finished"]
    assert run.summary["top1_error"] == 30.0


def test_a_missing_package_is_named(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["export", "config/tiny.yaml", "--wandb", "logs"]) == 1
    assert "wandb is not installed: pip install wandb" in capsys.readouterr().err
