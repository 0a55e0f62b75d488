"""Checkpoints: a training that is killed goes on from one, to the same bits."""

from __future__ import annotations

import io
import math
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from attngrid.core.errors import DeadlineError, InterruptedTrainingError, RecordError
from attngrid.core.files import keep_as, seal, unsealed, write_atomically
from attngrid.training.distributed import ALONE, Processes
from attngrid.training.fingerprint import agrees
from attngrid.training.signals import hear_signals

FIRST_COST = 0.1  # seconds, guessed before one has been written
SHARED = {"model", "optimizer"}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Checkpoints:
    """The newest two checkpoints of a cell, written within a share of its time.

    Args:
        file: of the newest; the one before it lies beside it.
        digest: the cell's; a checkpoint of another is refused.
        share: of the training's time that writing may take; 0 writes at signals only.
        say: told of a checkpoint that cannot be read or written.
        processes: that train the cell together; all of them call each method, the first one writes.
        end: of the run, in seconds since 1970: the last checkpoint is written then, as at a signal.
        fingerprint: of the training; a checkpoint by code that computes something else is refused.
    """

    def __init__(
        self,
        file: Path,
        digest: str,
        share: float,
        say: Callable[[str], None] = print,
        processes: Processes = ALONE,
        end: float = math.inf,
        fingerprint: Mapping[str, Any] | None = None,
    ) -> None:
        self.file = file
        self.new, self.previous = file.with_suffix(".new"), file.with_suffix(".previous")
        self.digest = digest
        self.share = share
        self.say = say
        self.processes = processes
        self.end = end
        self.fingerprint = fingerprint
        self.start = time.perf_counter()
        self.spent, self.cost = 0.0, FIRST_COST
        # what this process was sent, and what all know of
        self.received: signal.Signals | None = None
        self.stopped_by: signal.Signals | None = None

    def due(self) -> bool:
        """Whether another one fits the share by now, or a signal wants the last one.

        A signal to any of the processes is one to all, and the first one's clock is theirs.
        """
        elapsed = time.perf_counter() - self.start
        fits = self.processes.rank == 0 and self.spent + self.cost <= self.share * elapsed
        if self.processes.orphaned or time.time() >= self.end:
            self.received = signal.SIGTERM
        number, due = self.processes.all_reduce_max(self.received or 0, fits)
        if number:
            self.stopped_by = signal.Signals(number)
        return bool(number or due)

    def save(self, state: dict[str, Any]) -> None:
        """Write the newest atomically and keep the one before it.

        A full disk ends no training: that there is no new checkpoint is said, and it goes on.

        Args:
            state: of the ``model`` and the ``optimizer``, which the processes share, and what each
                has of its own.

        Raises:
            InterruptedTrainingError: a signal, or the run's end, asked for this one, the last.
        """
        start = time.perf_counter()
        state = {"rng": _random_states(), **state}
        own = {name: state[name] for name in state.keys() - SHARED}
        others = self.processes.gathered(own)[1:]
        if self.processes.rank == 0:
            made_by = {"digest": self.digest, "fingerprint": self.fingerprint}
            self._write({**made_by, **state, "others": others})
        self.cost = time.perf_counter() - start
        self.spent += self.cost
        if self.stopped_by is not None:
            self.processes.wait()  # until it is written
            if time.time() >= self.end:
                raise DeadlineError
            raise InterruptedTrainingError(self.stopped_by)

    def _write(self, content: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        payload = buffer.getbuffer()
        try:
            # whole on the disk before the older ones move: a full one costs none of them
            write_atomically(self.new, seal(payload) + payload)
            if self.file.is_file():
                keep_as(self.file, self.previous)
            self.new.replace(self.file)
        except OSError as error:
            self.say(f"no checkpoint written: {self.file}: {error.strerror or error}")

    def load(self) -> dict[str, Any] | None:
        """The newest sound checkpoint, and the state of every generator as it was; None if none.

        Its ``processes`` are what each of those that wrote it had of its own. Where there are more
        or fewer now, the figures will be near what they would have been, and that is said.

        Raises:
            RecordError: a sound checkpoint of another cell, or by other code.
        """
        for file in (self.file, self.previous):
            if not file.is_file():
                continue
            try:
                state = read_checkpoint(file.read_bytes())
            except Exception as error:  # whatever a torn file makes of torch's reader
                self.say(f"{file}: damaged, passed over: {type(error).__name__}: {error}")
                continue
            if state["digest"] != self.digest:
                raise RecordError(
                    f"{file}: is of another cell: found the digest {state['digest']}, expected "
                    f"{self.digest}; remove it to train from the first epoch"
                )
            before = state.get("fingerprint")  # None in one by a version without
            other = before and self.fingerprint and not _same(before, self.fingerprint)
            (other,) = self.processes.all_reduce_max(
                bool(other)
            )  # the first one knows, and all end
            if other:
                raise RecordError(
                    f"{file}: this code does not compute what the one that wrote it did; remove it "
                    "to train from the first epoch, or go on with that code"
                )
            state["processes"] = [state, *state.pop("others", [])]
            count, rank = len(state["processes"]), self.processes.rank
            if count != self.processes.count:
                self.say(f"{file}: of {count} processes; not to the same bits with another number")
            if rank < count:
                _restore_random_states(state["processes"][rank]["rng"])
            return state
        return None

    def remove(self) -> None:
        """Forget the training: its record is written."""
        for file in (self.new, self.file, self.previous):
            file.unlink(missing_ok=True)

    def remove_previous(self) -> None:
        """Make room: the newest is enough, where it is."""
        if self.file.is_file():
            self.previous.unlink(missing_ok=True)

    def __enter__(self) -> Checkpoints:
        """From here on a signal asks for a last checkpoint instead of ending the process."""
        self._handlers = {number: signal.signal(number, self._stop) for number in SIGNALS}
        hear_signals()
        return self

    def __exit__(self, *error: object) -> None:
        """Signals do again what they did before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)


def _same(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return recorded["code"] == now["code"] or agrees(recorded, now["losses"])


def read_checkpoint(content: bytes) -> dict[str, Any]:
    """What a checkpoint's file holds; a damaged one raises whatever torch's reader makes of it."""
    payload = io.BytesIO(unsealed(content))
    state: dict[str, Any] = torch.load(payload, weights_only=True, map_location="cpu")
    return state


@contextmanager
def kept_random_states() -> Iterator[None]:
    """What is drawn inside changes no draw outside."""
    states = _random_states()
    try:
        yield
    finally:
        _restore_random_states(states)


def _random_states() -> dict[str, Any]:
    """Of every generator that a model or a library may draw from."""
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
