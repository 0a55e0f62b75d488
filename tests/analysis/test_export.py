"""`export`: records as logs of TensorBoard and Weights & Biases."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attngrid.cli.main import main
from attngrid.study.schema import Study
from made_up import enter_study, fake_record


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return enter_study(tiny, tmp_path, monkeypatch)


def events(file: Path) -> list[Any]:
    """Read a TensorBoard file; its format is length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, found = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_tensorboard_logs_contain_the_curves_of_the_records(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = study.cells[0]
    fake_record(cell, 40.0, 30.0)
    assert main(["export", "config/tiny.yaml", "--tensorboard", "logs"]) == 0
    (file,) = Path("logs").rglob("events.*")
    assert file.parent.name == cell.id
    curve = [
        (event.step, value.simple_value)
        for event in events(file)
        for value in event.summary.value
        if value.tag == "top1_error/test"
    ]
    assert curve == [(1, 40.0), (2, 30.0)]
    assert "1 records" in capsys.readouterr().err


def test_records_are_exported_to_wandb_offline(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb is not installed, so a fake records the calls."""
    fake_record(study.cells[0], 40.0, 30.0)
    calls: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values["top1_error/test"])),
        summary={},
        finish=lambda: calls.append("finished"),
    )

    def init(**options: Any) -> Any:
        calls.append((options["mode"], options["id"]))
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    assert main(["export", "config/tiny.yaml", "--wandb", "logs"]) == 0
    assert calls == [("offline", study.cells[0].id), (1, 40.0), (2, 30.0), "finished"]
    assert run.summary["top1_error"] == 30.0


def test_a_missing_package_is_named(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["export", "config/tiny.yaml", "--wandb", "logs"]) == 1
    assert "wandb is not installed: pip install wandb" in capsys.readouterr().err
