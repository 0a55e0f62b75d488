"""Reserving GPUs of a machine."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from attngrid.analysis.frames import collect, unfinished
from attngrid.analysis.progress import used
from attngrid.cli.main import main
from attngrid.core.errors import AttngridError, ConfigError
from attngrid.core.validation import validate
from attngrid.records.status import locked, read_attempts, read_status, write_status
from attngrid.study.schema import Study, load_study
from attngrid.training import run
from attngrid.training.devices import claimed
from attngrid.training.launch import require_device


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this user's locks on a machine with two GPUs."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return tmp_path / f"attngrid-gpus-{os.getuid()}"


def test_each_claim_has_a_gpu_of_its_own_while_one_is_free(locks: Path) -> None:
    with claimed(1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
        os.environ["CUDA_VISIBLE_DEVICES"] = "3,GPU-8"  # as another process sees them
        with claimed(1):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-8"


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@NO_GPU
@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ({"device": "cuda"}, "device: found 'cuda'; torch .* finds no GPU here"),
        ({"device": "cuda", "gpus": 2}, "device: found 'cuda'; torch .* finds no GPU here"),
        ({"sync_bn": True, "gpus": 2}, "compute.sync_bn: found true; there is no GPU here"),
    ],
)
def test_a_training_without_its_gpus_leaves_a_status(
    tiny: dict[str, Any],
    compute: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(json.dumps(tiny | {"compute": compute}))
    study = load_study("tiny.yaml")
    with pytest.raises(ConfigError, match=message):
        require_device(study.compute)
    cell, *_ = study.trainings.values()
    assert main(["train", "tiny.yaml", cell.id]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"attngrid: error: {message}", line)
    status = read_status(cell.status) or {}
    assert status["state"] == "failed"
    assert re.match(message, status["message"])
    assert unfinished(collect(study)) == [f"{cell.id}: failed: {status['message']}"]


def test_a_cell_that_another_process_trains_keeps_its_status(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    Path("tiny.yaml").write_text(json.dumps(tiny))
    cell, *_ = load_study("tiny.yaml").trainings.values()
    write_status(cell.status, "running", epoch=3)
    before = cell.status.read_bytes()
    with locked(cell):
        assert main(["train", "tiny.yaml", cell.id]) == 1
    assert cell.status.read_bytes() == before


@pytest.mark.parametrize(("has_gpu", "gpus"), [(False, 0), (True, 1)])
def test_only_trainings_on_a_gpu_count_gpu_hours(
    tiny: dict[str, Any],
    has_gpu: bool,
    gpus: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(run, "_train_and_record", lambda *arguments: None)
    study = validate(Study, tiny | {"compute": {"device": "auto"}}, "tiny.yaml")
    cell, *_ = study.trainings.values()
    run.run_cell(study, cell, cell.record)
    assert [attempt["gpus"] for attempt in read_attempts(cell.status)] == [gpus]
    assert ("GPU hours" in used(study)) == has_gpu


@pytest.mark.parametrize(
    ("device", "options", "kind"),
    [
        ("cpu", [], "CPU"),
        ("auto", [], "CPU"),
        ("cuda", [], "GPU"),
        ("auto", ["--gpu", "H100"], "GPU"),
    ],
)
def test_a_plan_for_a_machine_without_a_gpu_has_cpu_hours(
    tiny: dict[str, Any],
    device: str,
    options: list[str],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # without nvidia-smi and sbatch
    Path("tiny.yaml").write_text(json.dumps(tiny | {"compute": {"device": device}}))
    assert main(["plan", "tiny.yaml", *options]) == 0
    found = capsys.readouterr().out
    assert f"; about 0 {kind} hours left" in found
    assert ("GPU" in found) == (kind == "GPU")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_lock_folder_of_another_user_is_refused(locks: Path) -> None:
    locks.mkdir()
    os.chown(locks, 12345, -1)
    with pytest.raises(AttngridError, match="found user 12345 as its owner"), claimed(1):
        pass


def test_gpus_are_numbered_as_nvidia_smi_does(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise another GPU than the reserved one trains, and its name in the record is wrong."""
    with claimed(1):
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    message = "CUDA_DEVICE_ORDER: found 'FASTEST_FIRST'; set PCI_BUS_ID or unset it"
    with pytest.raises(ConfigError, match=message), claimed(1):
        pass
