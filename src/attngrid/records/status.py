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
from glob import escape
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, get_args

from pydantic import BaseModel, Field

from attngrid.core.errors import BusyCellError, WriteError
from attngrid.core.files import write_atomically
from attngrid.records.environment import now
from attngrid.study.cell import Cell
from attngrid.study.cluster import slurm_job

logger = logging.getLogger(__name__)

State = Literal["done", "running", "waiting", "failed", "diverged"]
STATES = get_args(State)
# The message for a process that ended without a record and without an error.
STOPPED = "stopped before its end; the next run goes on from its last checkpoint"
# The environment variable with the time at which the current Snakemake run began.
RUN_BEGAN = "ATTNGRID_RUN_BEGAN"
RETRY_S = 1.0  # seconds between two attempts to lock
_held: set[BinaryIO] = set()  # the files of this process's locks


class Attempt(BaseModel, strict=True, allow_inf_nan=False):
    """What the readers of an attempt need of it."""

    began: float
    heard: float
    gpus: int
    state: str


class Status(BaseModel, strict=True):
    """What the readers of a status file need of it."""

    state: State
    message: str
    pid: Annotated[int, Field(ge=0, lt=2**31)] = 0
    time: str = ""
    epoch: int = 0
    attempts: list[Attempt] = []


def write_status(file: Path, state: str, message: str = "", **more: Any) -> None:
    """Write a cell's state, one of ``STATES``; keep its attempts and the epoch it has reached.

    The message says why the cell has no record. ``more`` may be ``epoch``, ``epochs``,
    ``top1_error`` and ``left_s``, the estimated seconds to the end.
    """
    old, process = _read(file) or {}, _process()
    attempts = old.get("attempts", [])
    if attempts and {"state": "running", **process}.items() <= attempts[-1].items():
        attempts[-1]["heard"] = time.time()
    status = {"state": state, "message": message, **process, "time": now()}
    status |= {name: old[name] for name in ("epoch", "epochs") if name in old}
    write_atomically(file, json.dumps(status | more | {"attempts": attempts}) + "\n")


def read_status(file: Path) -> dict[str, Any] | None:
    """Read a cell's status; None if there is no readable file.

    ``running`` becomes ``failed`` if the process ran on this machine and has ended.
    """
    status = _read(file)
    if status is None or status["state"] != "running":
        return status
    ended = status.get("host") == socket.gethostname() and not _is_alive(status.get("pid", 0))
    return {**status, "state": "failed", "message": STOPPED} if ended else status


def read_attempts(file: Path) -> list[dict[str, Any]]:
    """The attempts in a cell's status file, the oldest first.

    Each has its start ``began`` and its last sign of life ``heard`` in seconds since 1970,
    ``gpus``, its process, and a ``state``: ``running``, ``done`` or the name of an error.
    """
    attempts: list[dict[str, Any]] = (_read(file) or {}).get("attempts", [])
    return attempts


def reached(file: Path) -> int:
    """The epoch that a cell has reached, according to its status."""
    return int((_read(file) or {}).get("epoch", 0))


def epochs_in_checkpoint(cell: Cell) -> int:
    """The number of epochs that the cell's checkpoint saves."""
    return reached(cell.status) if cell.checkpoint.is_file() else 0


def _read(file: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError, RecursionError):
        status: dict[str, Any] = json.loads(file.read_text("utf-8"))
        Status.model_validate(status)
        return status
    return None


@contextmanager
def attempt(file: Path, gpus: int, **more: Any) -> Iterator[None]:
    """Add an attempt to a cell's status, set its state to ``running``, and note how it ends.

    ``gpus`` is the number of GPUs it holds; ``more`` is as for ``write_status``. The training
    continues if its status cannot be written.
    """
    began = time.time()
    this = {**_process(), "gpus": gpus, "devices": os.environ.get("CUDA_VISIBLE_DEVICES")}
    this |= {"began": began, "heard": began, "state": "running"}
    with suppress(OSError):
        _write_attempts(file, [*read_attempts(file), this])
        write_status(file, "running", **more)
    state = "done"
    try:
        yield
    except BaseException as error:
        state = type(error).__name__
        raise
    finally:
        this |= {"state": state, "heard": time.time()}
        others = [one for one in read_attempts(file) if one["began"] != began]
        with suppress(OSError):
            _write_attempts(file, [*others, this])


def merge_attempts(file: Path, other: Path) -> None:
    """Add to a cell's status the attempts of another status file of the cell."""
    attempts = {one["began"]: one for one in (*read_attempts(other), *read_attempts(file))}
    if attempts:
        _write_attempts(file, [attempts[began] for began in sorted(attempts)])


def _write_attempts(file: Path, attempts: list[dict[str, Any]]) -> None:
    status = _read(file) or {"state": "waiting", "message": ""}
    write_atomically(file, json.dumps(status | {"attempts": attempts}) + "\n")


def _process() -> dict[str, Any]:
    host = socket.gethostname()
    # Slurm's name for the machine, if it has one
    node = os.environ.get("SLURMD_NODENAME") or host
    return {"pid": os.getpid(), "host": host, "node": node, "job": slurm_job()}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # another user's process
    return True


def has_diverged(file: Path) -> str:
    """The message of a cell whose loss diverged since the current run began; otherwise empty."""
    status, began = read_status(file), os.environ.get(RUN_BEGAN)
    this_run = began is not None and (status or {}).get("time", "") >= began
    return status["message"] if status and status["state"] == "diverged" and this_run else ""


@contextmanager
def locked(cell: Cell, *, wait: bool = False) -> Iterator[None]:
    """Hold a cell's lock, so that only one process trains it or imports its record.

    The operating system releases the lock when the process ends, even if it is killed. With
    ``wait``, log a message and wait for the lock.

    Raises:
        BusyCellError: another process holds the lock, and ``wait`` is false.
        WriteError: the file system has no locks.
    """
    cell.lock.parent.mkdir(parents=True, exist_ok=True)
    reported = False
    while True:
        # open it for each try: a lock on a removed file excludes no other process
        with cell.lock.open("ab") as stream:
            if _try_lock(stream.fileno(), cell.lock):
                _held.add(stream)
                try:
                    _remove_unfinished(cell)
                    yield
                finally:
                    _held.remove(stream)
                return
        if not reported:
            status = read_status(cell.status) or {}
            process = f"process {status.get('pid', '?')} on {status.get('node', '?')}"
            busy = f"{cell.id}: is being trained by {process}"
            if not wait:
                raise BusyCellError(f"{busy}; nothing was done")
            remedy = f"If that process does not exist any more, remove {cell.lock}"
            logger.info("%s; waiting until it ends. %s", busy, remedy)
            reported = True
        time.sleep(RETRY_S)


def _let_go_in_child() -> None:
    """Close the inherited locks in a forked process.

    A training's readers would hold them for seconds after the training itself was killed. The
    parent's lock stays.
    """
    for stream in _held:
        stream.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


def _remove_unfinished(cell: Cell) -> None:
    """Remove what killed writers of this cell left; whole checkpoints, in part."""
    for file in (cell.checkpoint, cell.weights, cell.record, cell.status):
        for temporary in file.parent.glob(f".{escape(file.name)}.*.tmp"):
            with suppress(OSError):
                temporary.unlink()


def _try_lock(descriptor: int, file: Path) -> bool:
    """Try to take a lock; False where another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise WriteError(
            f"{file}: this file system has no file locks ({error.strerror}), which stop two "
            "processes from training one cell; mount it with locks (NFS 4, Lustre with `flock`), "
            "or name another folder as `results` in site.yaml"
        ) from error
    return True
