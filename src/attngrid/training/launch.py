"""Starting the processes of a cell by torchrun, and reporting their end in one message."""

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
from attngrid.training.loop import choose_device
from attngrid.training.signals import SIGNALS

# Seconds in which the processes end their step and write a checkpoint after a signal.
GRACE_S = 120


def launch(study: Study, cell: Cell, arguments: Sequence[str]) -> None:
    """Run ``attngrid ARGUMENTS`` in ``compute.gpus`` processes, and wait for their end.

    A signal goes to all processes. If one of them fails, the others end, too.

    Raises:
        ConfigError: fewer GPUs than processes, or ``sync_bn`` without a GPU.
        InterruptedTrainingError: a signal, after a last checkpoint.
        EndedProcessError: the message of the first process that failed, or how it ended.
    """
    compute, there = study.compute, torch.cuda.device_count()
    if choose_device(compute.device).type == "cuda" and there < compute.gpus:
        raise ConfigError(f"compute.gpus: found {compute.gpus}; this process sees {there} of them")
    if compute.sync_bn and there == 0:
        raise ConfigError("compute.sync_bn: found true; there is no GPU here, and it needs one")
    # The errors raised below replace torchrun's own messages.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(compute.threads))
    # These are no options of torchrun, because torch 2.10 does not have the second one.
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
    """The error that names the failure which caused all others."""

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
        how += ", since memory was short or it did not answer"
    message = (
        f"process {rank + 1} of {processes} {how}; the next run goes on from the last checkpoint"
    )
    status = read_status(cell.status)
    if status is not None and (status["state"] == "running" or status["message"] == STOPPED):
        with suppress(OSError):
            write_status(cell.status, "failed", message)
    return EndedProcessError(f"{cell.id}: {message}", max(1, failure.exitcode))
