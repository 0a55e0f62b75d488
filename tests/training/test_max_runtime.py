"""A limit on the time of a run: what would not fit is not started, what runs is checkpointed."""

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

Say = pytest.CaptureFixture[str]


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0] |= {"attentions": ["none", "se"]}
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    return load_study("tiny.yaml")


@pytest.fixture
def until(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say how many seconds are left."""

    def say(left: float) -> None:
        monkeypatch.setenv(DEADLINE, str(time.time() + left))

    return say


def takes(cell: Cell, seconds: float) -> None:
    """A record elsewhere says how long a cell took on a CPU."""
    file = Path("results/elsewhere/records", cell.record.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    run = {"device": "cpu", "device_name": "some processor", "wall_s": seconds}
    file.write_text(json.dumps({"run": run}))


def test_what_would_not_fit_is_not_started(
    study: Study, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    short, _, long, _ = sorted(study.trainings.values(), key=lambda cell: cell.attention)
    takes(short, 1)
    takes(long, 600)
    until(300)
    assert main(["train", "tiny.yaml", long.id]) == 1
    message = rf"{long.id}: not started: needs about 11 min 10 s, (5 min 00|4 min 5\d) s left"
    assert re.search(message, capsys.readouterr().err)
    assert read_attempts(long.status) == []
    status = read_status(long.status)
    assert status is not None
    assert status["state"] == "waiting"
    # waiting for time is no failure, here or in a table
    states = collect(study).cells.set_index("id")["state"]
    assert states[long.id] == "not_run"
    assert main(["status", "tiny.yaml"]) == 0
    assert "1 cells not started: the last run had too little time left" in capsys.readouterr().out
    monkeypatch.setattr(run, "run_cell", lambda *given: None)
    assert main(["train", "tiny.yaml", short.id]) == 0
    # --max-runtime ends before the deadline
    takes(short, 200)
    assert main(["train", "tiny.yaml", short.id]) == 0
    assert main(["train", "tiny.yaml", short.id, "--max-runtime", "1m"]) == 1


def test_epochs_behind_a_checkpoint_are_not_planned_again(
    tiny: dict[str, Any],
    study: Study,
    until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Say,
) -> None:
    monkeypatch.setattr(run, "run_cell", lambda *given: None)
    tiny["recipes"]["tiny"]["epochs"] = 10
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    cell = next(iter(load_study("tiny.yaml").trainings.values()))
    takes(cell, 1000)
    cell.checkpoint.parent.mkdir(parents=True)
    cell.checkpoint.write_bytes(b"")
    for epoch, left, fits in ((8, 200, False), (9, 100, False), (9, 130, True)):
        write_status(cell.status, "waiting", "stopped", epoch=epoch, epochs=10)
        until(left)
        assert (main(["train", "tiny.yaml", cell.id]) == 0) is fits, (epoch, left)
        if not fits:
            # 10 s to start, and a tenth more than planned
            planned = 10 + 1.1 * 1000 * (10 - epoch) / 10
            minutes, seconds = divmod(round(planned), 60)
            assert f"needs about {minutes} min {seconds:02} s" in capsys.readouterr().err
            assert (read_status(cell.status) or {})["epoch"] == epoch


def test_a_deadline_that_is_no_number_is_named(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    monkeypatch.setenv(DEADLINE, "noon")
    assert main(["train", "tiny.yaml", next(iter(study.trainings))]) == 1
    assert f"{DEADLINE}: found 'noon'; needs a number of seconds" in capsys.readouterr().err


def test_plans_are_for_the_device_at_hand(study: Study) -> None:
    cell = next(iter(study.trainings.values()))
    takes(cell, 7)
    assert Planner(study, on_cpu=True).estimate(cell).seconds == 7
    assert Planner(study, gpu="NVIDIA H200", on_cpu=False).estimate(cell).seconds is None


def test_max_runtime_never_moves_an_earlier_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEADLINE, raising=False)
    monkeypatch.setenv(DEADLINE, str(time.time() + 100))
    set_max_runtime(1000)
    assert float(os.environ[DEADLINE]) < time.time() + 101
    set_max_runtime(10)
    assert float(os.environ[DEADLINE]) < time.time() + 11


def test_a_training_of_two_limited_runs_has_the_bits_of_an_undisturbed_one(
    tiny: dict[str, Any], study: Study, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    """Nothing is known of its time, so that it starts; at the deadline it writes a checkpoint."""
    tiny["grid"][0]["options"] = {"width": 0.0625, "classes": 2}
    tiny["recipes"]["tiny"] |= {"epochs": 2, "batch_size": 48}
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    cell = next(iter(load_study("tiny.yaml").trainings.values()))
    now, asked = time.time(), itertools.count()
    # on a clock of the test's own, the time is over at the eighth step or batch of test images
    clock = SimpleNamespace(
        time=lambda: now + (7200 if next(asked) >= 8 else 0), perf_counter=time.perf_counter
    )
    monkeypatch.delenv(DEADLINE, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "time", clock)
        patch.setenv(DEADLINE, "inf")  # restored when the context ends
        assert main(["train", "tiny.yaml", cell.id, "--max-runtime", "1h"]) == 143
    told = capsys.readouterr().err
    assert "stopped at the deadline; the next run goes on from its checkpoint" in told
    assert (read_status(cell.status) or {})["state"] == "waiting"
    assert main(["train", "tiny.yaml", cell.id]) == 0
    resumed = read_record(cell.record, cell)
    assert resumed.run["resumed"] == 1
    assert [one["state"] for one in read_attempts(cell.status)] == ["DeadlineError", "done"]
    assert main(["train", "tiny.yaml", cell.id, "--record", "undisturbed.json"]) == 0
    assert read_record(Path("undisturbed.json"), cell).metrics == resumed.metrics
