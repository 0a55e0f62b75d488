"""`replicate` trains a row again and compares it with its records."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from attngrid.analysis.deviations import Deviation
from attngrid.analysis.replication import compare
from attngrid.cli.main import main
from attngrid.study.cell import Cell
from attngrid.study.schema import Study
from attngrid.training.run import run_cell
from made_up import cells_with, enter_study, fake_record


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return enter_study(tiny, tmp_path, monkeypatch)


def repeat(cell: Cell, folder: Path, error: float) -> None:
    """Write a new record of the cell into another folder."""
    before = cell.record.read_text()
    fake_record(cell, error)
    again = folder / cell.record
    again.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(cell.record, again)
    cell.record.write_text(before)


def test_several_seeds_are_compared_in_pairs(study: Study, tmp_path: Path) -> None:
    """SciPy's paired t-test at 0.05; the seeds differ much more than the two runs of each."""
    none = cells_with(study, "none")
    old, changes = [20.0, 30.0], [1.0, 1.1]
    for shift in (0.0, -0.9):
        for cell, error, change in zip(none, old, changes, strict=True):
            fake_record(cell, error)
            repeat(cell, tmp_path / "again", error + change + shift)
        found = compare(none, tmp_path / "again", None)
        new = [error + change + shift for error, change in zip(old, changes, strict=True)]
        test = stats.ttest_rel(new, old)
        assert found.consistent == (test.pvalue > 0.05)
        half = (test.confidence_interval().high - test.confidence_interval().low) / 2
        assert found.limit == pytest.approx(half)
        assert (found.difference, found.identical) == (pytest.approx(test._estimate), 0)


def test_one_pair_needs_a_known_deviation_over_seeds(study: Study, tmp_path: Path) -> None:
    """t(0.975, 4) · 0.3 · √2; the number of test images does not count."""
    cell = cells_with(study, "none")[0]
    limit = 2.7764 * 0.3 * math.sqrt(2)
    for change, consistent in ((0.99 * limit, True), (1.01 * limit, False)):
        fake_record(cell, 20.0)
        repeat(cell, tmp_path / "again", 20.0 + change)
        found = compare([cell], tmp_path / "again", Deviation(0.3, 4, "a paper"))
        assert found.limit == pytest.approx(limit, rel=1e-4)
        assert (found.consistent, found.basis) == (consistent, "σ = 0.30: a paper")
        assert compare([cell], tmp_path / "again", None).consistent is None


def test_bit_identical_metrics_are_always_consistent(study: Study, tmp_path: Path) -> None:
    none = cells_with(study, "none")
    fake_record(none[0], 20.0)
    shutil.copytree("results", tmp_path / "again/results")
    found = compare(none[:1], tmp_path / "again", None)
    assert (found.identical, found.consistent, found.difference) == (1, True, 0.0)


@pytest.mark.slow
def test_replicate_trains_in_another_folder_and_sets_the_exit_status(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    """Repeat a real training; then edit its record, so that it differs.

    One pair is inconclusive; the two seeds of another model then give a deviation.
    """
    se = next(cell for cell in study.cells if cell.attention == "se" and cell.seed == 0)
    run_cell(study, se, se.record)
    before = {file: file.stat().st_mtime_ns for file in Path("results").rglob("*")}
    command = ["replicate", "tables/tiny.grid.tex:ResNet-18 + SE", "--budget"]
    with pytest.raises(SystemExit):
        main([*command, "1ms"])
    assert "90s, 30m or 2h" in capsys.readouterr().err
    assert main([*command, "0.01s"]) == 4
    assert "no training finished within 0.01 s" in capsys.readouterr().err
    assert main([*command, "5m"]) == 0
    assert "1 trained again, 1 equal to the bit" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in before} == before
    record = json.loads(se.record.read_text())
    for line in (record["metrics"], record["metrics"]["curve"][-1]):
        for name in line:
            if name.endswith("top1_error") and name != "train_top1_error":
                line[name] = 3.0
    se.record.write_text(json.dumps(record))
    assert main([*command, "5m"]) == 4
    assert "no deviation over seeds is known" in capsys.readouterr().err
    for cell, error in zip(cells_with(study, "none"), (20.0, 20.4), strict=True):
        fake_record(cell, error)
        other = json.loads(cell.record.read_text()) | {"run": record["run"]}
        cell.record.write_text(json.dumps(other))
    assert main([*command, "5m"]) == 3
    assert "(σ = 0.28: 2 of our trainings): not consistent" in capsys.readouterr().out


def test_replicate_without_a_record_says_so(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replicate", "tables/tiny.grid.tex:ResNet-18"]) == 1
    assert "found no record of this row" in capsys.readouterr().err
