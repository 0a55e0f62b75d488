"""One status file and one lock for each cell: its state, and every attempt to train it."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attngrid.core.errors import BusyCellError, WriteError
from attngrid.core.files import write_atomically
from attngrid.records.environment import now
from attngrid.study.cell import Cell
from attngrid.study.cluster import slurm_job

logger = logging.getLogger(__name__)

STATES = ("done", "running", "waiting", "failed", "diverged")
# The message of a training that ended without a record and without a reason.
STOPPED = "stopped before its end; the next run goes on from its last checkpoint"
# The environment variable with the time at which the current Snakemake run began.
RUN_BEGAN = "ATTNGRID_RUN_BEGAN"
# Seconds between two tries to take a lock, and between two messages about it.
RETRY_S, REMIND_S = 1.0, 60.0


def write_status(file: Path, state: str, message: str = "", **more: Any) -> None:
    """Write a cell's state; its attempts, and the epoch that it has reached, are kept.

    Args:
        file: ``Cell.status``.
        state: one of ``STATES``.
        message: why the cell has no record.
        more: for instance ``epoch`` and ``epochs``, ``top1_accuracy`` and ``left_s``.
    """
    _write(file, read_attempts(file), state, message, **{**reached(file), **more})


def _write(
    file: Path, attempts: list[dict[str, Any]], state: str, message: str, **more: Any
) -> None:
    if attempts and _is_of_this_process(attempts[-1]):
        attempts[-1]["heard"] = time.time()
    status = {
        "state": state,
        "message": message,
        **_process(),
        "job": slurm_job(),
        "time": now(),
        **more,
        "attempts": attempts,
    }
    write_atomically(file, json.dumps(status) + "\n")


def read_status(file: Path) -> dict[str, Any] | None:
    """Read a cell's status.

    Returns:
        None without a readable status file. A status that says ``running``, of a process of this
        machine that has ended, is returned as ``failed``.
    """
    status = _read(file)
    if status is None:
        return None
    here = status.get("host") == socket.gethostname()
    if status["state"] == "running" and here and not _is_alive(status.get("pid")):
        return {**status, "state": "failed", "message": STOPPED}
    return status


def read_attempts(file: Path) -> list[dict[str, Any]]:
    """The attempts in a cell's status file, the oldest first."""
    return (_read(file) or {}).get("attempts", [])


def reached(file: Path) -> dict[str, int]:
    """The ``epoch`` that a cell has reached, and its ``epochs``, as far as its status has them."""
    status = _read(file) or {}
    return {name: status[name] for name in ("epoch", "epochs") if isinstance(status.get(name), int)}


def merge_attempts(file: Path, other: Path) -> None:
    """Add the attempts of another status file of a cell; its state is taken where there is none."""
    there, here = _read(other), _read(file)
    if there is not None and there.get("attempts"):
        attempts = {one["began"]: one for one in (*there["attempts"], *read_attempts(file))}
        merged = (here or there) | {"attempts": [attempts[began] for began in sorted(attempts)]}
        write_atomically(file, json.dumps(merged) + "\n")


def _read(file: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError, RecursionError):
        status = json.loads(file.read_text("utf-8"))
        if isinstance(status, dict) and _is_status(status):
            return status
    return None


def _is_status(status: dict[str, Any]) -> bool:
    attempts = status.get("attempts", [])
    return (
        status.get("state") in STATES
        and isinstance(status.get("message"), str)
        and isinstance(attempts, list)
        and all(isinstance(one, dict) and _is_attempt(one) for one in attempts)
    )


def _is_attempt(attempt: dict[str, Any]) -> bool:
    numbers = (attempt.get(name) for name in ("began", "heard", "gpus"))
    return isinstance(attempt.get("state"), str) and all(
        isinstance(number, int | float) for number in numbers
    )


@contextmanager
def attempt(file: Path, gpus: int, **more: Any) -> Iterator[None]:
    """Add an attempt to a cell's status, which says ``running``; note how the attempt ends.

    Args:
        file: ``Cell.status``.
        gpus: how many GPUs the attempt holds.
        more: as for ``write_status``.
    """
    began = time.time()
    attempts = read_attempts(file)
    attempts.append(
        {
            **_process(),
            "job": slurm_job(),
            "gpus": gpus,
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "began": began,
            "heard": began,
            "state": "running",
        }
    )
    with suppress(OSError):  # a training goes on without its status
        _write(file, attempts, "running", "", **more)
    try:
        yield
    except BaseException as error:
        _end_attempt(file, type(error).__name__)
        raise
    _end_attempt(file, "done")


def _end_attempt(file: Path, state: str) -> None:
    """Note how this process's attempt ended; a full disk ends no training."""
    status = _read(file)
    if status is not None and status.get("attempts"):
        status["attempts"][-1] |= {"state": state, "heard": time.time()}
        with suppress(OSError):
            write_atomically(file, json.dumps(status) + "\n")


def _process() -> dict[str, Any]:
    host = socket.gethostname()
    # Slurm's name for the machine, if it has one
    node = os.environ.get("SLURMD_NODENAME") or host
    return {"pid": os.getpid(), "host": host, "node": node}


def _is_of_this_process(attempt: dict[str, Any]) -> bool:
    found = attempt.get("pid"), attempt.get("host"), attempt["state"]
    return found == (os.getpid(), socket.gethostname(), "running")


def _is_alive(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def has_diverged(file: Path) -> str:
    """The message of a cell whose loss diverged since the current run began; otherwise empty."""
    status, began = read_status(file), os.environ.get(RUN_BEGAN)
    if status is None or status["state"] != "diverged" or began is None or status["time"] < began:
        return ""
    return str(status["message"])


@contextmanager
def locked(cell: Cell, *, wait: bool = False) -> Iterator[None]:
    """Hold a cell's lock, so that one process trains it or files its record.

    The operating system releases the lock when the process ends, however it ends.

    Args:
        cell: whose lock it is.
        wait: until the other process releases it; a line every minute says so.

    Raises:
        BusyCellError: another process holds it, and ``wait`` is false.
        WriteError: the file system has no locks.
    """
    cell.lock.parent.mkdir(parents=True, exist_ok=True)
    with cell.lock.open("ab") as stream:
        silent_s = REMIND_S
        while not _is_taken(stream.fileno(), cell.lock):
            status = read_status(cell.status) or {}
            process = f"process {status.get('pid', '?')} on {status.get('node', '?')}"
            busy = f"{cell.id}: is being trained by {process}"
            if not wait:
                raise BusyCellError(f"{busy}; nothing was done")
            if silent_s >= REMIND_S:
                logger.info(
                    "%s; waiting for its end. If that process is gone: remove %s", busy, cell.lock
                )
                silent_s = 0.0
            time.sleep(RETRY_S)
            silent_s += RETRY_S
        yield


def _is_taken(descriptor: int, file: Path) -> bool:
    """Try to take a lock; False where another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise WriteError(
            f"{file}: this file system has no file locks ({error.strerror}), which keep two "
            "processes from training one cell; mount it with locks (NFS 4, Lustre with `flock`), "
            "or name another folder as `results` in site.yaml"
        ) from error
    return True
