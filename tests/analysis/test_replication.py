"""`replicate` trains a row again and compares it with its records."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from attngrid.analysis.replication import compare
from attngrid.cli.main import main
from attngrid.study.schema import Study
from attngrid.training.run import run_cell
from made_up import cells_with, enter_study, fake_record


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return enter_study(tiny, tmp_path, monkeypatch)


def test_a_replication_is_consistent_within_the_prediction_interval(
    study: Study, tmp_path: Path
) -> None:
    """Two records with standard deviation s and one new run: t(0.975, 1) · s · √(1/2 + 1)."""
    none = cells_with(study, "none")
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


def test_bit_identical_metrics_are_always_consistent(study: Study, tmp_path: Path) -> None:
    none = cells_with(study, "none")
    fake_record(none[0], 20.0)
    shutil.copytree("results", tmp_path / "again/results")
    found = compare(none[:1], none[:1], tmp_path / "again")
    assert (found.identical, found.consistent, found.difference) == (1, True, 0.0)


@pytest.mark.slow
def test_replicate_trains_in_another_folder_and_sets_the_exit_status(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    """Repeat a real training; then edit its record, so that it is not consistent."""
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
    assert main([*command, "5m"]) == 3
    assert "not consistent" in capsys.readouterr().out


def test_replicate_without_a_record_says_so(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replicate", "tables/tiny.grid.tex:ResNet-18"]) == 1
    assert "found no record of this row" in capsys.readouterr().err
