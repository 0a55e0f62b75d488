"""How several processes and micro-batches divide each batch of one training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Share:
    """The part of each batch that one process reads.

    A training batch is split into processes × gradient_accumulation_steps micro-batches of nearly
    equal size. Test batches stay whole; the processes take them in turn. Random numbers
    are drawn for each image, so they do not depend on the split.

    Attributes:
        rank: index of the process, from 0.
        joint: split into ``gradient_accumulation_steps`` micro-batches only, and divide each of
            them among all processes (synchronised batch norm).
    """

    rank: int = 0
    processes: int = 1
    gradient_accumulation_steps: int = 1
    joint: bool = False

    def batches(self, images: int, batch_size: int, *, training: bool) -> list[range]:
        """The batches of an epoch, each as a range of positions in the epoch's order.

        Batch norm needs two images, so training drops a last batch whose micro-batches would have
        fewer.
        """
        batches = [range(images)[at : at + batch_size] for at in range(0, images, batch_size)]
        smallest = 2 * self.processes * self.gradient_accumulation_steps if training else 1
        return [batch for batch in batches if len(batch) >= smallest]

    def assigned(self, batches: list[range], *, training: bool) -> Iterator[range]:
        """Ranges that this process reads: micro-batches for training, whole batches for testing."""
        if training:
            return (micro for batch in batches for micro in self.micro_batches(batch))
        return iter(batches[self.rank :: self.processes])

    def micro_batches(self, batch: range) -> list[range]:
        """This process's micro-batches of a training batch."""
        steps = self.gradient_accumulation_steps
        if self.joint:
            return [split(part, self.processes)[self.rank] for part in split(batch, steps)]
        return split(batch, self.processes * steps)[self.rank :: self.processes]


def split(positions: range, parts: int) -> list[range]:
    """Split into consecutive parts of nearly equal size, as ``torch.tensor_split`` does."""
    size, rest = divmod(len(positions), parts)
    ends = [part * size + min(part, rest) for part in range(parts + 1)]
    return [positions[start:end] for start, end in pairwise(ends)]


ALL = Share()  # one process reads whole batches
