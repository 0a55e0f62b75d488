"""Trainings that are killed, lack memory or disk, or run twice: they stay bit-identical."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from attngrid.core.errors import (
    BusyCellError,
    InterruptedTrainingError,
    OutOfMemoryError,
    WriteError,
)
from attngrid.core.validation import validate
from attngrid.records.record import read_record
from attngrid.records.status import locked, read_status, write_status
from attngrid.study.cell import Cell
from attngrid.study.schema import Study, load_study
from attngrid.training import checkpoint, loop, signals
from attngrid.training.checkpoint import Checkpoints
from attngrid.training.run import run_cell
from conftest import environment
from together import Stopping

CPU = torch.device("cpu")

# This module draws from every random generator at every step.
DRAWS = """
import random
import numpy as np
import torch

class Draws(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
    def forward(self, x):
        if self.training:
            x = x * (1 + 0.01 * random.random() + 0.01 * float(np.random.rand()))
            x = torch.nn.functional.dropout(x, 0.1)
        return x * self.scale
"""


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of two epochs of six steps, with dropout."""
    monkeypatch.chdir(tmp_path)
    Path("draws.py").write_text(DRAWS)
    options = {"width": 0.0625, "classes": 2}  # 289 images
    tiny["grid"][0] |= {"attentions": ["draws.py:Draws"], "seeds": [0], "options": options}
    recipe = {"epochs": 2, "batch_size": 48, "nesterov": True, "momentum": 0.9}
    tiny["recipes"]["tiny"] |= recipe
    tiny["compute"] |= {"checkpoint_share": 1.0}
    Path("study.yaml").write_text(yaml.safe_dump(tiny))
    return validate(Study, tiny, "study.yaml")


def train(cell: Cell, checkpoints: Checkpoints | None = None) -> dict[str, Any]:
    metrics, run, _ = loop.train(cell, CPU, Path("data"), checkpoints=checkpoints)
    return metrics | {"resumed": run["resumed"]}


@pytest.mark.slow
def test_a_training_stopped_after_any_step_ends_with_the_same_bits(study: Study) -> None:
    (cell,) = study.trainings.values()
    undisturbed = train(cell)
    # an epoch has six steps and one test batch: stop within it, at its end, after its test
    for after in (1, 6, 7):
        with pytest.raises(InterruptedTrainingError, match="SIGTERM"):
            train(cell, Stopping(cell, after))
        assert train(cell, Stopping(cell, 0)) == undisturbed | {"resumed": 1}, after
        Stopping(cell, 0).remove()
    assert not cell.checkpoint.exists()


def test_a_training_stopped_at_every_third_step_ends_with_the_same_bits(study: Study) -> None:
    (cell,) = study.trainings.values()
    stops = 0
    while True:
        try:
            metrics = train(cell, Stopping(cell, 3))
            break
        except InterruptedTrainingError:
            stops += 1
    assert stops == metrics["resumed"] >= 4
    assert metrics == train(cell) | {"resumed": stops}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """Two checkpoints, of steps 1 and 2."""
    found = Checkpoints(tmp_path / "c.ckpt", "d", 1.0)
    for step in (1, 2):
        found.save({"step": step}, {})
    return found


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "not a checkpoint"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    checkpoints: Checkpoints, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = checkpoints.file.read_bytes()
    checkpoints.file.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "flipped bit": content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:],
            "empty": b"",
            "not a checkpoint": b"x" * 10_000,
        }[damage]
    )
    saved = checkpoints.load()
    assert saved is not None
    assert saved["step"] == 1
    assert not checkpoints.file.exists()  # it is renamed
    (line,) = caplog.messages
    assert line.startswith(f"{checkpoints.file}: not used: damaged: ")
    # without a usable checkpoint, the training starts again
    checkpoints.previous.write_bytes(b"")
    assert checkpoints.load() is None
    assert "the training starts from its first epoch" in caplog.text


