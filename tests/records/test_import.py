"""Importing records from another machine: valid ones are copied, others are refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from attngrid.analysis.frames import collect, load_results
from attngrid.cli.main import main
from attngrid.records.collected import collected
from attngrid.records.importing import records_elsewhere
from attngrid.records.status import attempt, locked, read_status, write_status
from attngrid.study.cell import Cell
from attngrid.study.schema import load_study
from conftest import TINY, jobs
from made_up import fake_record

Capture = pytest.CaptureFixture[str]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another machine's folder: it has the records of all cells but the last."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run = dict.fromkeys(("torch", "python"), "3.14") | {"started": "2026-01-01", "commit": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
        for cell in cells()[:-1]:
            with attempt(cell.status, 0):
                fake_record(cell, 100 * 30 / 355)
                change(cell.record, lambda content: content["run"].update(run))
                write_status(cell.status, "done")
    return folder


@pytest.fixture
def incoming(elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of these records that a test may edit. The current folder is empty but for a study."""
    target = tmp_path / "incoming/tiny/records"
    shutil.copytree(elsewhere / "results/tiny/records", target)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    return target


def cells() -> list[Cell]:
    return list(load_study("tiny.yaml").trainings.values())


def change(file: Path, change_record: Change) -> None:
    content = json.loads(file.read_text())
    change_record(content)
    file.write_text(json.dumps(content))


def test_records_are_copied_byte_for_byte_and_only_once(incoming: Path, capsys: Capture) -> None:
    assert main(["import", str(incoming.parents[1])]) == 0
    for cell in cells()[:-1]:
        assert cell.record.read_bytes() == (incoming / cell.record.name).read_bytes()
    assert "3 records imported, 0 already here, 0 refused" in capsys.readouterr().err
    before = {cell.record: cell.record.stat().st_mtime_ns for cell in cells()[:-1]}
    assert main(["import", str(incoming), "--study", "tiny.yaml"]) == 0
    assert "0 records imported, 3 already here, 0 refused" in capsys.readouterr().err
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_other_metrics_are_refused_by_name_and_the_rest_is_imported(
    incoming: Path, capsys: Capture
) -> None:
    first, second, third, _ = cells()
    first.record.parent.mkdir(parents=True)
    shutil.copy(incoming / first.record.name, first.record)

    def better(content: dict[str, Any]) -> None:
        metrics = content["metrics"]
        images = metrics["test_images"]
        for block, names in (
            (metrics, ("top1_error", "best_top1_error")),
            (metrics["curve"][0], ("test_top1_error",)),
        ):
            for name in names:
                wrong = round(block[name] * images / 100)
                block[name] = 100 * (wrong + 1) / images

    change(first.record, better)
    kept = first.record.read_bytes()
    assert main(["import", str(incoming)]) == 1
    captured = capsys.readouterr()
    assert f"{incoming / first.record.name}: has other metrics than {first.record}" in captured.err
    assert first.record.read_bytes() == kept
    assert set(captured.out.splitlines()) == {f"imported {cell.record}" for cell in (second, third)}


@pytest.mark.parametrize(
    ("change_record", "why"),
    [
        (
            lambda r: r["metrics"].update(top5_error=101.0),
            "metrics.top5_error: found 101.0; needs to be",
        ),
        (lambda r: r["metrics"]["curve"][0].update(train_loss=float("nan")), "found NaN; needs"),
        (
            lambda r: r["metrics"]["curve"].append(dict(r["metrics"]["curve"][0], epoch=2)),
            "found 2",
        ),
        (lambda r: r["metrics"].pop("params"), "metrics.params: is required and not there"),
        (lambda r: r["config"].update(seed=7), "config: is not that of this cell"),
        (lambda r: r["config"].update(digest="0" * 64), "config: is not that of this cell"),
        (lambda r: r["config"]["recipe"].update(learning_rate=0.5), "config: is not that"),
        (lambda r: r["metrics"].update(test_images=10), "training and test images; needs"),
        (lambda r: r["run"].pop("device_name"), "run.device_name: is required and not there"),
        (lambda r: r["run"].update(wall_s=-1), "run.wall_s: found -1; needs to be greater than"),
        (
            lambda r: r["run"].update(wall_s=True),
            "run.wall_s: found True; needs to be a valid number",
        ),
        (lambda r: r["run"].update(peak_memory_mb=float("nan")), "found NaN; needs finite"),
        (lambda r: r["run"].update(code=1), "run.code: found 1; needs text, in quotes"),
        (lambda r: r["config"]["recipe"].pop("name"), "config"),
        (lambda r: r["metrics"].update(best_top5_error=77.7), "best_top5_error: found 77.7"),
        (lambda r: r.update(notes=""), "unknown key 'notes': known are config, metrics, run"),
    ],
)
def test_an_impossible_record_is_refused_and_not_copied(
    incoming: Path, change_record: Change, why: str, capsys: Capture
) -> None:
    first = cells()[0]
    change(incoming / first.record.name, change_record)
    assert main(["import", str(incoming), "--study", "tiny.yaml"]) == 1
    captured = capsys.readouterr().err
    assert f"{incoming / first.record.name}: " in captured
    assert why in captured
    assert not first.record.exists()
    assert cells()[1].record.is_file()


