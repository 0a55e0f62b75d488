"""The errors a user can cause, each a single message that says what to change."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from difflib import get_close_matches


class AttngridError(Exception):
    """Base of the errors that the command line prints without a traceback."""


class ConfigError(AttngridError):
    """A configuration, recipe or table description that cannot be used."""


class UnknownNameError(AttngridError, ValueError):
    """A name that no registry holds; the message lists the near matches."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        near = get_close_matches(name.lower(), known, n=5, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known are {', '.join(known)}")


class RecordError(AttngridError):
    """A record that cannot be what the cell measured."""


class DataError(AttngridError):
    """A dataset that is not where it should be, or not what it should be."""


class DivergedError(AttngridError):
    """A training loss that became infinite or not a number."""

    def __init__(self, epoch: int, step: int, loss: float) -> None:
        super().__init__(f"diverged: the loss became {loss} in epoch {epoch}, step {step}")
        self.epoch, self.step, self.loss = epoch, step, loss

    def __reduce__(self) -> tuple[type, tuple[int, int, float]]:
        """As it comes from another process."""
        return type(self), (self.epoch, self.step, self.loss)


class DivergedTrialsError(AttngridError):
    """A model of whose trials none came to its end, so that there is nothing to choose."""


class InterruptedTrainingError(AttngridError):
    """A training that a signal ended after a last checkpoint."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}; the next run goes on from its checkpoint")
        self.number = number
        self.exit_code = 128 + number


class DeadlineError(InterruptedTrainingError):
    """A training that the deadline of its run ended after a last checkpoint."""

    def __init__(self) -> None:
        super().__init__(signal.SIGTERM)
        self.args = ("stopped at the deadline; the next run goes on from its checkpoint",)


class NotStartedError(AttngridError):
    """A training that would not be through before the deadline of its run."""


class LostProcessError(AttngridError):
    """Another process of the same training that ended, or does not answer any more."""

    exit_code = 75


class EndedProcessError(AttngridError):
    """One of several processes that ended before their training did."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class BusyCellError(AttngridError):
    """A cell that another process is training."""


class OutOfMemoryError(AttngridError):
    """A training that did not fit, on a CPU or on a GPU."""


class WriteError(AttngridError):
    """A file that could not be written: a full disk, a read-only folder."""


class InconsistentError(AttngridError):
    """A training that was repeated and is not what its records say."""

    exit_code = 3


class InconclusiveError(AttngridError):
    """A repetition that came to no result within its budget."""

    exit_code = 4
