"""A training that is killed before any one of its file operations: nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from attngrid.analysis.progress import status
from attngrid.core.validation import validate
from attngrid.records.record import read_record
from attngrid.study.cell import Cell
from attngrid.study.schema import Study
from attngrid.training.loop import make_deterministic
from attngrid.training.run import run_cell

# `make fuzz` kills before each file operation, `make test` before every eleventh.
STEP = 1 if settings().max_examples > 100 else 11


def ended(study: Study, cell: Cell, kill_before: int) -> bool:
    """Train a cell in a forked process; return False if it was killed before its end.

    ``kill_before`` is the number of the file operation below results/ that is not done any more; 0
    lets the training end.
    """
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        changes = event in {"os.rename", "os.remove", "os.mkdir"}
        if event == "open" and isinstance(arguments[2], int):
            changes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if changes and "results" in str(arguments[0]):
            done += 1
            if done == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        code = 1
        try:
            sys.addaudithook(count)
            run_cell(study, cell, cell.record)
            code = 0
        finally:
            os._exit(code)
    _, code = os.waitpid(child, 0)
    assert code in (0, signal.SIGKILL)
    return code == 0


@pytest.mark.slow
@pytest.mark.fuzz
def test_a_kill_before_any_file_operation_loses_nothing(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0] |= {"attentions": ["none"], "seeds": [0]}
    tiny["grid"][0]["options"] = {"width": 0.0625, "classes": 2}  # 289 images
    tiny["recipes"]["tiny"] |= {"epochs": 2, "batch_size": 144}
    tiny["compute"] |= {"checkpoint_share": 1.0}
    tiny["keep"] = {"weights": "last"}
    study = validate(Study, tiny, "study.yaml")
    # what a training imports takes seconds, in each forked process anew
    make_deterministic(0, 1, strict=True)
    torch.optim.SGD([torch.zeros(1)])
    (cell,) = study.trainings.values()
    assert ended(study, cell, 0)
    undisturbed = json.loads(cell.record.read_text())
    kills, number = 0, 1
    while True:
        shutil.rmtree("results")
        if ended(study, cell, number):
            break
        recorded = cell.record.exists()
        if recorded:
            read_record(cell.record, cell)  # it is whole
        assert ended(study, cell, 0)
        record = json.loads(cell.record.read_text())
        for block in ("config", "metrics"):
            assert record[block] == undisturbed[block], number
        read_record(cell.record, cell)
        assert cell.weights.is_file()
        assert "1 cells: 1 done" in "\n".join(status(study)), number
        left = [
            file.name for file in Path("results").rglob("*") if file.suffix in (".tmp", ".ckpt")
        ]
        assert recorded or left == [], number
        kills, number = kills + 1, number + STEP
    assert kills * STEP > 20  # there are that many operations
