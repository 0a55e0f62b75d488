"""The processes that train one cell together; torchrun starts one for each GPU."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
import torch.distributed as dist

# This import must come before a process group exists. Its functions keep the group of that time as
# their default, so that gloo's threads would outlive the group and could abort the interpreter.
import torch.distributed.nn.functional
from torch import Tensor

from attngrid.core.errors import AttngridError, ConfigError, LostProcessError

# The environment variable with the process id of the launcher.
LAUNCHER = "ATTNGRID_LAUNCHER"
# The longest time that a process waits for the others, for example at a checkpoint.
TIMEOUT = timedelta(minutes=10)
WATCH_S = 1.0  # seconds between two looks for the launcher


def launcher() -> int:
    """The id of the process that started this one, which may have ended."""
    return int(os.environ.get(LAUNCHER, os.getppid()))


@dataclass(frozen=True)
class Processes:
    """The processes that train one cell, and the rank of this one.

    Rank 0 writes all files and messages. ``local_rank`` is the rank on this machine and the index
    of the process's GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    parent: int = field(default_factory=launcher)

    @property
    def orphaned(self) -> bool:
        """Whether the launcher has ended and so cannot forward signals."""
        return self.count > 1 and os.getppid() != self.parent

    def device(self, kind: torch.device) -> torch.device:
        """The device of this process, of the given kind."""
        return torch.device("cuda", self.local_rank) if kind.type == "cuda" else kind

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def all_reduce_max(self, *values: int) -> list[int]:
        """The maximum of each number over the processes."""
        if self.count == 1:
            return list(values)
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes by rank, on rank 0; an empty list on other ranks."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count if self.rank == 0 else []
        dist.gather_object(value, found or None)
        return found

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def wait(self) -> None:
        """Wait until all processes have called this (a barrier)."""
        self.all_reduce_max(0)


ALONE = Processes()


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def process_group(count: int, device: torch.device) -> Iterator[Processes]:
    """Join the ``count`` processes that train a cell; does nothing for a single process.

    Raises:
        ConfigError: torchrun started another number of processes.
        LostProcessError: another process ended or did not respond within ``TIMEOUT``.
    """
    found = int(os.environ["WORLD_SIZE"]) if launched() else 1
    if found != count:
        raise ConfigError(
            f"compute.gpus: found {count}, but {found} processes; start them by `attngrid train` "
            f"or `torchrun --nproc-per-node {count}`"
        )
    if count == 1:
        yield ALONE
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    processes = Processes(*(int(os.environ[name]) for name in names))
    if device.type == "cuda":
        torch.cuda.set_device(processes.local_rank)
    try:
        # CPU tensors go through gloo, so that no GPU has to wait for them.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _watched(processes):
            dist.init_process_group(backend, timeout=TIMEOUT)
        yield processes
        dist.destroy_process_group()
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        first_line = str(error).strip().partition("\n")[0]
        raise LostProcessError(
            f"process {processes.rank + 1} of {count}: another one ended or does not answer: "
            f"{first_line}"
        ) from error


@contextmanager
def _watched(processes: Processes) -> Iterator[None]:
    """End this process if the launcher ends meanwhile; joining would wait for ``TIMEOUT``."""
    joined = Event()

    def watch() -> None:
        while not joined.wait(WATCH_S):
            if processes.orphaned:
                os._exit(LostProcessError.exit_code)  # the main thread does not return from torch

    Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        joined.set()


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error says that another process of the group has ended."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def tell_launcher(error: AttngridError) -> bool:
    """Write an error where torchrun reads it; False if torchrun did not start this process."""
    if (file := os.environ.get("TORCHELASTIC_ERROR_FILE")) is None:
        return False
    content = {"message": str(error), "timestamp": str(int(time.time()))}
    Path(file).write_text(json.dumps(content), "utf-8")
    return True
