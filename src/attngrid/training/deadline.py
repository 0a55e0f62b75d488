"""A run that ends at a given time: what would not fit is not begun, what runs ends at a checkpoint.

The environment says when: ``ATTNGRID_DEADLINE``, seconds since 1970, and ``ATTNGRID_BUDGET``, how
many seconds the run has in all.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from attngrid.core.errors import ConfigError, NotStartedError
from attngrid.records.status import reached, read_status, write_status
from attngrid.study.cell import Cell
from attngrid.study.plan import Planner, duration
from attngrid.study.schema import Study
from attngrid.training.devices import gpu_name

END, BUDGET = "ATTNGRID_DEADLINE", "ATTNGRID_BUDGET"
# Of a training beside its loop: Python, torch, the images, the record.
START_S = 10.0
# What a training may take more than planned.
MARGIN = 1.1
# A cell that needs more of a whole run than this would never fit in one, whenever it is begun.
LONG = 0.8


@dataclass(frozen=True)
class Deadline:
    """When a run ends, in seconds since 1970, and how many seconds it has in all."""

    end: float
    budget: float = math.inf

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.time()


def deadline() -> Deadline | None:
    """What the environment says; None where it says nothing.

    Raises:
        ConfigError: no number.
    """
    values = []
    for name in (END, BUDGET):
        text = os.environ.get(name) or "inf"
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise ConfigError(f"{name}: found {text!r}; needs a number of seconds")
        values.append(value)
    return Deadline(*values) if values[0] < math.inf else None


def require_time(study: Study, cell: Cell) -> None:
    """Raise where a training would not be through before the deadline, and say so in its status.

    What it needs is planned as in ``attngrid plan``, for the device at hand, less the epochs that
    its checkpoint has behind it. What nothing is known of is begun. One that would never fit in a
    run as long as this is begun, too, once no waiting cell of the study fits any more: it trains
    to the deadline, and goes on in the next run.

    Raises:
        NotStartedError: with what it needs and what is left.
    """
    ends = deadline()
    if ends is None:
        return
    gpu = None if study.compute.device == "cpu" else gpu_name()
    planner = Planner(study, gpu=gpu, on_cpu=gpu is None)
    needs, left = _needs(planner, cell), ends.left
    if left > START_S:
        if needs is None or needs <= left:
            return
        # left to right: reading the others' files only where it is about them
        if needs > LONG * ends.budget and not any(_fit(planner, left, cell)):
            print(
                f"{cell.label}: needs some {duration(needs)}, more than a run has; trains to the "
                f"deadline in {duration(left)} and goes on in the next run",
                file=sys.stderr,
            )
            return
    wanted = "" if needs is None else f"needs some {duration(needs)}, "
    message = f"not started: {wanted}{duration(max(0.0, left))} are left"
    if (read_status(cell.status) or {}).get("state") != "running":  # another process trains it
        with suppress(OSError):
            write_status(cell.status, "waiting", message, **reached(cell.status))
    raise NotStartedError(f"{cell.id}: {message}")


def _needs(planner: Planner, cell: Cell) -> float | None:
    """Seconds that a training still needs; None where nothing says so."""
    seconds = planner.estimate(cell).seconds
    if seconds is None:
        return None
    done = reached(cell.status).get("epoch", 0) if cell.checkpoint.is_file() else 0
    return START_S + MARGIN * seconds * (1 - min(1, done / cell.recipe.epochs))


def _fit(planner: Planner, left: float, than: Cell) -> Iterator[bool]:
    """Of each cell that waits beside the one given, whether it would fit."""
    study = planner.study
    superseded = study.superseded
    for cell in (*study.trials.values(), *study.trainings.values()):
        if cell.id == than.id or cell.id in superseded or cell.record.is_file():
            continue
        if cell.choice is not None and not cell.choice.is_file():
            continue  # its trials come first
        status = read_status(cell.status)
        # what failed would stand in the way for ever
        if status is None or status["state"] == "waiting":
            needs = _needs(planner, cell)
            yield needs is not None and needs <= left
