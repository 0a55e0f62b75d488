"""One training process: train a cell, show where it is, leave a record or say why there is none."""

from __future__ import annotations

import errno
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from attngrid.core.errors import (
    AttngridError,
    BusyCellError,
    DeadlineError,
    DivergedError,
    InterruptedTrainingError,
    OutOfMemoryError,
    RecordError,
    WriteError,
)
from attngrid.core.hardware import peak_memory_mb, processor_name, processors
from attngrid.data.registry import find_dataset
from attngrid.data.staging import stage
from attngrid.records.attempts import Attempts, attempt
from attngrid.records.environment import environment, now
from attngrid.records.record import read_trial, write_record
from attngrid.records.status import reached, read_status, write_status
from attngrid.records.tuning import with_best_hyperparameters
from attngrid.study.cell import Cell
from attngrid.study.cluster import slurm_job
from attngrid.study.paths import scratch_folder
from attngrid.study.plan import duration
from attngrid.study.schema import Study
from attngrid.study.tuning import TUNED_KEYS
from attngrid.training.checkpoint import Checkpoints
from attngrid.training.deadline import deadline
from attngrid.training.distributed import Processes, is_peer_failure, process_group
from attngrid.training.fingerprint import fingerprint
from attngrid.training.loop import Finished, Progress, choose_device, too_slow, train
from attngrid.training.weights import write_weights

# What a full disk, a quota or a limit of a file's size says.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_cell(study: Study, cell: Cell, record: Path) -> None:
    """Train a cell of a study, keep its weights if the study does, and write its record.

    With ``compute.gpus`` above 1 this is one of several processes that torchrun has started, and
    only the first of them writes.

    Where training ends early the cell's status file says so, ``diverged`` or ``failed``, and
    the error is raised again. The next call goes on from the cell's checkpoint. A trial that
    diverges has been made: its record says so, and nothing is raised.

    A record of the cell that is there already is left as it is. Inside a Slurm job, a cell that
    another process trains is waited for: a job of a Snakemake that was killed may still run.

    Raises:
        BusyCellError: another process trains this cell.
        RecordError: a tuned cell whose trials have not chosen yet.
        InterruptedTrainingError: a signal, or the run's end, after a last checkpoint.
        OutOfMemoryError, WriteError: with what to do about it.
        LostProcessError: another of the processes has ended.
    """
    try:
        cell.status.parent.mkdir(parents=True, exist_ok=True)
        if _is_there(cell, record):
            return
        with process_group(study.compute.gpus, choose_device(study.compute.device)) as processes:
            if processes.rank:
                _take_part(study, with_best_hyperparameters(cell), processes)
                return
            alone = processes.count == 1  # several would wait for each other
            with _lock(cell, wait=alone):
                if alone and _is_there(cell, record):  # by now
                    return
                with attempt(cell.attempts, study.gpus) as this:
                    _run_cell(study, with_best_hyperparameters(cell), record, processes, this)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _out_of_memory(cell, error) from error
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise _reader_gone(cell, error) from error
        if "allocate memory" not in str(error):
            raise
        raise _out_of_memory(cell, error) from error
    except OSError as error:
        raise WriteError(
            f"{error.filename or cell.record}: {error.strerror or error}; what was there before is "
            "there still, and the next run goes on from the last checkpoint"
        ) from error


