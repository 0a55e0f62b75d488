"""Which images of each batch are whose, where several processes train one cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Share:
    """What one of several processes takes of the batches, and in how many parts.

    A training batch falls into processes × gradient_accumulation_steps parts, as even as can be. What is drawn for
    an image knows nothing of them. Test batches stay whole, and each process takes its own.

    Attributes:
        rank: of the process, from 0.
        processes: how many share the batches.
        gradient_accumulation_steps: parts of a training batch that a process takes one after the other.
        joint: there are but ``gradient_accumulation_steps`` parts, and each process takes a share of every one.
    """

    rank: int = 0
    processes: int = 1
    gradient_accumulation_steps: int = 1
    joint: bool = False

    def batches(self, images: int, batch_size: int, *, training: bool) -> list[range]:
        """The places of an epoch's batches, whosever they are.

        Training leaves out a last batch of which a process would have one image in a part: batch
        norm needs two.
        """
        places = [range(images)[at : at + batch_size] for at in range(0, images, batch_size)]
        fewest = 2 * self.processes * self.gradient_accumulation_steps if training else 1
        return [batch for batch in places if len(batch) >= fewest]

    def taken(self, batches: list[range], *, training: bool) -> Iterator[range]:
        """What of batches this process takes: parts of each, or whole test batches."""
        if training:
            return (part for batch in batches for part in self.parts(batch))
        return iter(batches[self.rank :: self.processes])

    def parts(self, batch: range) -> list[range]:
        """This process's parts of a training batch."""
        if self.joint:
            whole = split(batch, self.gradient_accumulation_steps)
            return [split(part, self.processes)[self.rank] for part in whole]
        return split(batch, self.processes * self.gradient_accumulation_steps)[
            self.rank :: self.processes
        ]


def split(places: range, parts: int) -> list[range]:
    """Into consecutive parts, as even as can be, as ``torch.tensor_split`` makes them."""
    each, rest = divmod(len(places), parts)
    ends = [part * each + min(part, rest) for part in range(parts + 1)]
    return [places[start:end] for start, end in pairwise(ends)]


ALL = Share()
