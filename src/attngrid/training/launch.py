"""Start the processes of a cell by torchrun, and report their end in one message."""

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
from attngrid.study.compute import Compute
from attngrid.study.schema import Study
from attngrid.training.distributed import LAUNCHER
from attngrid.training.loop import choose_device
from attngrid.training.signals import SIGNALS

# Seconds that the processes have, after a signal, to end their step and write a checkpoint.
GRACE_S = 120


def require_device(compute: Compute) -> None:
    """Check that this machine has the GPUs that a study names.

    Raises:
        ConfigError: ``device: cuda`` or ``sync_bn`` without a GPU, or fewer GPUs than processes.
    """
    device, gpus = choose_device(compute.device), torch.cuda.device_count()
    if device.type == "cuda" and gpus < compute.gpus:
        raise ConfigError(f"compute.gpus: found {compute.gpus}; this process sees {gpus} GPUs")
    if compute.sync_bn and device.type != "cuda":
        raise ConfigError("compute.sync_bn: found true; there is no GPU here, and it needs one")


def launch(study: Study, cell: Cell, arguments: Sequence[str]) -> None:
    """Run ``attngrid ARGUMENTS`` in ``compute.gpus`` processes, and wait for their end.

    Every process receives a signal to this one. If one process fails, the others end, too.

    Raises:
        ConfigError: as ``require_device``.
        InterruptedTrainingError: a signal ended the training after a last checkpoint.
        EndedProcessError: a process failed; with its message, or how it ended.
    """
    compute = study.compute
    require_device(compute)
    # The errors raised below replace torchrun's own messages.
    logging.disable(logging.CRITICAL)
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(compute.threads))
    # Environment variables, because torchrun of torch 2.10 lacks an option for the second one.
    handled = (*SIGNALS, signal.SIGHUP, signal.SIGQUIT)
    os.environ["PET_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in handled)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_S))
    with TemporaryDirectory(prefix="attngrid-", ignore_cleanup_errors=True) as folder:
        options = ["--standalone", "--local-addr=localhost", f"--nproc-per-node={compute.gpus}"]
        # With -P, Python does not import packages from the study's folder.
        command = ["--no-python", sys.executable, "-P", "-m", "attngrid.cli", *arguments]
        try:
            torchrun([*options, f"--log-dir={folder}", *command])
        except SignalException as error:
            raise InterruptedTrainingError(error.sigval) from None
        except ChildFailedError as error:
            raise _first_error(cell, error.failures, compute.gpus) from None


def _first_error(
    cell: Cell, failures: Mapping[int, ProcessFailure], processes: int
) -> AttngridError:
    """The error with the failure that caused all others."""

    def order(rank: int) -> tuple[bool, int]:
        # torchrun terminates the remaining processes; some notice the loss and end before that
        consequence = failures[rank].exitcode in (-signal.SIGTERM, LostProcessError.exit_code)
        return consequence, failures[rank].timestamp

    rank = min(failures, key=order)
    failure = failures[rank]
    if Path(failure.error_file).is_file():
        return EndedProcessError(failure.message, failure.exitcode)
    how = f"ended with exit status {failure.exitcode}; see the messages above"
    if failure.exitcode < 0:
        how = f"was ended by {failure.signal_name()}"
    if failure.exitcode == -signal.SIGKILL:
        how += ", because memory ran out or it did not respond"
    message = (
        f"process {rank + 1} of {processes} {how}; the next run goes on from the last checkpoint"
    )
    status = read_status(cell.status)
    if status is not None and (status["state"] == "running" or status["message"] == STOPPED):
        with suppress(OSError):
            write_status(cell.status, "failed", message)
    return EndedProcessError(f"{cell.id}: {message}", max(1, failure.exitcode))