@contextmanager
def _lock(cell: Cell, *, wait: bool) -> Iterator[None]:
    """One process a cell; given back by the system, however it ends."""
    lock = FileLock(cell.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        other = read_status(cell.status) or {}
        where = f"process {other.get('pid', '?')} on {other.get('node', '?')}"
        busy = f"{cell.id}: is being trained by {where}"
        if not wait or slurm_job() is None:
            raise BusyCellError(f"{busy}; nothing was done") from None
        _say(f"{busy}; waiting for its end")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_there(cell: Cell, record: Path) -> bool:
    try:
        found = read_trial(record, cell).config["recipe"]
        chosen = with_best_hyperparameters(cell).recipe
    except RecordError:
        return False
    if any(found[name] != getattr(chosen, name) for name in TUNED_KEYS):
        return False
    _say(f"{cell.label}: {record} is there; nothing was done")
    return True


def _out_of_memory(cell: Cell, error: BaseException) -> OutOfMemoryError:
    first = str(error).strip().partition("\n")[0]
    return OutOfMemoryError(
        f"{cell.id}: out of memory at batches of {cell.recipe.batch_size} images: {first}. "
        "Train fewer cells beside each other, raise `compute: {gradient_accumulation_steps: ...}`, or take a recipe "
        "with a smaller batch_size"
    )


def _reader_gone(cell: Cell, error: BaseException) -> OutOfMemoryError:
    first = str(error).strip().partition("\n")[0]
    return OutOfMemoryError(
        f"{cell.id}: a process that reads images was ended: {first}. Where memory or /dev/shm is "
        "too small for it, take fewer `compute: {workers: ...}`; the next run goes on from the "
        "last checkpoint"
    )


def _take_part(study: Study, cell: Cell, processes: Processes) -> None:
    """Train with the first process, which says and writes what there is to."""
    digest = replace(cell, tuning=None).digest
    checkpoints = Checkpoints(cell.checkpoint, digest, 0.0, _nothing, processes, _end())
    try:
        _train(study, cell, processes, checkpoints, _nothing)
    except (DivergedError, InterruptedTrainingError):
        pass  # all of them know
    except BaseException as error:
        _note_failure(cell, error)
        raise


def _train(
    study: Study,
    cell: Cell,
    processes: Processes,
    checkpoints: Checkpoints,
    progress: Progress,
    finished: Finished | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``metrics`` and the speed, and how it was trained that is no part of the cell."""
    compute, folder = study.compute, study.data_folder
    in_files = find_dataset(cell.dataset).target is None
    workers = min(compute.workers, max(1, processors() // processes.local_count)) if in_files else 0
    if (scratch := scratch_folder()) is not None:
        folder = stage(cell.dataset, folder, scratch)
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
            folder,
            progress=progress,
            finished=finished,
            checkpoints=checkpoints,
            download=study.data.download,
            performance=compute.performance,
            processes=processes,
            **how,
        )
    return metrics, {**speed, **how, "processes": processes.count}


def _run_cell(study: Study, cell: Cell, record: Path, processes: Processes, this: Attempts) -> None:
    device = processes.device(choose_device(study.compute.device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    beside = study.trials if cell.validation else study.trainings
    position = f"[{list(beside).index(cell.id) + 1}/{len(beside)}]"
    epochs = cell.recipe.epochs

    def progress(line: dict[str, Any], elapsed: float) -> None:
        done = line["epoch"]
        accuracy, left = 100 - line["test_top1_error"], elapsed / done * (epochs - done)
        with suppress(OSError):  # no training ends for want of a status
            reached = {"epoch": done, "epochs": epochs, "top1_accuracy": accuracy, "left_s": left}
            write_status(cell.status, "running", **reached)
        this.heard("running")
        _say(
            f"{position} {cell.label}: epoch {done}/{epochs}, top-1 {accuracy:.1f} %, "
            f"{duration(left)} left"
        )

    done = reached(cell.status).get("epoch", 0) if cell.checkpoint.is_file() else 0
    write_status(cell.status, "running", epoch=done, epochs=epochs)
    share = study.compute.checkpoint_share
    # by what is trained: a tuned cell's own digest is the same whatever was chosen for it
    digest = replace(cell, tuning=None).digest
    behaviour = _fingerprint(cell)
    checkpoints = Checkpoints(cell.checkpoint, digest, share, _say, processes, _end(), behaviour)
    # taken now: the checkout may have moved on when the training ends
    machine = environment(device.type, name, _torch_versions())
    if slow := too_slow(cell.precision, device):
        _say(f"{position} {cell.label}: {slow}")
    started, start = now(), time.perf_counter()
    trained: list[nn.Module] = []
    try:
        metrics, speed = _train(study, cell, processes, checkpoints, progress, trained.append)
        run = {
            "started": started,
            **machine,
            **speed,
            "peak_memory_mb": _peak_memory_mb(device),
            "cpu_s": time.process_time(),
            "fingerprint": behaviour,
        }
        # a record elsewhere is somebody's own, and the study keeps the weights it has
        ours = record.absolute() == cell.record.absolute()
        if study.keep.weights == "last" and ours and not cell.validation:
            _keep_weights(cell, trained[0])
        try:
            write_record(record, cell, metrics, run)
        except OSError as error:
            if not ours or error.errno not in FULL:
                raise
            # what can be made again makes room for what cannot
            _say(
                f"{record}: {error.strerror}; its weights and older checkpoint are given up for it"
            )
            cell.weights.unlink(missing_ok=True)
            checkpoints.remove_previous()
            write_record(record, cell, metrics, run)
    except DivergedError as error:
        if not cell.validation:
            at = {"epoch": error.epoch, "step": error.step}
            with suppress(OSError):
                write_status(cell.status, "diverged", str(error), **at)
            raise
        wall_s = time.perf_counter() - start
        run = {"started": started, "wall_s": wall_s, **machine, "diverged": str(error)}
        write_record(record, cell, None, run)
        result = str(error)
    except BaseException as error:
        _note_failure(cell, error)
        raise
    else:
        result = f"done, top-1 {100 - metrics['top1_error']:.1f} %"
    checkpoints.remove()
    cell.status.unlink(missing_ok=True)
    _say(
        f"{position} {cell.label}: {result} in {duration(time.perf_counter() - start)}; "
        f"{_left(beside)}"
    )


def _end() -> float:
    ends = deadline()
    return math.inf if ends is None else ends.end


def _note_failure(cell: Cell, error: BaseException) -> None:
    """Say in the status why there is no record; that another process is lost is not why."""
    if is_peer_failure(error):
        return
    known = isinstance(error, AttngridError)
    state = "waiting" if isinstance(error, DeadlineError) else "failed"
    with suppress(OSError):
        message = str(error) if known else f"{type(error).__name__}: {error}"
        write_status(cell.status, state, message, **reached(cell.status))


def _fingerprint(cell: Cell) -> dict[str, Any] | None:
    """What the cell computes; None where it cannot be said, which no training ends for."""
    try:
        return fingerprint(cell)
    except Exception as error:  # a user's module may want a GPU
        _say(f"{cell.label}: no fingerprint: {type(error).__name__}: {error}")
        return None


def _keep_weights(cell: Cell, model: nn.Module) -> None:
    """Write the weights; no training's figures are lost because they cannot be."""
    try:
        write_weights(cell.weights, cell, model)
    except Exception as error:
        with suppress(OSError):
            cell.weights.unlink()  # those of an earlier training
        _say(f"{cell.label}: weights not kept: {type(error).__name__}: {error}")


def _left(cells: Mapping[str, Cell]) -> str:
    """How much of the grid is left, by the cells finished so far and those running now."""
    walls = []
    for cell in cells.values():
        with suppress(Exception):
            walls.append(read_trial(cell.record, cell).run["wall_s"])
    running = [read_status(c.status) for c in cells.values() if c.status.is_file()]
    # this cell has just ended; whatever took its place runs beside the others
    parallel = 1 + sum(status is not None and status["state"] == "running" for status in running)
    missing = len(cells) - len(walls)
    done = f"{len(walls)} of {len(cells)} cells"
    if not missing or not walls:
        return done
    seconds = missing * sum(walls) / len(walls) / min(parallel, missing)
    return f"{done}, about {duration(seconds)} left"


def _torch_versions() -> dict[str, str | None]:
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
    return {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "cudnn": None if cudnn is None else str(cudnn),
    }


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on Windows

    return peak_memory_mb(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _nothing(*heard: object) -> None:
    pass


def _say(line: str) -> None:
    # whoever reads this may have ended first, at Ctrl-C for instance
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
