"""One training process: train a cell, report its progress, and write its record or its failure."""

from __future__ import annotations

import errno
import logging
import math
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attngrid.core.errors import (
    AttngridError,
    DeadlineError,
    DivergedError,
    InterruptedTrainingError,
    OutOfMemoryError,
    RecordError,
    WriteError,
)
from attngrid.core.hardware import peak_memory_mb, processor_name, processors
from attngrid.data.registry import find_dataset
from attngrid.records.environment import environment, now
from attngrid.records.record import read_trial, write_record
from attngrid.records.staleness import code_digest
from attngrid.records.status import attempt, locked, reached, read_status, write_status
from attngrid.records.tuning import with_best_hyperparameters
from attngrid.study.cell import Cell
from attngrid.study.cluster import slurm_job
from attngrid.study.plan import duration
from attngrid.study.schema import Study
from attngrid.study.tuning import TUNED_KEYS
from attngrid.training.checkpoint import Checkpoints
from attngrid.training.distributed import Processes, is_peer_failure, process_group
from attngrid.training.loop import Finished, Progress, choose_device, too_slow, train
from attngrid.training.max_runtime import deadline
from attngrid.training.weights import write_weights

logger = logging.getLogger(__name__)

# The errors of a full disk, a quota, or a limit on the size of a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_cell(study: Study, cell: Cell, record: Path) -> None:
    """Train a cell of a study, write its record, and keep its weights if the study does.

    With ``compute.gpus`` above 1 this is one of the processes that torchrun has started, and only
    the first of them writes. The training continues from the cell's checkpoint. Where it ends
    early, the cell's status says why. A trial that diverges has a record that says so.

    A record that is there already is kept. Inside a Slurm job, a cell that another process trains
    is waited for: a job of a Snakemake that was killed may still run.

    Raises:
        BusyCellError: another process trains this cell.
        RecordError: a tuned cell whose trials have not chosen yet.
        InterruptedTrainingError: a signal, or the end of the run, after a last checkpoint.
        OutOfMemoryError, WriteError: with what to do about it.
        LostProcessError: another of the processes has ended.
    """
    with _explained(cell):
        cell.status.parent.mkdir(parents=True, exist_ok=True)
        if _is_done(cell, record):
            return
        with process_group(study.compute.gpus, choose_device(study.compute.device)) as processes:
            if processes.rank:
                _take_part(study, with_best_hyperparameters(cell), processes)
                return
            alone = processes.count == 1  # several processes would wait for each other
            with locked(cell, wait=alone and slurm_job() is not None):
                if not (alone and _is_done(cell, record)):  # by another process, meanwhile
                    done = reached(cell.status).get("epoch", 0) if cell.checkpoint.is_file() else 0
                    epochs = {"epoch": done, "epochs": cell.recipe.epochs}
                    with attempt(cell.status, study.gpus, **epochs), _failure_noted(cell):
                        _train_and_record(study, with_best_hyperparameters(cell), record, processes)


