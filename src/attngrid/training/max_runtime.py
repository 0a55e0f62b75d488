"""A time limit of a run: cells that need more time do not start; others save a checkpoint.

``attngrid train --max-runtime 30m`` sets it for one cell. The environment variable
``ATTNGRID_DEADLINE``, in seconds since 1970, sets it for a whole run of Snakemake.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress

from attngrid.core.errors import ConfigError, NotStartedError
from attngrid.core.hardware import processors
from attngrid.records.status import epochs_in_checkpoint, read_status, write_status
from attngrid.study.cell import Cell
from attngrid.study.plan import Planner, duration
from attngrid.study.schema import Study
from attngrid.training.devices import gpu_name

DEADLINE = "ATTNGRID_DEADLINE"
# Seconds that a training needs to start, and a safety factor on the planned time of its loop.
START_S, MARGIN = 10.0, 1.1


def set_max_runtime(seconds: float) -> None:
    """Set the deadline of this process and of those that it starts to so many seconds from now."""
    os.environ[DEADLINE] = str(min(time.time() + seconds, deadline()))


def deadline() -> float:
    """The deadline of the run in seconds since 1970; infinite without a limit.

    Raises:
        ConfigError: the environment variable is not a number.
    """
    text = os.environ.get(DEADLINE) or "inf"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{DEADLINE}: found {text!r}; needs a number of seconds") from None


def require_time(study: Study, cell: Cell) -> None:
    """Raise an error, and write it to the status, if a cell would miss the deadline.

    The time is estimated as by ``attngrid plan`` for this device, without the epochs in the
    checkpoint. A cell without an estimate is started.

    Raises:
        NotStartedError: says the time that the cell needs and the time that is left.
    """
    if (end := deadline()) == math.inf:
        return
    gpu = None if study.compute.device == "cpu" else gpu_name()
    planner = Planner(study, gpu=gpu, on_cpu=gpu is None, cores=processors())
    seconds = planner.estimate(cell).seconds
    left, needs, estimate = end - time.time(), START_S, ""
    if seconds is not None:
        done = min(1, epochs_in_checkpoint(cell) / cell.recipe.epochs)
        needs += MARGIN * seconds * (1 - done)
        estimate = f"needs about {duration(needs)}, "
    if needs <= left:
        return
    message = f"not started: {estimate}{duration(max(0.0, left))} left before the deadline"
    if (read_status(cell.status) or {}).get("state") != "running":  # in another process
        with suppress(OSError):
            write_status(cell.status, "waiting", message)
    raise NotStartedError(f"{cell.id}: {message}")
