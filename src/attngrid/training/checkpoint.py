"""Checkpoints: a training that is killed continues from one, to the same bits."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import random
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from attngrid.core.errors import DeadlineError, InterruptedTrainingError
from attngrid.core.files import keep_as, write_atomically
from attngrid.records.staleness import code_digest
from attngrid.training.distributed import ALONE, Processes
from attngrid.training.signals import hear_signals

logger = logging.getLogger(__name__)

FIRST_COST_S = 0.1  # the guess before the first checkpoint is written
SHARED = {"model", "optimizer"}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A file starts with this line; the SHA-256 of the content follows on the next one.
HEADER = b"attngrid checkpoint 1\n"
HEADER_BYTES = len(HEADER) + 65
# Why a checkpoint is not used, in the order in which several processes agree on one reason. The
# file is renamed to end in it, so that no later checkpoint takes its place.
ABSENT, DAMAGED, OTHER_CELL, OTHER_CODE = REASONS = ("", "damaged", "other-cell", "other-code")


class Checkpoints:
    """The newest two checkpoints of a cell, written within a share of its time.

    Args:
        file: of the newest one; the one before lies beside it.
        digest: of the cell; a checkpoint of another cell is not used.
        share: of the training's time that writing may take; 0 writes at signals only.
        processes: that train the cell together; all call each method, the first one writes.
        end: of the run, in seconds since 1970; the last checkpoint is written then.
    """

    def __init__(
        self,
        file: Path,
        digest: str,
        share: float,
        processes: Processes = ALONE,
        end: float = math.inf,
    ) -> None:
        self.file = file
        self.new, self.previous = file.with_suffix(".new"), file.with_suffix(".previous")
        self.digest, self.share = digest, share
        self.processes, self.end = processes, end
        self.start = time.perf_counter()
        self.spent, self.cost = 0.0, FIRST_COST_S
        # the signal that this process received, and the one that all processes know of
        self.received: signal.Signals | None = None
        self.stopped_by: signal.Signals | None = None

    def due(self) -> bool:
        """Whether another checkpoint fits the share by now, or a signal asks for the last one.

        A signal to one of the processes is a signal to all; the first one's clock decides.
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
        """Write the newest checkpoint atomically and keep the one before it.

        A full disk ends no training: a line says that there is no new checkpoint.

        Args:
            state: ``model`` and ``optimizer``, equal in all processes, and the process's own rest.

        Raises:
            InterruptedTrainingError: a signal, or the end of the run, asked for the last one.
        """
        start = time.perf_counter()
        state = {"rng": _random_states(), **state}
        own = {name: state[name] for name in state.keys() - SHARED}
        others = self.processes.gathered(own)[1:]
        if self.processes.rank == 0:
            identity = {"digest": self.digest, "code": code_digest()}
            self._write({**identity, **state, "others": others})
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
            # whole on the disk before the older ones move: a full disk costs none of them
            write_atomically(self.new, seal(payload) + payload)
            if self.file.is_file():
                keep_as(self.file, self.previous)
            self.new.replace(self.file)
        except OSError as error:
            logger.warning("no checkpoint written: %s: %s", self.file, error.strerror or error)

    def load(self) -> dict[str, Any] | None:
        """Read the newest usable checkpoint and restore the state of every random generator.

        A checkpoint that is damaged, of another cell or of other code is put aside, and a line
        says so. In the result, ``processes`` has the own state of each process that saved. With
        another number of processes now the results are equal within rounding only.

        Returns:
            None without a usable checkpoint.
        """
        put_aside = False
        for file in (self.file, self.previous):
            state, reason, detail = self._read(file)
            # all of them have read it, and agree, before it is renamed
            (code,) = self.processes.all_reduce_max(REASONS.index(reason) if state is None else -1)
            if code >= 0:
                if self.processes.rank == 0 and (reason := REASONS[code]):
                    aside = file.with_name(f"{file.name}.{reason}")
                    file.replace(aside)
                    logger.warning("%s: %s; it is now %s", file, detail, aside.name)
                    put_aside = True
                continue
            assert state is not None
            state["processes"] = [state, *state.pop("others", [])]
            count, rank = len(state["processes"]), self.processes.rank
            if count != self.processes.count and rank == 0:
                logger.warning("%s: saved by %s processes; the bits will differ", file, count)
            if rank < count:
                _restore_random_states(state["processes"][rank]["rng"])
            return state
        if put_aside:
            logger.warning("%s: the training starts from its first epoch", self.file)
        return None

    def _read(self, file: Path) -> tuple[dict[str, Any] | None, str, str]:
        """A checkpoint, or None with the reason not to use it, as a word and as a message."""
        if not file.is_file():
            return None, ABSENT, ""
        try:
            state = read_checkpoint(file.read_bytes())
            digest, code = state["digest"], state.get("code")
        except Exception as error:  # a torn file raises anything in torch's reader
            return None, DAMAGED, f"damaged, not used: {type(error).__name__}: {error}"
        if digest != self.digest:
            found = f"found the digest {digest}, expected {self.digest}"
            return None, OTHER_CELL, f"is of another cell, not used: {found}"
        if code != code_digest():
            return None, OTHER_CODE, "is of other code, not used"
        return state, "", ""

    def remove(self) -> None:
        """Remove the checkpoints of a training whose record is written."""
        for file in (self.new, self.file, self.previous):
            file.unlink(missing_ok=True)

    def remove_previous(self) -> None:
        """Make room on the disk: the newest checkpoint is enough."""
        if self.file.is_file():
            self.previous.unlink(missing_ok=True)

    def __enter__(self) -> Checkpoints:
        """From here on a signal asks for a last checkpoint instead of ending the process."""
        self._handlers = {number: signal.signal(number, self._stop) for number in SIGNALS}
        hear_signals()
        return self

    def __exit__(self, *error: object) -> None:
        """Give the signals their earlier handlers again."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)


def seal(payload: bytes | memoryview) -> bytes:
    """The first bytes of a checkpoint, by which a torn or damaged one is found."""
    return HEADER + hashlib.sha256(payload).hexdigest().encode() + b"\n"


def read_checkpoint(content: bytes) -> dict[str, Any]:
    """The content of a checkpoint's file.

    Raises:
        ValueError: it is not what was written; torch raises other errors for other content.
    """
    payload = memoryview(content)[HEADER_BYTES:]
    if content[:HEADER_BYTES] != seal(payload):
        raise ValueError("its content is not what was written")
    buffer = io.BytesIO(payload)
    state: dict[str, Any] = torch.load(buffer, weights_only=True, map_location="cpu")
    return state


def _random_states() -> dict[str, Any]:
    """The states of all generators that a model or a library may draw from."""
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
