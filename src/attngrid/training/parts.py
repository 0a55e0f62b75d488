"""Training by parts of batches, one after the other and in several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from warnings import catch_warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attngrid.training.batches import Split
from attngrid.training.distributed import Processes

Part = tuple[Tensor, Tensor]


class Parts:
    """The parts that a model is trained on batches in, whichever processes have them.

    With n parts a step's gradient is the mean of the batch's images', and its running statistics
    go on from those before it by the mean over the parts p,

        running ← (1 - momentum) · running + momentum · 1/n · Σ_p statistics_p,

    so that both are the same for n processes, for one that accumulates n times, and for what is
    between. Other floating-point buffers are the mean of what the parts make of them, too.

    Args:
        model: on its device, the same in all processes.
        processes: that train it.
        gradient_accumulation_steps: parts of a batch that each takes, one after the other.

    Attributes:
        module: the model, to be called in its place.
    """

    def __init__(
        self, model: nn.Module, processes: Processes, gradient_accumulation_steps: int
    ) -> None:
        self.processes = processes
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.parallel: DistributedDataParallel | None = None
        if processes.count > 1:
            with catch_warnings(action="ignore", category=FutureWarning):
                self.parallel = DistributedDataParallel(
                    model,
                    broadcast_buffers=False,  # torch 2.14 has another name for it, 2.10 has not
                    gradient_as_bucket_view=True,
                    # a module may leave a parameter out; and where one may, the buckets stay as
                    # they were at the first step, and with them the order of a resumed one's sums
                    find_unused_parameters=True,
                )
        self.module = self.parallel or model
        self.buffers = list(model.buffers())
        self.floats = [buffer for buffer in self.buffers if buffer.is_floating_point()]

    def steps(self, batches: Split, first: int) -> Iterator[tuple[int, Iterator[Part]]]:
        """An epoch's steps from one on: how many images of all processes, and this one's parts.

        Each part is to be run forward and backward before the next.
        """
        taken = batches.epoch(first)
        for batch in batches.places[first:]:
            yield len(batch), self._parts(taken)
        next(taken, None)  # so that those who read ahead end

    def _parts(self, taken: Iterator[Part]) -> Iterator[Part]:
        if self.gradient_accumulation_steps == 1:
            yield from islice(taken, 1)
        else:
            before = [buffer.clone() for buffer in self.buffers]
            sums = [torch.zeros_like(buffer) for buffer in self.floats]
            for number, part in enumerate(islice(taken, self.gradient_accumulation_steps), 1):
                _copy(self.buffers, before)
                # gradients go round once, with those of the last part
                hold = self.parallel if number < self.gradient_accumulation_steps else None
                with hold.no_sync() if hold is not None else nullcontext():
                    yield part
                for total, buffer in zip(sums, self.floats, strict=True):
                    total.add_(buffer, alpha=1 / self.gradient_accumulation_steps)
            _copy(self.floats, sums)
        if self.processes.count > 1 and self.floats:
            flat = torch.cat([buffer.flatten() for buffer in self.floats])
            means = self.processes.total(flat).div_(self.processes.count)
            sizes = [buffer.numel() for buffer in self.floats]
            pairs = zip(torch.split(means, sizes), self.floats, strict=True)
            _copy(self.floats, [mean.view_as(buffer) for mean, buffer in pairs])


def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    for target, value in zip(to, source, strict=True):
        target.copy_(value)
