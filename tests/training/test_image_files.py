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
    """Two epochs of a few pictures, at half a second each."""
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
def test_a_training_on_files_goes_on_from_the_middle_of_an_epoch_to_the_bit(study: Study) -> None:
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
def test_a_file_that_vanishes_while_training_is_named(
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
def test_a_corrupt_jpeg_ends_the_training_by_name(
    study: Study, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "study.yaml"]) == 0
    file = next(train_images())
    content = file.read_bytes()
    # the ends are whole, which is all that a quick check sees
    middle = len(content) // 2
    broken = content[:100] + b"\0" * 50 if damage == "noise" else content[:middle]
    file.write_bytes(broken)
    (cell,) = study.trainings.values()
    assert main(["train", "study.yaml", cell.id]) == 1
    error = capfd.readouterr().err
    assert f"{file}: cannot be read: " in error
    assert "attngrid prepare --thorough" in error
    assert "Traceback" not in error


def test_a_reading_process_that_is_killed_says_what_to_change(
    tiny: dict[str, Any], study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system does when memory is short."""
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


@pytest.mark.slow
def test_signals_to_a_training_and_its_readers_cost_nothing(
    tiny: dict[str, Any], study: Study
) -> None:
    """Ctrl-C and a batch system tell every process; a kill leaves the next run free."""
    (cell,) = birds(tiny, workers=2, epochs=30).trainings.values()

    def start(epoch: int) -> subprocess.Popen[str]:
        """A training that has come to the end of an epoch, of one that it has trained itself."""
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
        raise AssertionError("did not come that far in a minute")

    for epoch, number in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGUSR1), 1):
        process = start(epoch)
        os.killpg(process.pid, number)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 128 + number, told
        assert "goes on from its checkpoint" in told.splitlines()[-1]
    process = start(4)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    following = start(4)  # at once, with the readers of the killed one perhaps still there
    os.killpg(following.pid, signal.SIGTERM)
    following.communicate(timeout=60)
    assert following.returncode == 128 + signal.SIGTERM
