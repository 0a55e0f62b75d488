"""A time limit of a run: cells that need more time do not start, others save a checkpoint."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from attngrid.analysis.frames import collect
from attngrid.cli.main import main
from attngrid.records.record import read_record
from attngrid.records.status import read_attempts, read_status, write_status
from attngrid.study.cell import Cell
from attngrid.study.plan import Planner
from attngrid.study.schema import Study, load_study
from attngrid.training import checkpoint, run
from attngrid.training.max_runtime import DEADLINE, set_max_runtime

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0] |= {"attentions": ["none", "se"]}
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    return load_study("tiny.yaml")


@pytest.fixture
def set_deadline(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that sets how many seconds are left."""

    def set_left(left: float) -> None:
        monkeypatch.setenv(DEADLINE, str(time.time() + left))

    return set_left


def record_time(cell: Cell, seconds: float) -> None:
    """Write a record of another study with the seconds that a cell took on a CPU."""
    file = Path("results/elsewhere/records", cell.record.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    run = {"device": "cpu", "device_name": "some processor", "wall_s": seconds}
    file.write_text(json.dumps({"run": run}))


def test_a_cell_that_needs_too_much_time_is_not_started(
    study: Study,
    set_deadline: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    short, _, long, _ = sorted(study.trainings.values(), key=lambda cell: cell.attention)
    record_time(short, 1)
    record_time(long, 600)
    set_deadline(300)
    assert main(["train", "tiny.yaml", long.id]) == 1
    message = rf"{long.id}: not started: needs about 11 min 10 s, (5 min 00|4 min 5\d) s left"
    assert re.search(message, capsys.readouterr().err)
    assert read_attempts(long.status) == []
    status = read_status(long.status)
    assert status is not None
    assert status["state"] == "waiting"
    # it is not a failure in the frames either
    states = collect(study).cells.set_index("id")["state"]
    assert states[long.id] == "not_run"
    assert main(["status", "tiny.yaml"]) == 0
    assert "1 cells not started: the last run had too little time left" in capsys.readouterr().out
    monkeypatch.setattr(run, "run_cell", lambda *given: None)
    assert main(["train", "tiny.yaml", short.id]) == 0
    # --max-runtime ends before the deadline
    record_time(short, 200)
    assert main(["train", "tiny.yaml", short.id]) == 0
    assert main(["train", "tiny.yaml", short.id, "--max-runtime", "1m"]) == 1


def test_epochs_in_a_checkpoint_are_not_part_of_the_estimate(
    tiny: dict[str, Any],
    study: Study,
    set_deadline: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(run, "run_cell", lambda *given: None)
    tiny["recipes"]["tiny"]["epochs"] = 10
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    cell = next(iter(load_study("tiny.yaml").trainings.values()))
    record_time(cell, 1000)
    cell.checkpoint.parent.mkdir(parents=True)
    cell.checkpoint.write_bytes(b"")
    for epoch, left, fits in ((8, 200, False), (9, 100, False), (9, 130, True)):
        write_status(cell.status, "waiting", "stopped", epoch=epoch, epochs=10)
        set_deadline(left)
        assert (main(["train", "tiny.yaml", cell.id]) == 0) is fits, (epoch, left)
        if not fits:
            # 10 s to start, and a margin of a tenth
            planned = 10 + 1.1 * 1000 * (10 - epoch) / 10
            minutes, seconds = divmod(round(planned), 60)
            assert f"needs about {minutes} min {seconds:02} s" in capsys.readouterr().err
            assert (read_status(cell.status) or {})["epoch"] == epoch


def test_a_deadline_that_is_not_a_number_is_named(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv(DEADLINE, "noon")
    assert main(["train", "tiny.yaml", next(iter(study.trainings))]) == 1
    assert f"{DEADLINE}: found 'noon'; needs a number of seconds" in capsys.readouterr().err


def test_estimates_are_for_the_current_device(study: Study) -> None:
    cell = next(iter(study.trainings.values()))
    record_time(cell, 7)
    assert Planner(study, on_cpu=True).estimate(cell).seconds == 7
    assert Planner(study, gpu="NVIDIA H200", on_cpu=False).estimate(cell).seconds is None


def test_max_runtime_never_delays_an_earlier_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEADLINE, raising=False)
    monkeypatch.setenv(DEADLINE, str(time.time() + 100))
    set_max_runtime(1000)
    assert float(os.environ[DEADLINE]) < time.time() + 101
    set_max_runtime(10)
    assert float(os.environ[DEADLINE]) < time.time() + 11


def test_a_training_in_two_limited_runs_equals_an_uninterrupted_one(
    tiny: dict[str, Any], study: Study, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """It starts, because it has no estimate, and writes a checkpoint at the deadline."""
    tiny["grid"][0]["options"] = {"width": 0.0625, "classes": 2}
    tiny["recipes"]["tiny"] |= {"epochs": 2, "batch_size": 48}
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    cell = next(iter(load_study("tiny.yaml").trainings.values()))
    now, calls = time.time(), itertools.count()
    # on a fake clock, the deadline passes at the eighth step or test batch
    clock = SimpleNamespace(
        time=lambda: now + (7200 if next(calls) >= 8 else 0), perf_counter=time.perf_counter
    )
    monkeypatch.delenv(DEADLINE, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "time", clock)
        patch.setenv(DEADLINE, "inf")  # restored when the context ends
        assert main(["train", "tiny.yaml", cell.id, "--max-runtime", "1h"]) == 143
    output = capsys.readouterr().err
    assert "stopped at the deadline; the next run goes on from its checkpoint" in output
    assert (read_status(cell.status) or {})["state"] == "waiting"
    assert main(["train", "tiny.yaml", cell.id]) == 0
    resumed = read_record(cell.record, cell)
    assert resumed.run["resumed"] == 1
    assert [one["state"] for one in read_attempts(cell.status)] == ["DeadlineError", "done"]
    assert main(["train", "tiny.yaml", cell.id, "--record", "undisturbed.json"]) == 0
    assert read_record(Path("undisturbed.json"), cell).metrics == resumed.metrics
