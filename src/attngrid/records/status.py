"""TODO."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from attngrid.core.files import write_atomically
from attngrid.records.attempts import node
from attngrid.records.environment import now
from attngrid.study.cluster import slurm_job

# what a training says of itself when it left neither a record nor a reason
STOPPED = "stopped before its end; the next run goes on from its last checkpoint"


def write_status(file: Path, state: str, message: str = "", **more: Any) -> None:
    """Say that a cell is ``running``, or why it ``diverged``, ``failed`` or is ``waiting``."""
    status = {
        "state": state,
        "message": message,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "node": node(),
        "job": slurm_job(),
        "time": now(),
        **more,
    }
    write_atomically(file, json.dumps(status) + "\n")


def read_status(file: Path) -> dict[str, Any] | None:
    """A cell's status, None without one; a running one whose process is gone has failed."""
    try:
        status: dict[str, Any] = json.loads(file.read_text("utf-8"))
        state, here = status["state"], status["host"] == socket.gethostname()
        gone = state == "running" and here and not _is_alive(status["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {**status, "state": "failed", "message": STOPPED} if gone else status


def reached(file: Path) -> dict[str, int]:
    """The ``epoch`` that a status says a cell has come to, and of how many ``epochs``."""
    said = read_status(file) or {}
    return {name: said[name] for name in ("epoch", "epochs") if isinstance(said.get(name), int)}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# The environment says when the run began that a training is of, where it is of one; a job has it
# from the Snakemake that submits it.
RUN_BEGAN = "ATTNGRID_RUN_BEGAN"


def has_diverged(file: Path) -> str:
    """What a cell's status says of a loss that has diverged in this very run, or nothing."""
    said, began = read_status(file), os.environ.get(RUN_BEGAN)
    if said is None or said["state"] != "diverged" or began is None or said["time"] < began:
        return ""
    return str(said["message"])