@pytest.mark.parametrize("error", [33.3, 1.0])
def test_an_error_is_a_whole_number_of_images_and_not_below_the_top5_error(
    incoming: Path, error: float, capsys: Capture
) -> None:
    first = cells()[0]

    def change_record(content: dict[str, Any]) -> None:
        metrics = content["metrics"]
        metrics.update(top1_error=error, best_top1_error=error)
        metrics["curve"][0]["test_top1_error"] = error

    change(incoming / first.record.name, change_record)
    assert main(["import", str(incoming), "--study", "tiny.yaml"]) == 1
    captured = capsys.readouterr().err
    assert (
        "is not a whole number of images" in captured or "top-5 error above top-1 error" in captured
    )


def test_an_unknown_record_and_one_of_another_configuration_have_different_messages(
    incoming: Path, capsys: Capture
) -> None:
    study = yaml.safe_load(Path("tiny.yaml").read_text())
    study["recipes"]["tiny"]["learning_rate"] = 0.01
    Path("tiny.yaml").write_text(yaml.safe_dump(study))
    (incoming / "digits-mine-s0-00000000.json").write_text("{}")
    assert main(["import", str(incoming), "--study", "tiny.yaml"]) == 1
    captured = capsys.readouterr().err
    assert captured.count("belongs to another configuration; expected digits-resnet18-") == 3
    assert "digits-mine-s0-00000000.json: belongs to no cell of tiny" in captured
    assert not Path("results").exists()


def test_a_record_of_two_studies_is_copied_to_the_study_that_its_folder_names(
    incoming: Path, capsys: Capture
) -> None:
    study = yaml.safe_load(Path("tiny.yaml").read_text()) | {"study": "other"}
    Path("other.yaml").write_text(yaml.safe_dump(study))
    flat = incoming.parents[1] / "flat"
    flat.mkdir()
    shutil.copy(incoming / cells()[0].record.name, flat)
    assert main(["import", str(flat)]) == 1
    assert "is a cell of other and tiny; choose one with --study" in capsys.readouterr().err
    assert main(["import", str(flat), "--study", "other.yaml"]) == 0
    assert main(["import", str(incoming)]) == 0
    assert {len(list(Path(f"results/{name}/records").iterdir())) for name in ("other", "tiny")} == {
        1,
        3,
    }


def test_a_record_of_other_code_is_imported_and_marked(incoming: Path, capsys: Capture) -> None:
    first = cells()[0]
    change(incoming / first.record.name, lambda content: content["run"].update(code="another"))
    assert main(["import", str(incoming)]) == 0
    assert not load_study("tiny.yaml").superseded
    capsys.readouterr()
    assert main(["status", "tiny.yaml"]) == 0
    assert "1 records: other code, commit" in capsys.readouterr().out


def test_a_copy_of_the_results_has_checkpoints_and_attempts_imported(
    elsewhere: Path, incoming: Path, capsys: Capture
) -> None:
    """A checkpoint is copied if its cell has no record and has reached fewer epochs here."""
    *_, last = cells()
    copy = incoming.parents[1] / "copy"
    shutil.copytree(elsewhere / "results/tiny", copy / "tiny")
    there = copy / "tiny/checkpoints" / last.checkpoint.name
    there.parent.mkdir(exist_ok=True)
    for epoch in (3, 5):
        there.write_bytes(bytes([epoch]))
        write_status(copy / "tiny/status" / last.status.name, "running", epoch=epoch, epochs=9)
        assert main(["import", str(copy)]) == 0
        assert f"imported {last.checkpoint}" in capsys.readouterr().out
        assert last.checkpoint.read_bytes() == bytes([epoch])
    status = read_status(last.status) or {}
    assert (status["state"], status["epoch"], status["epochs"]) == ("waiting", 5, 1)
    # the attempts of the cells with records are imported too, and hours are counted once
    assert main(["import", str(copy)]) == 0
    assert "0 checkpoints" in capsys.readouterr().err
    assert main(["status", "tiny.yaml"]) == 0
    captured = capsys.readouterr().out
    assert "4 cells: 3 done, 1 waiting" in captured
    assert "3 cells in 3 attempts, 0 retries" in captured


def test_the_status_of_a_cell_that_diverged_elsewhere_is_imported(
    incoming: Path, capsys: Capture
) -> None:
    """Files that are not a valid status are skipped."""
    status = incoming.parent / "status"
    host = {"host": "elsewhere", "pid": 1, "time": "2026-01-01T00:00:00+00:00"}
    states = [
        host | {"state": "unknown", "message": ""},
        host | {"state": "failed"},
        host | {"state": "failed", "message": "no", "attempts": [{}]},
        host | {"state": "diverged", "message": "the loss became nan", "attempts": []},
    ]
    for cell, state in zip(cells()[-4:], states, strict=True):
        status.mkdir(exist_ok=True)
        (status / cell.status.name).write_text(json.dumps(state))
    assert main(["import", str(incoming.parents[1])]) == 0
    capsys.readouterr()
    assert main(["status", "tiny.yaml"]) == 0
    captured = capsys.readouterr().out
    assert "4 cells: 3 done, 1 diverged" in captured
    assert "the loss became nan" in captured


