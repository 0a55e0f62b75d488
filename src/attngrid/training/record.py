"""The record of a cell: what was configured, what was measured, what it ran on."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from attngrid.cell import Cell
from attngrid.errors import AttngridError
from attngrid.files import write_atomically

BLOCKS = ("config", "metrics", "run")
LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn")


def write_record(file: Path, cell: Cell, metrics: dict[str, Any], run: dict[str, Any]) -> None:
    """Write a finished cell's record: the blocks ``config``, ``metrics`` and ``run``.

    Two records are equal to the bit when ``config`` and ``metrics`` are.
    """
    record = {"config": cell.config(), "metrics": metrics, "run": run}
    # no NaN: JSON has none, and no finished cell has one
    write_atomically(file, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_record(file: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        AttngridError: no JSON, or not the three blocks; the message names the file.
    """
    try:
        record = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AttngridError(f"{file}: cannot be read as a record: {error}") from None
    if not isinstance(record, dict) or set(record) != set(BLOCKS):
        raise AttngridError(f"{file}: a record has the blocks {', '.join(BLOCKS)}")
    return record


def write_status(file: Path, state: str, message: str = "", **more: Any) -> None:
    """Say that a cell is ``running``, or that it ``diverged`` or ``failed`` and why."""
    status = {
        "state": state,
        "message": message,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "time": now(),
        **more,
    }
    write_atomically(file, json.dumps(status) + "\n")


def read_status(file: Path) -> dict[str, Any] | None:
    """A cell's status, None without one; a running one whose process is gone has failed."""
    try:
        status: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    here = status["host"] == socket.gethostname()
    if status["state"] == "running" and here and not _is_alive(status["pid"]):
        return {**status, "state": "failed", "message": "stopped before its end"}
    return status


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def now() -> str:
    """The time as UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(device_type: str, device_name: str) -> dict[str, Any]:
    """What a cell ran on: code and library versions, device, operating system."""
    return {
        "attngrid": version("attngrid"),
        "commit": code_version(),
        "python": platform.python_version(),
        **{name.replace("-", "_"): _version(name) for name in LIBRARIES},
        "device": device_type,
        "device_name": device_name,
        "platform": platform.platform(),
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def code_version() -> str | None:
    """The commit of the checkout this package runs from, ``+changes`` if edited; None outside."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
        return done.stdout.strip()

    try:
        # an installed copy inside somebody's repository is not that repository's code
        git("ls-files", "--error-unmatch", Path(__file__).name)
        commit, edited = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "..")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if edited else commit


def processor_name() -> str:
    """The CPU's model, as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
