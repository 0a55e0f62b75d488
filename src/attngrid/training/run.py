"""One training process: train a cell, report its progress, and write its record or its error."""

from __future__ import annotations

import logging
import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attngrid.core.errors import (
    AttngridError,
    DivergedError,
    InterruptedTrainingError,
    OutOfMemoryError,
    RecordError,
    WriteError,
)
from attngrid.core.hardware import peak_memory_mb
from attngrid.data.loading import class_names
from attngrid.records.environment import code_version, now
from attngrid.records.record import read_trial, write_record
from attngrid.records.sources import keep_files
from attngrid.records.staleness import code_digest
from attngrid.records.status import RUN_BEGAN, attempt, epochs_in_checkpoint, locked, write_status
from attngrid.records.tuning import with_best_hyperparameters
from attngrid.study.cell import Cell
from attngrid.study.cluster import slurm_job
from attngrid.study.plan import Planner, duration, time_left
from attngrid.study.schema import Study
from attngrid.study.tuning import TUNED_KEYS
from attngrid.training.checkpoint import Checkpoints
from attngrid.training.distributed import Processes, is_peer_failure, process_group
from attngrid.training.loop import Progress, choose_device, device_name, too_slow, train
from attngrid.training.max_runtime import deadline
from attngrid.training.weights import write_weights

logger = logging.getLogger(__name__)

REPORT_S = 60  # the shortest time between two lines of a cell

# The environment variables that change the bits of torch's, oneDNN's, MKL's and cuBLAS's results.
NUMERIC = (
    *(
        "ATEN_CPU_CAPABILITY",
        "ONEDNN_MAX_CPU_ISA",
        "DNNL_MAX_CPU_ISA",
        "ONEDNN_DEFAULT_FPMATH_MODE",
    ),
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG"),
)


def run_cell(study: Study, cell: Cell, record: Path) -> None:
    """Train a cell of a study, write its record, and keep its weights if the study does.

    With ``compute.gpus`` above 1 this is one of the processes of torchrun, of which rank 0 writes.
    If the training ends early, the cell's status says why. A trial that diverges gets a record
    without metrics. An existing record is kept. In a Slurm job, this waits for another process
    that trains the cell, because a job of a killed Snakemake may still run.

    Raises:
        BusyCellError: another process trains this cell.
        RecordError: a tuned cell without a tuning result.
        InterruptedTrainingError: a signal or the deadline ended it after a last checkpoint.
        OutOfMemoryError, WriteError: the message says what to change.
        LostProcessError: another of the processes has ended.
    """
    with _readable_errors(cell):
        cell.status.parent.mkdir(parents=True, exist_ok=True)
        if _is_done(cell, record):
            return
        device = choose_device(study.compute.device)
        with process_group(study.compute.gpus, device) as processes:
            if processes.rank:
                # rank 0 reports and writes; all processes raise these two errors together
                with _error_in_status(cell), suppress(DivergedError, InterruptedTrainingError):
                    _train(study, with_best_hyperparameters(cell), processes)
                return
            alone = processes.count == 1  # several processes would wait for each other
            with locked(cell, wait=alone and slurm_job() is not None):
                if not (alone and _is_done(cell, record)):  # another process may have finished it
                    epochs = {"epoch": epochs_in_checkpoint(cell), "epochs": cell.recipe.epochs}
                    # a Slurm job holds its GPUs, whether the training uses them or not
                    holds = device.type == "cuda" or slurm_job() is not None
                    gpus = study.gpus if holds else 0
                    with attempt(cell.status, gpus, **epochs), _error_in_status(cell):
                        _train_and_record(study, with_best_hyperparameters(cell), record, processes)


@contextmanager
def _readable_errors(cell: Cell) -> Iterator[None]:
    """Turn memory and disk errors into messages that say what to do."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{error.filename or cell.record}: {error.strerror or error}; existing files "
            "are unchanged, and the next run goes on from the last checkpoint"
        ) from error
    except (MemoryError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0]
        if "DataLoader worker (pid" in first:  # it is gone; what a reader raises begins otherwise
            raise OutOfMemoryError(
                f"{cell.id}: a process that reads images was killed: {first}. If memory or shared "
                "memory (/dev/shm) is too small, set fewer `compute: {workers: ...}`; the next run "
                "goes on from the last checkpoint"
            ) from error
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not memory and "allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(
            f"{cell.id}: out of memory at batches of {cell.recipe.batch_size} images: {first}. "
            "Train fewer cells at the same time, raise `compute: {gradient_accumulation_steps: "
            "...}`, or use a recipe with a smaller batch_size"
        ) from error


@contextmanager
def _error_in_status(cell: Cell) -> Iterator[None]:
    """Write an error to the cell's status, unless another process failed and writes its own."""
    try:
        yield
    except BaseException as error:
        state, more = "waiting" if isinstance(error, InterruptedTrainingError) else "failed", {}
        if isinstance(error, DivergedError):
            state, more = "diverged", {"epoch": error.epoch, "step": error.step}
        known = isinstance(error, AttngridError)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        with suppress(OSError):
            if not is_peer_failure(error):
                write_status(cell.status, state, message, **more)
        raise


def _is_done(cell: Cell, record: Path) -> bool:
    try:
        found = read_trial(record, cell).config["recipe"]
        chosen = with_best_hyperparameters(cell).recipe
    except RecordError:
        return False
    if any(found[name] != getattr(chosen, name) for name in TUNED_KEYS):
        return False
    logger.info("%s: %s exists; nothing was done", cell.label, record)
    return True


