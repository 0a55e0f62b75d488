"""A limit on the time of a run: cells that would not fit are not started, others are checkpointed.

``attngrid train --max-runtime 30m`` sets it for one cell. The environment variable
``ATTNGRID_DEADLINE``, in seconds since 1970, sets it for a whole run of Snakemake.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress

from attngrid.core.errors import ConfigError, NotStartedError
from attngrid.records.status import epochs_in_checkpoint, read_status, write_status
from attngrid.study.cell import Cell
from attngrid.study.plan import Planner, duration
from attngrid.study.schema import Study
from attngrid.training.devices import gpu_name

DEADLINE = "ATTNGRID_DEADLINE"
# Seconds that a training takes beside its loop, and the factor on the planned time of its loop.
START_S, MARGIN = 10.0, 1.1


def set_max_runtime(seconds: float) -> None:
    """End this process, and the processes that it starts, within so many seconds from now."""
    os.environ[DEADLINE] = str(min(time.time() + seconds, deadline()))


def deadline() -> float:
    """When the run ends, in seconds since 1970; infinite without a limit.

    Raises:
        ConfigError: the environment variable is not a number.
    """
    text = os.environ.get(DEADLINE) or "inf"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{DEADLINE}: found {text!r}; needs a number of seconds") from None


def require_time(study: Study, cell: Cell) -> None:
    """Raise where a cell would not be trained before the deadline; its status says so.

    The time is that of ``attngrid plan`` on the device at hand, less the epochs before its
    checkpoint. A cell without an estimate is started.

    Raises:
        NotStartedError: with the time that the cell needs and the time that is left.
    """
    if (end := deadline()) == math.inf:
        return
    gpu = None if study.compute.device == "cpu" else gpu_name()
    seconds = Planner(study, gpu=gpu, on_cpu=gpu is None).estimate(cell).seconds
    left, needs, wanted = end - time.time(), START_S, ""
    if seconds is not None:
        done = min(1, epochs_in_checkpoint(cell) / cell.recipe.epochs)
        needs += MARGIN * seconds * (1 - done)
        wanted = f"needs some {duration(needs)}, "
    if needs <= left:
        return
    message = f"not started: {wanted}{duration(max(0.0, left))} are left"
    if (read_status(cell.status) or {}).get("state") != "running":  # by another process
        with suppress(OSError):
            write_status(cell.status, "waiting", message)
    raise NotStartedError(f"{cell.id}: {message}")
