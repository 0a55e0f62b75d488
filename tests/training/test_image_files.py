"""Training on image files: the command, checkpoints, damaged files and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from attngrid.cli.main import main
from attngrid.core.errors import InterruptedTrainingError, OutOfMemoryError
from attngrid.core.validation import validate
from attngrid.data import folders
from attngrid.data.stream import DecodedBatches
from attngrid.records.status import read_status
from attngrid.study.compute import Compute
from attngrid.study.recipe import shipped_recipes
from attngrid.study.schema import Study
from attngrid.training import loop
from attngrid.training.checkpoint import Checkpoints
from attngrid.training.run import run_cell
from conftest import environment
from data.test_images import write_pictures

CPU = torch.device("cpu")
IMAGENET = shipped_recipes()["imagenet_100ep"]


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of two epochs on a few images; an epoch takes half a second."""
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("birds"))
    return birds(tiny, workers=0)


def birds(tiny: dict[str, Any], workers: int, epochs: int = 2) -> Study:
    tiny["grid"][0] |= {
        "dataset": "imagefolder:birds",
        "backbones": ["mobilenet_v2"],
        "attentions": ["none"],
        "seeds": [0],
        "options": {"width": 0.0625},
    }
    tiny["recipes"]["tiny"] |= {
        "epochs": epochs,
        "batch_size": 8,
        "train_transforms": [t.model_dump() for t in IMAGENET.train_transforms],
        "test_transforms": [t.model_dump() for t in IMAGENET.test_transforms],
    }
    tiny["compute"] |= {"workers": workers, "checkpoint_share": 0}
    Path("study.yaml").write_text(yaml.safe_dump(tiny))
    return validate(Study, tiny, "study.yaml")


def trained(study: Study, checkpoints: Checkpoints | None = None, workers: int = 0) -> Any:
    (cell,) = study.trainings.values()
    compute = Compute(workers=workers)
    return loop.train(cell, CPU, study.data_folder, checkpoints=checkpoints, compute=compute)[0]


@pytest.mark.slow
def test_an_image_folder_is_trained_by_the_command(study: Study) -> None:
    (cell,) = study.trainings.values()
    assert main(["train", "study.yaml", cell.id]) == 0
    record = json.loads(cell.record.read_text())
    assert (record["metrics"]["train_images"], record["metrics"]["test_images"]) == (25, 10)
    assert main(["evaluate", str(cell.record)]) == 0


@pytest.mark.slow
def test_a_training_on_files_resumes_within_an_epoch_bit_identically(study: Study) -> None:
    (cell,) = study.trainings.values()
    expected = trained(study)

    class Once(Checkpoints):
        """Stops at the second epoch's second step."""

        saved = 0

        def due(self) -> bool:
            self.saved += 1
            return self.saved == 6

        def save(self, *state: dict[str, Any]) -> None:
            self.stopped_by = signal.SIGTERM
            super().save(*state)

    with pytest.raises(InterruptedTrainingError):
        trained(study, Once(cell.checkpoint, cell.digest, 1.0))
    again = trained(study, Checkpoints(cell.checkpoint, cell.digest, 0.0), workers=2)
    assert again == expected


def train_images() -> Iterator[Path]:
    yield from sorted(Path("birds/train").rglob("*.jpg"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_deleted_during_a_training_is_named(
    tiny: dict[str, Any],
    study: Study,
    workers: int,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = birds(tiny, workers)
    file, list_files = next(train_images()), folders.list_files

    def list_and_remove(name: str, folder: Path) -> Any:
        found = list_files(name, folder)
        file.unlink()
        return found

    monkeypatch.setattr(folders, "list_files", list_and_remove)
    (cell,) = study.trainings.values()
    earlier = cell.record.parent / "another.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("what was there")
    assert main(["train", "study.yaml", cell.id]) == 1
    error = capfd.readouterr().err
    assert f"{file}: cannot be read: FileNotFoundError" in error
    assert "Traceback" not in error
    assert json.loads(cell.status.read_text())["state"] == "failed"
    assert earlier.read_text() == "what was there"
    assert not cell.record.exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_corrupt_jpeg_stops_the_training_and_is_named(
    study: Study, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "study.yaml"]) == 0
    file = next(train_images())
    content = file.read_bytes()
    # the quick check sees only the ends of a file, which are intact
    middle = len(content) // 2
    broken = content[:100] + b"\0" * 50 if damage == "noise" else content[:middle]
    file.write_bytes(broken)
    (cell,) = study.trainings.values()
    assert main(["train", "study.yaml", cell.id]) == 1
    error = capfd.readouterr().err
    assert f"{file}: cannot be read: " in error
    assert "attngrid prepare --thorough" in error
    assert "Traceback" not in error


def test_a_killed_reading_process_is_an_error_that_says_what_to_change(
    tiny: dict[str, Any], study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system kills such a process when memory runs out."""
    study, training = birds(tiny, workers=2), os.getpid()
    read = DecodedBatches._read

    def killed(*arguments: Any) -> Any:
        if os.getpid() != training:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(*arguments)

    monkeypatch.setattr(DecodedBatches, "_read", killed)
    (cell,) = study.trainings.values()
    with pytest.raises(OutOfMemoryError, match=r"reads images was killed: .*fewer .*workers"):
        run_cell(study, cell, cell.record)
    assert (read_status(cell.status) or {})["state"] == "failed"


def test_what_a_reading_process_raises_is_shown_as_it_is(
    tiny: dict[str, Any], study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*arguments: Any) -> Any:
        raise RuntimeError("stack expects each tensor to be equal size")

    monkeypatch.setattr(DecodedBatches, "__getitem__", raises)
    (cell,) = (study := birds(tiny, workers=2)).trainings.values()
    with pytest.raises(RuntimeError, match="equal size") as raised:
        run_cell(study, cell, cell.record)
    assert not isinstance(raised.value, OutOfMemoryError)
    assert "/dev/shm" not in str(raised.value)


@pytest.mark.slow
def test_a_training_with_readers_resumes_after_each_signal(
    tiny: dict[str, Any], study: Study
) -> None:
    """Ctrl-C and a batch system signal every process; after a kill, the next run can start."""
    (cell,) = birds(tiny, workers=2, epochs=30).trainings.values()

    def start(epoch: int) -> subprocess.Popen[str]:
        """A training that has finished an epoch in this process, and epoch number ``epoch``."""
        process = subprocess.Popen(
            ["attngrid", "train", "study.yaml", cell.id],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for _ in range(1200):
            status = read_status(cell.status) or {}
            trained = status.get("pid") == process.pid and "left_s" in status
            if trained and status["epoch"] >= epoch:
                return process
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        raise AssertionError("did not reach this epoch in a minute")

    for epoch, number in enumerate((signal.SIGINT, signal.SIGUSR1), 1):
        process = start(epoch)
        os.killpg(process.pid, number)
        _, output = process.communicate(timeout=60)
        assert process.returncode == 128 + number, output
        assert "goes on from its checkpoint" in output.splitlines()[-1]
    process = start(3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    following = start(3)  # immediately, while readers of the killed training may still run
    os.killpg(following.pid, signal.SIGTERM)
    following.communicate(timeout=60)
    assert following.returncode == 128 + signal.SIGTERM
