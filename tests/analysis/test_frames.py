"""Frames from records: means and deviations, states, and no import of torch."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import attngrid
from attngrid.analysis.frames import collect, load_results, unfinished, write_results
from attngrid.analysis.progress import failed_jobs, status
from attngrid.cli.main import main
from attngrid.core.errors import AttngridError
from attngrid.core.files import modified_ns
from attngrid.core.validation import validate
from attngrid.records.collected import collected, latest, prepare_collection
from attngrid.records.staleness import archive
from attngrid.records.status import RUN_BEGAN, write_status
from attngrid.study.schema import Study, load_study
from made_up import ROOT, cells_with, fake_record


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0]["seeds"] = [0, 1, 2]
    return validate(Study, tiny, "tiny.yaml")


def test_the_summary_has_mean_standard_deviation_and_n_over_seeds(study: Study) -> None:
    errors = [30.0, 29.5, 31.0]
    for cell, error in zip(cells_with(study, "none"), errors, strict=True):
        fake_record(cell, 50.0, error)
    row = collect(study).summary.set_index("attention").loc["none"]
    assert row["n"] == 3
    assert row["top1_error_mean"] == pytest.approx(statistics.mean(errors))
    assert row["top1_error_std"] == pytest.approx(statistics.stdev(errors))
    assert row["top5_error_mean"] == pytest.approx(statistics.mean(errors) / 2)
    accuracies = [70.0, 70.5, 69.0]
    assert row["top1_accuracy_mean"] == pytest.approx(statistics.mean(accuracies))
    assert row["top1_accuracy_std"] == pytest.approx(statistics.stdev(accuracies))


@pytest.mark.parametrize("name", ["007", "30", "inf", "1e5", "none", "nan"])
def test_names_that_look_like_numbers_stay_text_in_every_frame(
    tiny: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny["recipes"][name] = tiny["recipes"]["tiny"]
    tiny["grid"][0] |= {"recipes": [name], "attentions": ["none"]}
    study = validate(Study, tiny | {"study": name}, "tiny.yaml")
    for cell in study.cells:
        fake_record(cell, 30.0)
        record = json.loads(cell.record.read_text())
        record["run"] |= {"torch": "2.10", "commit": "1234567", "started": "2026"}
        cell.record.write_text(json.dumps(record))
    write_results(study, collect(study))
    results = load_results(name)
    for frame in (results.cells, results.epochs, results.summary):
        assert set(frame["study"]) == set(frame["recipe"]) == {name}
    assert set(results.cells["torch"]) == {"2.10"}
    assert set(results.cells["commit"]) == {"1234567"}
    assert results.summary["n"].tolist() == [2]


def test_the_end_of_a_run_names_other_jobs_that_failed(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_BEGAN, "2026-01-31T12:00:00+00:00")
    began = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
    cell, *_ = study.trainings
    folder = Path("logs/tiny")
    folder.mkdir(parents=True)
    for name, text, late_s in (
        ("prepare.birds", "checking\nattngrid: error: birds: 1 image cannot be read\n", 5),
        ("prepare.fish", "attngrid: error: of an earlier run\n", -5),
        ("collect", "collected\n", 5),
        (cell, "attngrid: error: in its status, too\n", 5),
    ):
        (folder / f"{name}.log").write_text(text)
        os.utime(folder / f"{name}.log", (began + late_s, began + late_s))
    line = "prepare.birds: attngrid: error: birds: 1 image cannot be read"
    assert list(failed_jobs(study)) == [line]


def test_one_seed_has_no_standard_deviation(study: Study) -> None:
    fake_record(cells_with(study, "none")[0], 30.0)
    row = collect(study).summary.set_index("attention").loc["none"]
    assert row["n"] == 1
    assert pd.isna(row["top1_error_std"])


def test_not_run_diverged_and_failed_are_different_states(study: Study) -> None:
    none, se = cells_with(study, "none"), cells_with(study, "se")
    fake_record(none[0], 30.0)
    write_status(none[1].status, "diverged", "diverged: the loss became nan in epoch 1, step 2")
    write_status(none[2].status, "failed", "OSError: no")
    results = collect(study)
    states = results.cells.set_index(["attention", "seed"])["state"]
    assert states["none"].tolist() == ["measured", "diverged", "failed"]
    assert states["se"].tolist() == ["not_run"] * 3
    row = results.summary.set_index("attention").loc["none"]
    assert (row["n"], row["n_diverged"], row["n_failed"]) == (1, 1, 1)
    assert row["top1_error_mean"] == 30.0
    lines = unfinished(results)
    assert len(lines) == 2
    assert "epoch 1, step 2" in lines[0]
    assert se[0].id not in "".join(lines)


def test_a_running_cell_has_failed_only_if_the_run_has_ended(study: Study) -> None:
    write_status(study.cells[0].status, "running", epoch=1)
    assert collect(study).cells["state"][0] == "running"
    assert collect(study, ended=True).cells["state"][0] == "failed"


def test_cam_has_the_record_of_se_under_its_own_name(study: Study) -> None:
    for cell in cells_with(study, "se"):
        fake_record(cell, 20.0)
    frame = collect(study).cells
    assert frame.loc[frame["attention"] == "cam", "top1_error"].tolist() == [20.0] * 3
    assert set(frame.loc[frame["attention"] == "cam", "id"]) == {
        c.id for c in cells_with(study, "se")
    }


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("config.digest", "0" * 64, "config: is not that of this cell"),
        ("config.seed", 77, "config: is not that of this cell"),
        ("config.recipe.learning_rate", 9.0, "config: is not that of this cell"),
        ("config.options.width", 1.0, "config: is not that of this cell"),
        ("config.recipe", None, "config: "),
        ("metrics.top1_error", 1.0, "metrics: top1_error: found 1.0; the curve has"),
        ("metrics.best_top1_error", 1.0, "metrics: best_top1_error: found 1.0; the curve has"),
        ("metrics.top1_error", "low", "metrics.top1_error: "),
        ("metrics.top1_error", float("nan"), "found NaN; needs finite numbers"),
        ("metrics.top1_error", 101.0, "metrics.top1_error: "),
        ("metrics.curve", [], "metrics.curve: "),
        ("metrics", [], "metrics: "),
    ],
)
def test_an_edited_record_is_refused_and_the_others_count(
    study: Study, path: str, value: Any, expected: str
) -> None:
    bad, good = cells_with(study, "none")[:2]
    for cell in (bad, good):
        fake_record(cell, 30.0)
    record = json.loads(bad.record.read_text())
    *parents, last = path.split(".")
    node = record
    for step in parents:
        node = node[step]
    node[last] = value
    bad.record.write_text(json.dumps(record))
    results = collect(study)
    row = results.summary.set_index("attention").loc["none"]
    assert (row["n"], row["n_refused"]) == (1, 1)
    (line,) = unfinished(results)
    assert str(bad.record) in line
    assert expected in line


def test_a_truncated_record_is_refused(study: Study) -> None:
    cell = study.cells[0]
    cell.record.parent.mkdir(parents=True)
    cell.record.write_text('{"config": ')
    (line,) = unfinished(collect(study))
    assert f"{cell.record}: cannot be read" in line


def test_collecting_a_refused_record_is_an_error(
    study: Study, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny.json").write_text(json.dumps(tiny))
    cell = study.cells[0]
    fake_record(cell, 30.0)
    cell.record.write_text(cell.record.read_text().replace("30.0", "31.0", 1))
    assert main(["collect", "tiny.json"]) == 1
    assert "remove a refused record to train its cell again" in capsys.readouterr().err


def test_an_older_record_without_newer_options_is_valid(study: Study) -> None:
    """An older record lacks the newest options; their defaults are what it was trained with."""
    cell = study.cells[0]
    fake_record(cell, 30.0)
    record = json.loads(cell.record.read_text())
    del record["config"]["options"]["placement"]
    del record["config"]["recipe"]["label_smoothing"]
    cell.record.write_text(json.dumps(record))
    assert collect(study).cells["state"][0] == "measured"


def test_load_results_returns_the_written_frames(study: Study) -> None:
    fake_record(study.cells[0], 40.0, 30.0)
    with pytest.raises(AttngridError, match=r"no cells\.csv or epochs\.csv or summary\.csv"):
        attngrid.load_results("tiny")
    written = collect(study)
    write_results(study, written)
    read = attngrid.load_results("tiny")
    assert read.cells["attention"].tolist() == ["none", "se", "cam"] * 3
    for name in ("cells", "epochs", "summary"):
        mine, theirs = getattr(written, name), getattr(read, name)
        assert list(mine.columns) == list(theirs.columns)
        # a CSV has no types, so only values are compared
        pd.testing.assert_frame_equal(
            mine.astype(object).where(mine.notna(), None),
            theirs.astype(object).where(theirs.notna(), None),
            check_dtype=False,
        )
    assert read.epochs["test_top1_error"].tolist() == [40.0, 30.0]
    assert read.epochs["test_top1_accuracy"].tolist() == [60.0, 70.0]
    assert repr(read) == (
        "Results(cells: 9 rows, epochs: 2 rows, summary: 3 rows, trials: 0 rows, maps: None)"
    )


def test_frames_of_an_earlier_version_get_their_accuracies(study: Study) -> None:
    """It wrote no accuracies; an accuracy stands to the right of its error."""
    fake_record(study.cells[0], 30.0)
    written = collect(study)
    new = {name: getattr(written, name) for name in ("cells", "epochs", "summary")}
    for name, frame in new.items():
        old = frame[[column for column in frame.columns if "accuracy" not in column]]
        assert len(old.columns) < len(frame.columns)
        object.__setattr__(written, name, old)
    write_results(study, written)
    for name, frame in new.items():
        columns = list(getattr(load_results("tiny"), name).columns)
        assert columns == list(frame.columns)
        for column in filter(lambda column: "error" in column, columns):
            right = columns[columns.index(column) + 1]
            assert right == column.replace("error", "accuracy")


@pytest.mark.parametrize("name", ["cells", "epochs", "summary"])
def test_a_cut_frame_is_refused_and_collected_again(study: Study, name: str) -> None:
    for cell in study.cells:
        fake_record(cell, 30.0)
    write_results(study, collect(study))
    prepare_collection(study)
    assert collected(study).is_file()
    file = study.results / f"{name}.csv"
    whole = file.read_text()
    file.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(AttngridError, match=f"{name}.csv: is not what was collected"):
        load_results(study.study)
    snapshot = modified_ns(study.snapshot)
    prepare_collection(study)
    assert not collected(study).exists()
    assert modified_ns(study.snapshot) > snapshot  # Snakemake makes the tables again, too
    write_results(study, collect(study))
    assert file.read_text() == whole


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"{}"])
def test_a_damaged_configuration_or_mark_is_written_again(study: Study, damage: bytes) -> None:
    write_results(study, collect(study))
    prepare_collection(study)
    study.snapshot.write_bytes(damage)
    latest(study).write_bytes(damage)
    prepare_collection(study)
    assert load_study(study.snapshot) == study


@pytest.mark.parametrize("content", ["", "{", "[" * 200_000, "1" * 400, '{"run": {}}'])
def test_a_record_that_cannot_be_read_is_not_done(study: Study, content: str) -> None:
    first, *others = study.trainings.values()
    for cell in others:
        fake_record(cell, 30.0)
    first.record.write_text(content)
    lines = list(status(study))
    assert f"{len(others)} done, 1 refused" in lines[0]
    assert f"refused: {first.id}: {first.record}: " in lines[-2]
    assert lines[-1] == "    remedy: remove the record, and the next run trains the cell again"


def test_a_cell_with_a_record_of_another_configuration_is_stale(study: Study) -> None:
    """It isn't waiting: no run trains it before its record is archived."""
    first, *_ = study.trainings.values()
    fake_record(first, 30.0)
    first.record.rename(first.record.with_name(f"{first.id[:-8]}00000000.json"))
    lines = list(status(study))
    assert lines[0] == "study tiny: 6 cells: 5 waiting, 1 stale"
    assert lines[-2] == f"  stale: {first.id}"
    assert lines[-1].endswith(
        "`attngrid archive tiny` moves those records away, and the next run trains these cells"
    )
    archive(study)
    assert "stale" not in "".join(status(study))


