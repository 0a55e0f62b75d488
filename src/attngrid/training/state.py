"""The state of a training that a checkpoint keeps, beside model and optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attngrid.training.distributed import Processes


@dataclass
class TrainState:
    """The state of a training, beside its model and its optimizer.

    Attributes:
        generator: state of the generator of order and augmentation, at the start of the epoch.
        correct: correctly classified images of the epoch so far, in this process.
        epoch: the current one, from 1.
        step: the next one of the epoch, from 0.
        losses: of each micro-batch of the epoch so far, summed over the images of this process.
        seen: images of the epoch so far, over all processes.
        images_seen: images of all earlier epochs.
        curve: one line for each earlier epoch.
        training_s, testing_s: seconds so far.
        resumed: how often the training continued from a checkpoint.
    """

    generator: Tensor
    correct: Tensor
    epoch: int = 1
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    seen: int = 0
    images_seen: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    training_s: float = 0.0
    testing_s: float = 0.0
    resumed: int = 0

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Add the epoch's line to the curve and start the next epoch."""
        self.curve.append(line)
        self.images_seen += self.seen
        self.epoch, self.step, self.seen, self.losses = self.epoch + 1, 0, 0, []
        self.correct = torch.zeros_like(self.correct)

    def state_dict(self) -> dict[str, Any]:
        """The state as a checkpoint holds it."""
        losses = torch.stack(self.losses) if self.losses else torch.zeros(0)
        return {**vars(self), "losses": losses.cpu(), "correct": self.correct.cpu()}

    @classmethod
    def restore(
        cls, checkpoint: dict[str, Any], processes: Processes, device: torch.device
    ) -> TrainState:
        """Read this process's state from the result of ``Checkpoints.load``."""
        states = [process["train_state"] for process in checkpoint["processes"]]
        if len(states) == processes.count:
            state = states[processes.rank]
            losses, correct = state["losses"], state["correct"]
        else:  # Another number of processes: rank 0 takes the sums of all of them.
            state = states[0]
            losses = sum(one["losses"] for one in states) * (processes.rank == 0)
            correct = sum(one["correct"] for one in states) * (processes.rank == 0)
        changes = {"losses": list(losses.to(device)), "correct": correct.to(device)}
        return cls(**{**state, **changes, "resumed": state["resumed"] + 1})