def test_a_kill_or_a_full_disk_during_a_write_keeps_the_newest_checkpoint(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(error: BaseException) -> None:
        def write(file: Path, content: bytes) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_atomically", write)
            checkpoints.save({"step": 3}, {})

    for _ in range(2):
        ends(OSError(errno.ENOSPC, "full"))
        with pytest.raises(KeyboardInterrupt):
            ends(KeyboardInterrupt())
        saved = Checkpoints(checkpoints.file, "d", 1.0).load()
        assert saved is not None
        assert saved["step"] == 2
    checkpoints.save({"step": 4}, {})
    for file, step in ((checkpoints.file, 4), (checkpoints.previous, 2)):
        assert checkpoint.read_checkpoint(file)["step"] == step


@pytest.mark.parametrize("name", ["cell", "code", "processes"])
def test_a_checkpoint_of_another_cell_other_code_or_more_processes_is_renamed(
    checkpoints: Checkpoints,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A warning says so, and the training starts from its first epoch."""
    content = checkpoints.file.read_bytes()
    ours = checkpoints._identity()
    monkeypatch.setattr(checkpoints, "_identity", lambda: ours | {name: "another"})
    assert checkpoints.load() is None
    assert (
        f"{checkpoints.file}: not used: {name}: found {ours[name]}, expected another; renamed"
        in caplog.text
    )
    assert "the training starts from its first epoch" in caplog.text
    assert checkpoints.file.with_name(f"c.ckpt.other-{name}").read_bytes() == content
    assert not checkpoints.file.exists()


def test_checkpoints_take_at_most_their_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fake clock: a step takes one second, a checkpoint half a second."""
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: clock[0])

    def write(file: Path, content: bytes) -> None:
        clock[0] += 0.5

    monkeypatch.setattr(checkpoint, "write_atomically", write)
    checkpoints = Checkpoints(tmp_path / "c.ckpt", "d", 0.01)
    for _ in range(1000):
        clock[0] += 1
        if checkpoints.due():
            checkpoints.save({}, {})
    assert 0.009 * clock[0] < checkpoints.spent <= 0.01 * clock[0]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["python", ".venv/bin/attngrid", "train", "study.json", "CELL"], True),
        (["python", ".venv/bin/attngrid", "-q", "train", "study.json", "CELL"], True),
        ([".venv/bin/attngrid", "-v", "train", "study.json", "CELL"], True),
        (["bash", "-c", "attngrid train study.json CELL 2>&1 | tee log"], False),
        (["python", ".venv/bin/attngrid", "tune", "train"], False),
    ],
)
def test_slurms_warnings_reach_trainings_only(command: list[str], expected: bool) -> None:
    """Snakemake's process forwards them to these commands."""
    assert signals._is_training(command) == expected


def start(study: Study, *, limit: tuple[int, int] | None = None) -> subprocess.Popen[str]:
    """The command that the workflow's rule runs."""
    (cell,) = study.trainings.values()
    return subprocess.Popen(
        ["attngrid", "train", "study.yaml", cell.id],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: resource.setrlimit(*limit)) if limit else None,  # type: ignore[arg-type]
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Wait for a condition; return False if the process ended first."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.01)
    return False


def runs(cell: Cell, process: subprocess.Popen[str]) -> Callable[[], bool]:
    return lambda: (read_status(cell.status) or {}).get("pid") == process.pid


def changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:  # removed at the training's end
        return 0


@pytest.mark.slow
def test_kills_at_random_moments_change_no_bit(tiny: dict[str, Any], study: Study) -> None:
    tiny["grid"][0]["options"] = {"width": 0.0625, "classes": 5}
    tiny["recipes"]["tiny"] |= {"epochs": 4, "batch_size": 32}
    Path("study.yaml").write_text(yaml.safe_dump(tiny))
    study = load_study("study.yaml")
    (cell,) = study.trainings.values()
    process = start(study)
    _, output = process.communicate()
    assert process.returncode == 0, output
    undisturbed = json.loads(cell.record.read_text())
    assert undisturbed["run"]["resumed"] == 0
    draw = random.Random(0)
    kills: list[signal.Signals] = []
    cell.record.unlink()
    while not cell.record.exists():
        before = changed(cell.checkpoint)
        process = start(study)
        alive = wait_until(runs(cell, process), process)
        if alive and draw.random() < 0.8:  # otherwise kill it before the first step
            alive = wait_until(lambda: changed(cell.checkpoint) > before, process)  # noqa: B023
        if alive and len(kills) < 6:
            time.sleep(draw.uniform(0, 0.3))
            kills.append(draw.choice([signal.SIGKILL] * 3 + [*checkpoint.SIGNALS]))
            process.send_signal(kills[-1])
        process.communicate()
    record = json.loads(cell.record.read_text())
    assert record["run"]["resumed"] >= 2  # most kills came after a checkpoint
    for block in ("config", "metrics"):
        assert record[block] == undisturbed[block], [number.name for number in kills]
    assert not cell.checkpoint.exists()
    read_record(cell.record, cell)


