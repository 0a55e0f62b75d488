"""The processes that train one cell together, one a GPU, as torchrun starts them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Its functions' defaults are the group there is at its import, which DistributedDataParallel makes:
# they would keep that group, and gloo's threads with it, until the interpreter ends under them and
# now and then aborts.
import torch.distributed.nn.functional
from torch import Tensor

from attngrid.core.errors import AttngridError, ConfigError, LostProcessError

# No wait for another process is longer: to make a checkpoint, to begin an epoch, to come at all.
PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """How many there are, and which of them this one is.

    Attributes:
        rank: from 0, which alone writes files and says what is going on.
        count: of all machines.
        local_rank: on this machine: the number of its GPU.
        local_count: of this machine.
        parent: the process id of the launcher.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    parent: int = field(default_factory=os.getppid)

    @property
    def orphaned(self) -> bool:
        """Whether the launcher is gone, and nobody would pass a signal on."""
        return self.count > 1 and os.getppid() != self.parent

    def device(self, kind: torch.device) -> torch.device:
        """This process's own."""
        return torch.device("cuda", self.local_rank) if kind.type == "cuda" else kind

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def largest(self, *values: int) -> list[int]:
        """Of each number that of the process where it is largest."""
        if self.count == 1:
            return list(values)
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def gathered(self, value: Any) -> list[Any]:
        """What each process has, in their order, on the first one; elsewhere nothing."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count if self.rank == 0 else []
        dist.gather_object(value, found or None)
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        self.largest(0)


ALONE = Processes()


def launched() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def joined(count: int, device: torch.device) -> Iterator[Processes]:
    """Meet the other processes of a training; alone there is nobody to meet.

    Args:
        count: how many there are to be.
        device: of which kind each has one.

    Raises:
        ConfigError: torchrun was told another number.
        LostProcessError: another one ended, or did not answer for ``PATIENCE``.
    """
    found = int(os.environ["WORLD_SIZE"]) if launched() else 1
    if found != count:
        raise ConfigError(
            f"compute.gpus: found {count}, and {found} processes; `attngrid train` and "
            f"`torchrun --nproc-per-node {count}` start as many"
        )
    if count == 1:
        yield ALONE
        return
    rank, local_rank, local_count = (
        int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    if device.type == "cuda":
        torch.cuda.set_device(local_rank)
    try:
        # numbers and positions go by gloo, so that no GPU has to wait for them
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        yield Processes(rank, count, local_rank, local_count)
        dist.destroy_process_group()
    except RuntimeError as error:
        if not is_loss(error):
            raise
        first = str(error).strip().partition("\n")[0]
        raise LostProcessError(
            f"process {rank + 1} of {count}: another one ended or does not answer: {first}"
        ) from error


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def tell_launcher(error: AttngridError) -> bool:
    """Leave a message where torchrun looks for the reason of an end; False where it does not."""
    if (file := os.environ.get("TORCHELASTIC_ERROR_FILE")) is None:
        return False
    content = {"message": str(error), "timestamp": str(int(time.time()))}
    Path(file).write_text(json.dumps(content), "utf-8")
    return True
