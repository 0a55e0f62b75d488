"""The record of a cell: what was configured, what was measured, what it ran on."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, PositiveInt, ValidationError, model_validator

from attngrid.cell import Cell
from attngrid.cluster import slurm_job
from attngrid.errors import AttngridError, RecordError
from attngrid.files import write_atomically
from attngrid.training.attempts import node
from attngrid.training.recipe import Strict

# what a training says of itself when it left neither a record nor a reason
STOPPED = "stopped before its end; the next run goes on from its last checkpoint"
LIBRARIES = ("torchvision", "numpy", "scikit-learn")
Percent = Annotated[float, Field(ge=0, le=100)]
AnyRecord = TypeVar("AnyRecord", bound="Record")


class Epoch(Strict):
    """A line of a training curve; errors in percent."""

    epoch: PositiveInt
    learning_rate: float
    train_loss: float
    train_top1_error: Percent
    test_loss: float
    test_top1_error: Percent
    test_top5_error: Percent


class Metrics(Strict):
    """The ``metrics`` block: the last epoch's figures, the best epoch's beside them."""

    top1_error: Percent
    top5_error: Percent
    best_epoch: PositiveInt
    best_top1_error: Percent
    best_top5_error: Percent
    train_images: PositiveInt
    test_images: PositiveInt
    params: PositiveInt
    curve: Annotated[tuple[Epoch, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _headline_is_the_curves(self) -> Metrics:
        last = self.curve[-1]
        if (self.top1_error, self.top5_error) != (last.test_top1_error, last.test_top5_error):
            raise ValueError("top1_error and top5_error are not the last epoch's")
        best = min(self.curve, key=lambda line: line.test_top1_error)
        found = (self.best_epoch, self.best_top1_error, self.best_top5_error)
        if found != (best.epoch, best.test_top1_error, best.test_top5_error):
            raise ValueError("best_epoch and the best errors are not the best epoch's")
        return self


class Record(Strict):
    """A measured cell. Two are equal to the bit when ``config`` and ``metrics`` are."""

    config: dict[str, Any]
    metrics: Metrics
    run: dict[str, Any]


class Trial(Record):
    """A trial's record. One that diverged has no metrics; its ``run`` says where it did."""

    metrics: Metrics | None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _metrics_or_why_not(self) -> Trial:
        if (self.metrics is None) != ("diverged" in self.run):
            raise ValueError("a trial has either metrics or, in its run, diverged")
        return self


def write_record(
    file: Path, cell: Cell, metrics: Mapping[str, Any] | None, run: Mapping[str, Any]
) -> None:
    """Write a finished cell's record, atomically; only a trial can be without metrics."""
    kind = Trial if cell.validation else Record
    record = kind.model_validate({"config": cell.config(), "metrics": metrics, "run": run})
    write_atomically(file, json.dumps(record.model_dump(mode="json"), indent=1) + "\n")


def read_record(file: Path, cell: Cell | None = None) -> Record:
    """Read a record, and with a cell check that it is that cell's.

    Raises:
        RecordError: no JSON, a field that is missing or cannot be, or another cell's; the
            message names the file, the field and what was found.
    """
    return _read(Record, file, cell)


def read_trial(file: Path, cell: Cell) -> Trial:
    """Read a trial's record; otherwise as ``read_record``."""
    return _read(Trial, file, cell)


def _read(kind: type[AnyRecord], file: Path, cell: Cell | None) -> AnyRecord:
    try:
        record = kind.model_validate(json.loads(file.read_text("utf-8")))
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        field = ".".join(map(str, item["loc"])) or "run"
        raise RecordError(f"{file}: {field}: {item['msg']}") from None
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RecordError(f"{file}: cannot be read: {error}") from None
    try:
        matches = cell is None or cell.matches(record.config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{file}: config: {type(error).__name__}: {error}") from None
    if not matches:
        raise RecordError(f"{file}: config: is not that of this cell, or not of its digest")
    return record


def read_cell(file: Path) -> tuple[Cell, Record]:
    """Read a record and the cell that its own configuration says it is of.

    Raises:
        RecordError: as ``read_record``; a user's file that is not what it was, or not there.
    """
    record = read_record(file)
    try:
        cell = Cell.from_config(record.config, study=file.absolute().parents[1].name)
    except (AttngridError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{file}: config: {error}") from None
    return cell, read_record(file, cell)


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


def now() -> str:
    """The time as UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(
    device_type: str, device_name: str, versions: Mapping[str, str | None]
) -> dict[str, Any]:
    """What a cell runs on: code and library versions, device, operating system.

    Args:
        device_type: ``cpu`` or ``cuda``.
        device_name: the processor's or the GPU's.
        versions: torch's and CUDA's own, which this module does not import.
    """
    return {
        "attngrid": version("attngrid"),
        "commit": code_version(),
        "python": platform.python_version(),
        **versions,
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
    """The commit of the checkout this package runs from, ``+changes`` if edited.

    Outside of one it is what the environment's ``ATTNGRID_COMMIT`` says, where files were copied
    without their repository; or None.
    """
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
        return os.environ.get("ATTNGRID_COMMIT") or None
    return f"{commit}+changes" if edited else commit