@contextmanager
def _explained(cell: Cell) -> Iterator[None]:
    """Turn errors of memory and disk into messages that say what to do."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{error.filename or cell.record}: {error.strerror or error}; what was there before is "
            "there still, and the next run goes on from the last checkpoint"
        ) from error
    except (MemoryError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0]
        if "DataLoader worker" in str(error):
            raise OutOfMemoryError(
                f"{cell.id}: a process that reads images was ended: {first}. Where memory or "
                "shared memory (/dev/shm) is too small for it, take fewer `compute: {workers: "
                "...}`; the next run goes on from the last checkpoint"
            ) from error
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not memory and "allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(
            f"{cell.id}: out of memory at batches of {cell.recipe.batch_size} images: {first}. "
            "Train fewer cells beside each other, raise `compute: {gradient_accumulation_steps: "
            "...}`, or take a recipe with a smaller batch_size"
        ) from error


@contextmanager
def _failure_noted(cell: Cell) -> Iterator[None]:
    """Write to the status why there is no record; a lost process gives its own reason."""
    try:
        yield
    except BaseException as error:
        state, more = "waiting" if isinstance(error, DeadlineError) else "failed", {}
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
    logger.info("%s: %s is there; nothing was done", cell.label, record)
    return True


def _checkpoints(cell: Cell, share: float, processes: Processes) -> Checkpoints:
    # of what is trained: a tuned cell's own digest does not depend on its chosen setting
    digest = replace(cell, tuning=None).digest
    return Checkpoints(cell.checkpoint, digest, share, processes, deadline() or math.inf)


def _take_part(study: Study, cell: Cell, processes: Processes) -> None:
    """Train together with the first process, which reports and writes."""
    checkpoints = _checkpoints(cell, 0.0, processes)
    # these two errors come in all processes alike
    with _failure_noted(cell), suppress(DivergedError, InterruptedTrainingError):
        _train(study, cell, processes, checkpoints, lambda *line: None)


def _train(
    study: Study,
    cell: Cell,
    processes: Processes,
    checkpoints: Checkpoints,
    progress: Progress,
    finished: Finished | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train as the study's ``compute`` says; the ``metrics`` block, and the speed for ``run``."""
    compute = study.compute
    in_files = find_dataset(cell.dataset).target is None
    workers = min(compute.workers, max(1, processors() // processes.local_count)) if in_files else 0
    how: dict[str, Any] = {"deterministic": compute.deterministic, "workers": workers}
    if cell.micro_batches > 1 or compute.gpus > 1:
        how |= {
            "gradient_accumulation_steps": compute.gradient_accumulation_steps,
            "sync_bn": compute.sync_bn,
        }
    with checkpoints:
        metrics, speed = train(
            cell,
            processes.device(choose_device(compute.device)),
            study.data_folder,
            progress=progress,
            finished=finished,
            checkpoints=checkpoints,
            download=study.data.download,
            performance=compute.performance,
            processes=processes,
            **how,
        )
    return metrics, {**speed, **how, "processes": processes.count}


def _train_and_record(study: Study, cell: Cell, record: Path, processes: Processes) -> None:
    device = processes.device(choose_device(study.compute.device))
    cells = study.trials if cell.validation else study.trainings
    label = f"[{list(cells).index(cell.id) + 1}/{len(cells)}] {cell.label}"
    checkpoints = _checkpoints(cell, study.compute.checkpoint_share, processes)
    started, start = now(), time.perf_counter()
    # taken now: the checkout may have changed when the training ends
    run = {"started": started, **_machine(device), "code": code_digest()}
    if slow := too_slow(cell.precision, device):
        logger.warning("%s: %s", label, slow)
    trained: list[nn.Module] = []
    try:
        progress = _progress(cell, label)
        metrics, speed = _train(study, cell, processes, checkpoints, progress, trained.append)
        run |= speed | {
            "peak_memory_mb": _peak_memory_mb(device),
            "cpu_s": time.process_time(),
        }
        # a record elsewhere is somebody's own, and the study keeps the weights that it has
        ours = record.absolute() == cell.record.absolute()
        if study.keep.weights == "last" and ours and not cell.validation:
            _keep_weights(cell, trained[0])
        try:
            write_record(record, cell, metrics, run)
        except OSError as error:
            if not ours or error.errno not in FULL:
                raise
            logger.warning("%s: %s; removed its weights to make room", record, error.strerror)
            cell.weights.unlink(missing_ok=True)
            checkpoints.remove_previous()
            write_record(record, cell, metrics, run)
        result = f"done, top-1 {100 - metrics['top1_error']:.1f} %"
    except DivergedError as error:
        if not cell.validation:
            raise
        run |= {"wall_s": time.perf_counter() - start, "diverged": str(error)}
        write_record(record, cell, None, run)
        result = str(error)
    checkpoints.remove()
    with suppress(OSError):
        write_status(cell.status, "done")
    wall_s = time.perf_counter() - start
    logger.info("%s: %s in %s; %s", label, result, duration(wall_s), _remaining(cells, wall_s))


def _progress(cell: Cell, label: str) -> Progress:
    """Write each epoch to the cell's status and to the log."""
    epochs = cell.recipe.epochs

    def progress(line: dict[str, Any], elapsed: float) -> None:
        done = line["epoch"]
        accuracy, left = 100 - line["test_top1_error"], elapsed / done * (epochs - done)
        more = {"epoch": done, "epochs": epochs, "top1_accuracy": accuracy, "left_s": left}
        with suppress(OSError):  # a training goes on without its status
            write_status(cell.status, "running", **more)
        text = f"epoch {done}/{epochs}, top-1 {accuracy:.1f} %, {duration(left)} left"
        logger.info("%s: %s", label, text)

    return progress


def _keep_weights(cell: Cell, model: nn.Module) -> None:
    """Write the weights; where that fails, the record is written all the same."""
    try:
        write_weights(cell.weights, cell, model)
    except Exception as error:
        with suppress(OSError):
            cell.weights.unlink()  # those of an earlier training
        logger.warning("%s: weights not kept: %s: %s", cell.label, type(error).__name__, error)


def _remaining(cells: Mapping[str, Cell], wall_s: float) -> str:
    """How much of the grid is left, if all cells take as long as this one."""
    missing = [cell for cell in cells.values() if not cell.record.is_file()]
    text = f"{len(cells) - len(missing)} of {len(cells)} cells"
    if not missing:
        return text
    running = sum((read_status(cell.status) or {}).get("state") == "running" for cell in missing)
    # the next cell takes the place of this one
    left_s = len(missing) * wall_s / min(1 + running, len(missing))
    return f"{text}, about {duration(left_s)} left"


def _machine(device: torch.device) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    versions = {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": str(torch.backends.cudnn.version()) if cuda else None,  # type: ignore[no-untyped-call]
    }
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else processor_name()
    return environment(device.type, name, versions)


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return peak_memory_mb(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
