"""The script that test_processes.py starts by torchrun: several processes train one cell.

python -m torch.distributed.run --standalone --nproc-per-node N together.py WHAT STUDY OUTPUT
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from attngrid.core.errors import InterruptedTrainingError
from attngrid.study.cell import Cell
from attngrid.study.compute import Compute
from attngrid.study.schema import load_study
from attngrid.training import loop
from attngrid.training.checkpoint import Checkpoints
from attngrid.training.distributed import ALONE, Processes, process_group

CPU = torch.device("cpu")


class Stopping(Checkpoints):
    """Writes one checkpoint, at the call number ``after`` of ``due``, and ends the training."""

    def __init__(self, cell: Cell, after: int, processes: Processes = ALONE) -> None:
        super().__init__(cell.checkpoint, cell.digest, 1.0, processes)
        self.left = after

    def due(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.stopped_by = signal.SIGTERM
        return self.left == 0


def train(
    cell: Cell,
    processes: Processes,
    gradient_accumulation_steps: int,
    checkpoints: Checkpoints | None = None,
) -> dict[str, Any]:
    metrics, run, _ = loop.train(
        cell,
        CPU,
        Path("data"),
        checkpoints=checkpoints,
        processes=processes,
        compute=Compute(gradient_accumulation_steps=gradient_accumulation_steps),
    )
    return metrics | {"resumed": run["resumed"]}


def stopped(cell: Cell, processes: Processes, gradient_accumulation_steps: int) -> list[Any]:
    """Train without a stop, then with a stop after some steps or test batches and a resume.

    When the training goes on, all processes but the first see only the oldest checkpoint, as on a
    file system whose files reach every machine at another time.
    """
    found = [train(cell, processes, gradient_accumulation_steps)]
    oldest = cell.checkpoint.with_name(f"seen-by-{processes.rank}.ckpt")
    for after in (1, 5, 7, 9):
        try:
            train(cell, processes, gradient_accumulation_steps, Stopping(cell, after, processes))
        except InterruptedTrainingError:
            processes.wait()  # until rank 0 has written the checkpoint
            resuming = Stopping(cell, 0, processes)
            if processes.rank:
                if not oldest.is_file():
                    shutil.copy(cell.checkpoint, oldest)
                resuming.file = oldest
            found.append(train(cell, processes, gradient_accumulation_steps, resuming))
        processes.wait()
        if processes.rank == 0:
            Stopping(cell, 0, processes).remove()
    return found


def main() -> None:
    what, file, output = sys.argv[1:]
    study = load_study(file)
    (cell,) = study.trainings.values()
    with process_group(int(os.environ["WORLD_SIZE"]), CPU) as processes:
        run = {"train": train, "stopped": stopped}[what]
        found = processes.gathered(run(cell, processes, study.compute.gradient_accumulation_steps))
    threads = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    # a gloo thread that outlives the interpreter can sometimes abort the process
    assert not any("gloo" in name for name in threads), threads
    if processes.rank == 0:
        Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
