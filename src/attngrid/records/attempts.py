"""What a cell's trainings took, those that were killed included: one small file a cell."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attngrid.core.files import write_atomically
from attngrid.study.cluster import slurm_job


class Attempts:
    """The file of a cell's attempts: when each began, was last heard of, and how it ended.

    Args:
        file: beside the cell's status; it stays when the cell is done.
        gpus: that the attempt holds.
    """

    def __init__(self, file: Path, gpus: int) -> None:
        self.file = file
        self.all = read_attempts(file)
        self.this: dict[str, Any] = {
            "job": slurm_job(),
            "node": node(),
            "gpus": gpus,
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "began": time.time(),
        }
        self.all.append(self.this)
        self.heard("running")

    def heard(self, state: str) -> None:
        """Note that the attempt is alive, or how it ended; no training ends for want of that."""
        self.this |= {"state": state, "heard": time.time()}
        with suppress(OSError):
            write_atomically(self.file, json.dumps(self.all) + "\n")


@contextmanager
def attempt(file: Path, gpus: int) -> Iterator[Attempts]:
    """Note an attempt, and how it ends."""
    attempts = Attempts(file, gpus)
    try:
        yield attempts
    except BaseException as error:
        attempts.heard(type(error).__name__)
        raise
    attempts.heard("done")


def read_attempts(file: Path) -> list[dict[str, Any]]:
    """What has been noted; nothing where there is no such file, or a torn one."""
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text("utf-8"))
        if isinstance(found, list):
            return found
    return []


def node() -> str:
    """The name that Slurm has for this machine, or its own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
