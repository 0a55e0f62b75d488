"""The errors that a user can cause. Each is one message that says what to change."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from difflib import get_close_matches


class AttngridError(Exception):
    """Base of the errors that the command line prints without a traceback."""


class ConfigError(AttngridError):
    """A configuration, recipe or table description is wrong."""


LONGEST_LIST = 2000  # characters
FEW = 12  # names


def listed(names: Iterable[str]) -> str:
    """Names in one line; of very many, the first three."""
    names = list(names)
    line = ", ".join(names)
    short = f"{', '.join(names[:3])} and {len(names) - 3} more"
    return line if len(line) <= LONGEST_LIST else short


class UnknownNameError(AttngridError, ValueError):
    """A name is unknown. The message lists similar names, or else the known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        # timm:eca is near to eca, too
        spellings = {one: one for one in known}
        for one in known:
            spellings.setdefault(one.rpartition(":")[2], one)
        close = get_close_matches(name.lower(), spellings, n=5, cutoff=0.5)
        near = dict.fromkeys(spellings[one] for one in close)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        # after a hint, a short list does no harm
        names = f"known are {listed(known)}" if not near or len(known) <= FEW else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}{names}".rstrip())


class RecordError(AttngridError):
    """A record does not belong to its cell, or is damaged."""


class DataError(AttngridError):
    """A dataset is missing or damaged."""


class DivergedError(AttngridError):
    """The training loss became infinite or NaN."""

    def __init__(self, epoch: int, step: int, loss: float) -> None:
        super().__init__(f"diverged: the loss became {loss} in epoch {epoch}, step {step}")
        self.epoch, self.step = epoch, step


class DivergedTrialsError(AttngridError):
    """All tuning trials of a model diverged, so no best hyperparameters exist."""


class InterruptedTrainingError(AttngridError):
    """A signal stopped a training, which saved a checkpoint before it ended."""

    def __init__(self, number: signal.Signals, reason: str | None = None) -> None:
        reason = reason or f"stopped by {number.name}"
        super().__init__(f"{reason}; the next run goes on from its checkpoint")
        self.number = number
        self.exit_code = 128 + number


class DeadlineError(InterruptedTrainingError):
    """The deadline of the run stopped a training, which saved a checkpoint before it ended."""

    def __init__(self) -> None:
        super().__init__(signal.SIGTERM, "stopped at the deadline")


class NotStartedError(AttngridError):
    """A training was not started because it would not finish before the deadline."""


class LostProcessError(AttngridError):
    """Another process of the same training ended or does not answer."""

    exit_code = 75


class EndedProcessError(AttngridError):
    """One of several processes ended before the training did."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class BusyCellError(AttngridError):
    """Another process is training this cell."""


class OutOfMemoryError(AttngridError):
    """A training did not fit into the memory of the CPU or the GPU."""


class WriteError(AttngridError):
    """A file could not be written: the disk is full or the folder is read-only."""


class InconsistentError(AttngridError):
    """A repeated training disagrees with its record."""

    exit_code = 3


class InconclusiveError(AttngridError):
    """A repeated training reached no result within its budget."""

    exit_code = 4