def test_every_column_is_explained(study: Study) -> None:
    fake_record(study.cells[0], 30.0)
    results = collect(study)
    text = (ROOT / "docs/results.md").read_text("utf-8")
    columns = {c for f in (results.cells, results.epochs, results.summary) for c in f.columns}
    assert {column for column in columns if f"`{column}`" not in text} == set()


@pytest.mark.slow
def test_analysis_and_render_work_where_torch_is_missing(
    tiny: dict[str, Any], study: Study
) -> None:
    """Without torch, every module can be imported, and `attngrid current` renders."""
    for cell in cells_with(study, "none"):
        fake_record(cell, 30.0)
    for folder in ("reference", "workflow"):
        Path(folder).symlink_to(ROOT / folder)
    Path("tiny.json").write_text(json.dumps(tiny | {"figures": ["modules"], "tables": ["grid"]}))
    code = (
        # not None in sys.modules, because SciPy would take that for an installed torch
        "import sys, pkgutil, importlib\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch': raise ImportError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "for name in ('attngrid.analysis', 'attngrid.render'):\n"
        "    for module in pkgutil.iter_modules(importlib.import_module(name).__path__):\n"
        "        importlib.import_module(f'{name}.{module.name}')\n"
        "from attngrid.cli import main\n"
        "sys.exit(main(['current', 'tiny.json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 measured, 3 not run" in done.stderr
    assert Path("results/tiny/report.html").is_file()