@pytest.mark.slow
def test_ctrl_c_in_the_rules_pipeline_leaves_a_checkpoint(
    tiny: dict[str, Any], study: Study
) -> None:
    """`tee` ends by the same Ctrl-C, so the output of the training has no reader."""
    tiny["recipes"]["tiny"] |= {"epochs": 300}
    Path("study.yaml").write_text(yaml.safe_dump(tiny))
    (cell,) = load_study("study.yaml").trainings.values()
    process = subprocess.Popen(
        f"attngrid train study.yaml {cell.id} 2>&1 | tee log",
        shell=True,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert wait_until(lambda: (read_status(cell.status) or {}).get("epoch", 0) > 1, process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while "SIGINT" not in (message := (read_status(cell.status) or {}).get("message", "")):
        assert time.monotonic() < deadline, message
        time.sleep(0.05)
    assert "the next run goes on from its checkpoint" in message
    assert (read_status(cell.status) or {})["state"] == "waiting"
    saved = Checkpoints(cell.checkpoint, cell.digest, 0.0).load()
    assert saved is not None
    assert saved["train_state"]["epoch"] > 1


def test_a_cell_that_another_process_trains_is_refused(study: Study) -> None:
    (cell,) = study.trainings.values()
    with locked(cell):
        write_status(cell.status, "running")
        with pytest.raises(BusyCellError, match=f"{cell.id}: is being trained by process "):
            run_cell(study, cell, cell.record)
    assert (read_status(cell.status) or {})["state"] == "running"
    assert not cell.record.exists()


@pytest.mark.slow
def test_a_full_disk_loses_checkpoints_and_weights_but_not_the_record(study: Study) -> None:
    """The limit of a file is 100 kB: a record fits, the model does not."""
    (cell,) = study.trainings.values()
    process = start(study, limit=(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    _, output = process.communicate()
    assert process.returncode == 0, output
    assert f"no checkpoint written: {cell.checkpoint}: File too large" in output
    assert "weights not kept" in output
    assert read_record(cell.record, cell).metrics.top1_error == train(cell)["top1_error"]
    assert not list(Path("results").rglob("*.tmp"))


@pytest.mark.slow
def test_if_the_record_cannot_be_written_the_checkpoint_is_kept(study: Study) -> None:
    (cell,) = study.trainings.values()
    cell.record.parent.mkdir(parents=True)
    other = cell.record.with_name("of-another-cell.json")
    other.write_text("{}")
    with pytest.raises(InterruptedTrainingError):
        train(cell, Stopping(cell, 3))
    process = start(study, limit=(resource.RLIMIT_FSIZE, (1000, 1000)))
    _, output = process.communicate()
    assert process.returncode == 1
    assert "File too large; existing files are unchanged" in output
    assert other.read_text() == "{}"
    assert not cell.record.exists()
    # without the limit, the training resumes and is bit-identical
    run_cell(study, cell, cell.record)
    record = read_record(cell.record, cell)
    assert record.run["resumed"] == 1
    assert record.metrics.top1_error == train(cell)["top1_error"]


def test_a_failed_write_of_a_record_elsewhere_keeps_the_weights(study: Study) -> None:
    (cell,) = study.trainings.values()
    run_cell(study, cell, cell.record)
    weights = cell.weights.read_bytes()
    Path("elsewhere").mkdir()
    with pytest.raises(WriteError, match="Is a directory"):
        run_cell(study, cell, Path("elsewhere"))
    assert cell.weights.read_bytes() == weights


def test_a_folder_that_cannot_be_written_is_named(study: Study) -> None:
    (cell,) = study.trainings.values()
    Path("results").write_text("in the way")
    with pytest.raises(WriteError, match=r"^results/tiny.*: Not a directory"):
        run_cell(study, cell, cell.record)


@pytest.mark.parametrize(
    "raised", ["torch.empty(1 << 50)", "raise torch.OutOfMemoryError('CUDA out of memory.')"]
)
def test_too_little_memory_is_an_error_that_says_what_to_change(
    tiny: dict[str, Any], study: Study, raised: str
) -> None:
    Path("large.py").write_text(
        "import torch\n"
        "class Large(torch.nn.Identity):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        f"            {raised}\n"
        "        return x\n"
    )
    tiny["grid"][0]["attentions"] = ["large.py:Large"]
    large = validate(Study, tiny, "study.yaml")
    (cell,) = large.trainings.values()
    with pytest.raises(OutOfMemoryError, match=r"batches of 48 images.*smaller batch_size"):
        run_cell(large, cell, cell.record)
    assert (read_status(cell.status) or {})["state"] == "failed"