def test_a_record_of_a_cell_that_is_being_trained_is_refused(
    incoming: Path, capsys: Capture
) -> None:
    first = cells()[0]
    first.lock.parent.mkdir(parents=True)
    write_status(first.status, "running", epoch=0, epochs=1)
    with locked(first):
        assert main(["import", str(incoming)]) == 1
    assert "is being trained by process" in capsys.readouterr().err
    assert not first.record.exists()
    assert first.status.is_file()
    assert main(["import", str(incoming)]) == 0
    assert first.record.is_file()


def test_a_file_that_cannot_be_parsed_does_not_stop_the_import(
    incoming: Path, capsys: Capture
) -> None:
    first = cells()[0]
    (incoming / first.record.name).write_text("[" * 200_000)  # too deep for the parser
    Path("number.yaml").write_text("42")
    Path("latin.yaml").write_bytes("study: é".encode("latin-1"))
    Path("mistake.yaml").write_text("study: mistake\ngird: []")
    assert main(["import", str(incoming)]) == 1
    captured = capsys.readouterr()
    assert f"{incoming / first.record.name}: " in captured.err
    assert "skipped: mistake.yaml: " in captured.err
    assert len(captured.out.splitlines()) == 2


def test_a_folder_with_nothing_to_import_is_an_error(incoming: Path, capsys: Capture) -> None:
    Path("empty").mkdir()
    for folder, why in (("empty", "no record and no checkpoint"), ("nowhere", "no such folder")):
        assert main(["import", folder]) == 1
        assert f"{folder}: there is {why}" in capsys.readouterr().err


@pytest.mark.slow
def test_snakemake_collects_again_after_an_import_regardless_of_modification_times(
    elsewhere: Path,
    clone: Path,
    snakemake: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = TINY | {"figures": [], "tables": ["grid"]}
    tiny["grid"] = [TINY["grid"][0] | {"attentions": ["none"]}]
    (clone / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    arguments = ("--cores", "1", "--configfile", "tiny.yaml")
    monkeypatch.chdir(clone)
    first, second = load_study("tiny.yaml").trainings.values()
    first.record.parent.mkdir(parents=True)
    shutil.copy(elsewhere / first.record, first.record)
    load_study("tiny.yaml").write_snapshot()
    assert main(["complexity", "tiny.yaml", "--output", "results/tiny/complexity.csv"]) == 0
    done = snakemake(clone, "current", *arguments)
    assert done.returncode == 0, done.stderr
    collected(load_study("tiny.yaml")).write_text("")  # as if both records had been collected
    old = elsewhere / second.record
    os.utime(old, (1_600_000_000, 1_600_000_000))

    def announced() -> dict[str, int]:
        dry = snakemake(clone, "-n", *arguments)
        assert dry.returncode == 0, dry.stderr
        return jobs(dry.stdout + dry.stderr)

    shutil.copy2(old, second.record)
    assert "collect" not in announced()
    second.record.unlink()
    # the third record belongs to no cell of this study
    assert main(["import", str(elsewhere / "results"), "--study", "tiny.yaml"]) == 1
    found = announced()
    assert "train" not in found
    assert found["collect"] == found["set_tables"] == 1
    assert snakemake(clone, *arguments).returncode == 0
    assert list(load_results("tiny").cells["state"]) == ["measured", "measured"]


def test_a_renamed_study_keeps_its_records(
    incoming: Path, tiny: dict[str, Any], capsys: Capture
) -> None:
    shutil.copytree(incoming.parent, "results/tiny")
    weights = [file.stem for file in Path("results/tiny/records").iterdir()]
    Path("results/tiny/weights").mkdir()
    for name in weights:
        Path(f"results/tiny/weights/{name}.safetensors").write_bytes(name.encode())
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny | {"study": "renamed"}))
    study = load_study("tiny.yaml")
    assert records_elsewhere(study) == {Path("results/tiny"): len(weights)}

    assert main(["import", "results/tiny", "--study", "tiny.yaml"]) == 0
    assert f"{len(weights)} records imported" in capsys.readouterr().err
    for name in weights:
        copied = Path(f"results/renamed/weights/{name}.safetensors")
        assert copied.read_bytes() == name.encode()
    imported = collect(study).cells["state"].tolist()
    assert records_elsewhere(study) == {}

    shutil.rmtree("results/renamed")
    Path("results/tiny").rename("results/renamed")
    assert collect(study).cells["state"].tolist() == imported
    assert imported.count("measured") >= len(weights)