def _checkpoints(study: Study, cell: Cell, processes: Processes) -> Checkpoints:
    # the digest of a tuned cell does not cover its chosen hyperparameters; this one does
    digest, share = replace(cell, tuning=None).digest, study.compute.checkpoint_share
    return Checkpoints(cell.checkpoint, digest, share, processes, deadline())


def _train(
    study: Study, cell: Cell, processes: Processes, progress: Progress = lambda line, seconds: None
) -> tuple[dict[str, Any], dict[str, Any], nn.Module]:
    device = processes.device(choose_device(study.compute.device))
    with _checkpoints(study, cell, processes) as checkpoints:
        return train(
            cell,
            device,
            study.data_folder,
            compute=study.compute,
            processes=processes,
            checkpoints=checkpoints,
            progress=progress,
            download=study.data.download,
        )


def _train_and_record(study: Study, cell: Cell, record: Path, processes: Processes) -> None:
    device = processes.device(choose_device(study.compute.device))
    cells = study.trials if cell.validation else study.trainings
    label = f"[{list(cells).index(cell.id) + 1}/{len(cells)}] {cell.label}"
    if slow := too_slow(cell.precision, device):
        logger.warning("%s: %s", label, slow)
    start = time.perf_counter()
    # a record elsewhere (--record) leaves the study's files alone
    in_study = record.absolute() == cell.record.absolute()
    if in_study:
        keep_files(cell)
    run = _environment(device)  # read now, because the checkout may change during the training
    try:
        metrics, speed, model = _train(study, cell, processes, _reporter(cell, label))
        run |= {**speed, "peak_memory_mb": _peak_memory_mb(device), "cpu_s": time.process_time()}
        if study.keep.weights == "last" and in_study and not cell.validation:
            _keep_weights(cell, model, study.data_folder)
        try:
            write_record(record, cell, metrics, run)
        except OSError as error:
            if not in_study:
                raise
            logger.warning("%s: %s; removed its weights to make room", record, error.strerror)
            cell.weights.unlink(missing_ok=True)
            write_record(record, cell, metrics, run)
        result = f"top-1 error {metrics['top1_error']:.1f} %"
    except DivergedError as error:
        if not cell.validation:
            raise
        run |= {"wall_s": time.perf_counter() - start, "diverged": str(error)}
        write_record(record, cell, None, run)
        result = str(error)
    _checkpoints(study, cell, processes).remove()
    with suppress(OSError):
        write_status(cell.status, "done")
    done = sum(one.record.is_file() for one in cells.values())
    wall = duration(time.perf_counter() - start)
    left = _time_left(study, device)
    logger.info("%s: %s in %s; %d of %d cells%s", label, result, wall, done, len(cells), left)


def _time_left(study: Study, device: torch.device) -> str:
    """``, about 3 h 05 min left``: until this Snakemake run has trained all cells, if known."""
    if RUN_BEGAN not in os.environ:  # no part of a run
        return ""
    began = datetime.fromisoformat(os.environ[RUN_BEGAN]).timestamp()
    seconds = time_left(Planner(study, on_cpu=device.type == "cpu"), began)
    return f", about {duration(seconds)} left" if seconds else ""


def _reporter(cell: Cell, label: str) -> Progress:
    """A function that writes the progress after an epoch to the cell's status and to the log.

    The log gets one line in ``REPORT_S`` seconds, or every line with ``attngrid -v``.
    """
    epochs, last = cell.recipe.epochs, time.monotonic()

    def report(line: dict[str, Any], elapsed: float) -> None:
        nonlocal last
        done, error = line["epoch"], line["test_top1_error"]
        left = elapsed / done * (epochs - done)
        more = {"epoch": done, "epochs": epochs, "top1_error": error, "left_s": left}
        with suppress(OSError):  # the training continues without its status
            write_status(cell.status, "running", **more)
        is_due = time.monotonic() - last >= REPORT_S and done < epochs
        if is_due:
            last = time.monotonic()
        text = f"epoch {done}/{epochs}, top-1 error {error:.1f} %, {duration(left)} left"
        logger.log(logging.INFO if is_due else logging.DEBUG, "%s: %s", label, text)

    return report


def _keep_weights(cell: Cell, model: nn.Module, folder: Path) -> None:
    """Write the weights; if that fails, log a warning, so that the record is still written."""
    try:
        classes = class_names(cell.dataset, folder)[: cell.num_classes]
        write_weights(cell.weights, cell, model, classes)
    except Exception as error:
        with suppress(OSError):
            cell.weights.unlink()  # weights of an earlier training
        logger.warning("%s: weights not kept: %s: %s", cell.label, type(error).__name__, error)


def _environment(device: torch.device) -> dict[str, Any]:
    """The start, versions, code and device of a training, for the ``run`` block."""
    cuda = torch.cuda.is_available()
    return {
        "started": now(),
        "attngrid": version("attngrid"),
        "commit": code_version(),
        "code": code_digest(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": str(torch.backends.cudnn.version()) if cuda else None,  # type: ignore[no-untyped-call]
        "torchvision": version("torchvision"),
        **({"timm": version("timm")} if find_spec("timm") else {}),
        "numpy": version("numpy"),
        "scikit_learn": version("scikit-learn"),
        "device": device.type,
        "device_name": device_name(device),
        "platform": platform.platform(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "variables": {name: os.environ[name] for name in NUMERIC if name in os.environ},
    }


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return peak_memory_mb(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
