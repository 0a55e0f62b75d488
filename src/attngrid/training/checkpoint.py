"""Checkpoints: a killed training continues from one, with bit-identical results."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attngrid.core.errors import DeadlineError, InterruptedTrainingError
from attngrid.core.files import write_atomically
from attngrid.records.staleness import code_digest
from attngrid.training.distributed import ALONE, Processes
from attngrid.training.signals import SIGNALS, hear_signals

logger = logging.getLogger(__name__)

FIRST_COST_S = 0.1  # estimated seconds of the first checkpoint
SHA256_BYTES = 32


@dataclass
class TrainState:
    """The state of a training that a checkpoint saves, beside its model and its optimizer.

    Attributes:
        generator: its state at the start of the epoch; it draws order and augmentation.
        correct: the number of correctly classified images in this epoch and process so far.
        epoch: the current epoch, from 1.
        step: the next step of the epoch, from 0.
        losses: the loss of each micro-batch of this epoch and process so far, summed over images.
        curve: one line per finished epoch.
        training_s, testing_s: seconds so far.
        resumed: the number of times the training continued from a checkpoint.
    """

    generator: Tensor
    correct: Tensor
    epoch: int = 1
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    training_s: float = 0.0
    testing_s: float = 0.0
    resumed: int = 0

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Add the epoch's line to the curve and start the next epoch."""
        self.curve.append(line)
        self.epoch, self.step, self.losses = self.epoch + 1, 0, []
        self.correct = torch.zeros_like(self.correct)

    def state_dict(self) -> dict[str, Any]:
        """The state on the CPU, as a checkpoint stores it."""
        losses = torch.stack(self.losses) if self.losses else torch.zeros(0)
        return {**vars(self), "losses": losses.cpu(), "correct": self.correct.cpu()}

    @classmethod
    def restore(cls, saved: dict[str, Any], device: torch.device) -> TrainState:
        """Restore a ``state_dict`` onto the device."""
        losses, correct = saved["losses"].to(device), saved["correct"].to(device)
        changes = {"losses": list(losses), "correct": correct}
        return cls(**{**saved, **changes, "resumed": saved["resumed"] + 1})


class Checkpoints:
    """The two newest checkpoints of a cell; all of its processes call each method.

    Args:
        file: the newest checkpoint; the one before it has the suffix ``.previous``.
        digest: the digest of the cell.
        share: the fraction of the training's time that writing may take; 0 writes at signals only.
        processes: the processes that train the cell; rank 0 writes.
        end: the deadline of the run in seconds since 1970, when the last checkpoint is written.
    """

    def __init__(
        self,
        file: Path,
        digest: str,
        share: float,
        processes: Processes = ALONE,
        end: float = math.inf,
    ) -> None:
        self.file, self.previous = file, file.with_suffix(".previous")
        self.digest, self.share = digest, share
        self.processes, self.end = processes, end
        self.start = time.perf_counter()
        self.spent, self.cost = 0.0, FIRST_COST_S
        # the signal that this process received, and the one that all processes agreed on
        self.received: signal.Signals | None = None
        self.stopped_by: signal.Signals | None = None

    def due(self) -> bool:
        """Whether to write a checkpoint now: the share allows one, or a signal ends the training.

        A signal to one process counts for all; the clock of rank 0 decides about the share.
        """
        elapsed = time.perf_counter() - self.start
        fits = self.processes.rank == 0 and self.spent + self.cost <= self.share * elapsed
        if self.processes.orphaned or time.time() >= self.end:
            self.received = signal.SIGTERM
        number, due = self.processes.all_reduce_max(self.received or 0, fits)
        if number:
            self.stopped_by = signal.Signals(number)
        return bool(number or due)

    def save(self, shared: dict[str, Any], own: dict[str, Any]) -> None:
        """Write a checkpoint atomically and keep the one before it.

        If the disk is full, the training continues with a warning. ``shared`` (model, optimizer)
        is equal in all processes; ``own`` is the state of this process.

        Raises:
            InterruptedTrainingError: a signal or the deadline ended the training.
        """
        start = time.perf_counter()
        by_rank = self.processes.gathered({"rng": _random_states(), **own})
        if self.processes.rank == 0:
            self._write({**self._identity(), **shared, "by_rank": by_rank})
        self.cost = time.perf_counter() - start
        self.spent += self.cost
        if self.stopped_by is not None:
            self.processes.wait()  # until it is written
            if time.time() >= self.end:
                raise DeadlineError
            raise InterruptedTrainingError(self.stopped_by)

    def _identity(self) -> dict[str, Any]:
        """The values that must match, so that a resumed training is bit-identical."""
        return {"cell": self.digest, "code": code_digest(), "processes": self.processes.count}

    def _write(self, content: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        payload = buffer.getvalue()
        try:
            # if writing fails at any point, one of the two files is a complete checkpoint
            if self.file.is_file():
                self.file.replace(self.previous)
            write_atomically(self.file, hashlib.sha256(payload).digest() + payload)
        except OSError as error:
            logger.warning("no checkpoint written: %s: %s", self.file, error.strerror or error)

    def load(self) -> dict[str, Any] | None:
        """Read the newest usable checkpoint and restore the state of every random generator.

        A checkpoint that is damaged, or belongs to another cell, other code or another number of
        processes, is renamed with a warning. Returns None if no checkpoint is usable.
        """
        # rank 0 decides for all
        state = self.processes.broadcast(self._newest() if self.processes.rank == 0 else None)
        if state is None:
            return None
        own = state.pop("by_rank")[self.processes.rank]
        _restore_random_states(own["rng"])
        return {**state, **own}

    def _newest(self) -> dict[str, Any] | None:
        renamed = False
        for file in filter(Path.is_file, (self.file, self.previous)):
            try:
                state = read_checkpoint(file)
                found = {name: state[name] for name in self._identity()}
            except Exception as error:  # torch.load raises many types
                ending, why = "damaged", f"damaged: {type(error).__name__}: {error}"
            else:
                expected = self._identity()
                if found == expected:
                    return state
                name = next(name for name in found if found[name] != expected[name])
                ending = f"other-{name}"
                why = f"{name}: found {found[name]}, expected {expected[name]}"
            aside = file.with_name(f"{file.name}.{ending}")
            file.replace(aside)
            logger.warning("%s: not used: %s; renamed to %s", file, why, aside.name)
            renamed = True
        if renamed:
            logger.warning("%s: the training starts from its first epoch", self.file)
        return None

    def remove(self) -> None:
        """Remove both checkpoints, once the record is written."""
        for file in (self.file, self.previous):
            file.unlink(missing_ok=True)

    def __enter__(self) -> Checkpoints:
        """Until exit, a signal requests a last checkpoint instead of ending the process."""
        self._handlers = {number: signal.signal(number, self._stop) for number in SIGNALS}
        hear_signals()
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the earlier signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint file; raise a ValueError if its checksum is wrong."""
    content = file.read_bytes()
    payload = content[SHA256_BYTES:]
    if content[:SHA256_BYTES] != hashlib.sha256(payload).digest():
        raise ValueError("its SHA-256 does not match its content")
    state: dict[str, Any] = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    return state


def _random_states() -> dict[str, Any]:
    """The states of all random generators that a model or a library may use."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(states["python"])
