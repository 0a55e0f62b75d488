"""Starting a cell's processes by torchrun, and saying in one message how they ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import main as torchrun

from attngrid.core.errors import (
    AttngridError,
    ConfigError,
    EndedProcessError,
    InterruptedTrainingError,
    LostProcessError,
)
from attngrid.records.status import STOPPED, read_status, write_status
from attngrid.study.cell import Cell
from attngrid.study.schema import Study
from attngrid.training.checkpoint import SIGNALS
from attngrid.training.loop import choose_device

# After a signal the processes may end their step and write a checkpoint; then they are killed.
GRACE_S = 120


def launch(study: Study, cell: Cell, arguments: Sequence[str]) -> None:
    """Run ``attngrid ARGUMENTS`` in as many processes as the study gives a cell, to their end.

    A signal is passed on to all of them. When one of them ends with an error, so do the others.

    Raises:
        ConfigError: fewer GPUs than processes, or a ``sync_bn`` without GPUs.
        InterruptedTrainingError: a signal, after a last checkpoint.
        EndedProcessError: what the first of them that failed said, or how it was ended.
    """
    processes = study.compute.gpus
    _require_devices(study)
    # what torchrun would log is said by what is raised here
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(study.compute.threads))
    # not as options: torch 2.10 has not got the second
    others = (signal.SIGHUP, signal.SIGQUIT)
    os.environ["PET_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in (*SIGNALS, *others))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_S))
    with TemporaryDirectory(prefix="attngrid-", ignore_cleanup_errors=True) as folder:
        options = ["--standalone", "--local-addr=localhost", f"--nproc-per-node={processes}"]
        # -P: a study's folder datasets/ is nobody's package
        command = ["--no-python", sys.executable, "-P", "-m", "attngrid.cli", *arguments]
        try:
            torchrun([*options, f"--log-dir={folder}", *command])
        except SignalException as error:
            raise InterruptedTrainingError(error.sigval) from None
        except ChildFailedError as error:
            raise _ended(cell, error.failures, processes) from None


def _require_devices(study: Study) -> None:
    """Raise where the machine has not got what the study wants for a cell."""
    compute = study.compute
    if choose_device(compute.device).type == "cpu":
        if compute.sync_bn:
            raise ConfigError("compute.sync_bn: found true; there is no GPU here, and it needs one")
    elif (there := torch.cuda.device_count()) < compute.gpus:
        raise ConfigError(f"compute.gpus: found {compute.gpus}; this process sees {there} of them")


def _ended(cell: Cell, failures: Mapping[int, ProcessFailure], processes: int) -> AttngridError:
    """The failure that the others are the consequence of."""

    def order(rank: int) -> tuple[bool, int, bool]:
        code = failures[rank].exitcode
        # the launcher ends those that are left, and those that notice first end themselves
        consequence = code in (-signal.SIGTERM, LostProcessError.exit_code)
        return consequence, failures[rank].timestamp, code > 0

    rank = min(failures, key=order)
    failure = failures[rank]
    if Path(failure.error_file).is_file():
        return EndedProcessError(failure.message, failure.exitcode)
    how = f"ended with exit status {failure.exitcode}, as said above"
    if failure.exitcode < 0:
        how = f"was ended by {failure.signal_name()}"
    if failure.exitcode == -signal.SIGKILL:
        how += ", as the system does where memory is short"
        # those who lost it end at once, and the launcher kills what is left half a minute later
        if any(other.timestamp < failure.timestamp - 3 for other in failures.values()):
            how = "does not answer"
    message = (
        f"process {rank + 1} of {processes} {how}; the next run goes on from the last checkpoint"
    )
    status = read_status(cell.status)
    if status is not None and (status["state"] == "running" or status["message"] == STOPPED):
        with suppress(OSError):
            write_status(cell.status, "failed", message)
    return EndedProcessError(f"{cell.id}: {message}", max(1, failure.exitcode))
