"""Gradient accumulation: training on the micro-batches of a batch, in one process or several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from warnings import catch_warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attngrid.data.images import Split
from attngrid.training.distributed import Processes

MicroBatch = tuple[Tensor, Tensor]


class MicroBatches:
    """Splits each batch into n micro-batches, over processes and accumulation steps.

    The gradient of a step is the mean over all images of the batch. Each step updates the running
    statistics of BatchNorm once, by the mean over the micro-batches m,

        running ← (1 - momentum) · running + momentum · 1/n · Σ_m statistics_m,

    so that n processes and n accumulation steps give the same result. Other floating-point
    buffers become the mean over the micro-batches, too.

    Args:
        model: on its device, with the same weights in all processes.
        processes: the processes that train it.
        gradient_accumulation_steps: micro-batches of each process.

    Attributes:
        network: the model or its DistributedDataParallel wrapper; call it instead of the model.
    """

    def __init__(
        self, model: nn.Module, processes: Processes, gradient_accumulation_steps: int
    ) -> None:
        self.processes = processes
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.network = model
        if processes.count > 1:
            with catch_warnings(action="ignore", category=FutureWarning):
                self.network = DistributedDataParallel(
                    model,
                    broadcast_buffers=False,  # torch 2.14 renames it, 2.10 has only this name
                    gradient_as_bucket_view=True,
                    # Needed for every model: without it, DistributedDataParallel orders its buckets
                    # anew after the first step, so that a resumed training of three or more
                    # processes sums in another order. A user's module may also leave a parameter
                    # unused.
                    find_unused_parameters=True,
                )
        self.buffers = list(model.buffers())
        self.float_buffers = [buffer for buffer in self.buffers if buffer.is_floating_point()]

    def steps(self, batches: Split, first: int) -> Iterator[tuple[int, Iterator[MicroBatch]]]:
        """The steps of an epoch, from number ``first`` on.

        Yields:
            The number of images of the batch over all processes, and this process's micro-batches.
            Run each micro-batch forward and backward before you take the next one.
        """
        epoch = batches.epoch(first)
        for batch in batches.places[first:]:
            yield len(batch), self._micro_batches(epoch)
        next(epoch, None)  # lets worker processes end

    def _micro_batches(self, epoch: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        count = self.gradient_accumulation_steps
        if count == 1:
            yield from islice(epoch, 1)
        else:
            before = [buffer.clone() for buffer in self.buffers]
            means = [torch.zeros_like(buffer) for buffer in self.float_buffers]
            for number, micro_batch in enumerate(islice(epoch, count), 1):
                _copy(before, self.buffers)
                # The processes exchange gradients once a step, with the last micro-batch.
                local = number < count and self.processes.count > 1
                with self.network.no_sync() if local else nullcontext():  # type: ignore[operator]
                    yield micro_batch
                for mean, buffer in zip(means, self.float_buffers, strict=True):
                    mean.add_(buffer, alpha=1 / count)
            _copy(means, self.float_buffers)
        if self.processes.count > 1 and self.float_buffers:
            flat = torch.cat([buffer.flatten() for buffer in self.float_buffers])
            flat = self.processes.all_reduce_sum(flat).div_(self.processes.count)
            sizes = [buffer.numel() for buffer in self.float_buffers]
            _copy(torch.split(flat, sizes), self.float_buffers)


def _copy(sources: Iterable[Tensor], targets: list[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source.view_as(target))
