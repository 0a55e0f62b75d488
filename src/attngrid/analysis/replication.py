"""Train a table's row again, in another folder, and compare with its records."""

from __future__ import annotations

import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from scipy import stats

from attngrid.core.errors import AttngridError, RecordError
from attngrid.core.files import write_atomically
from attngrid.records.record import read_record
from attngrid.study.cell import Cell
from attngrid.study.paths import site
from attngrid.study.schema import Study

GRACE_S = 60  # for a last checkpoint


@dataclass(frozen=True)
class Replication:
    """Repeated trainings of one condition.

    Attributes:
        cells: those that finished.
        identical: how many of them have the metrics of the record to the bit.
        committed, found: top-1 errors of all records and of the new trainings.
        limit: the largest consistent difference of the means, in points.
    """

    cells: tuple[Cell, ...]
    identical: int
    committed: tuple[float, ...]
    found: tuple[float, ...]
    limit: float

    @property
    def difference(self) -> float:
        """The new mean minus the committed one, in points."""
        return sum(self.found) / len(self.found) - sum(self.committed) / len(self.committed)

    @property
    def consistent(self) -> bool:
        """Whether all metrics are equal to the bit, or the means within the limit."""
        return self.identical == len(self.cells) or abs(self.difference) <= self.limit


def retrain(study: Study, cells: Sequence[Cell], folder: Path, budget_s: float) -> list[Cell]:
    """Train cells again, one after the other, in a folder of their own.

    At the end of the budget a training is stopped at a checkpoint. The next call with the same
    folder continues it and repeats no finished training.

    Args:
        study: the cells' study.
        cells: in the order of training.
        folder: gets ``site.yaml`` and ``results/``.
        budget_s: seconds for all cells together.

    Returns:
        The cells that finished.

    Raises:
        AttngridError: a training failed.
    """
    results = folder / "results"
    home = results / study.study
    own = site().model_copy(update={"results": str(results.absolute())})
    write_atomically(folder / "site.yaml", yaml.safe_dump(own.model_dump(exclude_none=True)))
    # the best hyperparameters of tuned cells
    if (tuning := study.results / "tuning").is_dir():
        shutil.copytree(tuning, home / "tuning", dirs_exist_ok=True)
    configuration = folder / "study.json"
    write_atomically(configuration, study.resolved())
    environment = os.environ | {"ATTNGRID_SITE": str((folder / "site.yaml").absolute())}
    deadline = time.monotonic() + budget_s
    finished = []
    for cell in cells:
        if not (home / "records" / f"{cell.id}.json").is_file():
            if (left_s := deadline - time.monotonic()) <= 0:
                break
            command = [sys.executable, "-m", "attngrid.cli", "train", str(configuration), cell.id]
            code = _run(command, environment, left_s)
            if code is None:
                break
            if code:
                raise AttngridError(f"{cell.id}: its training ended with {code}, see above")
        finished.append(cell)
    return finished


def _run(command: Sequence[str], environment: dict[str, str], seconds: float) -> int | None:
    """Run a training; stop it at a checkpoint after ``seconds`` and return None."""
    with subprocess.Popen(command, env=environment) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
    return None


def compare(cells: Sequence[Cell], again: Sequence[Cell], folder: Path) -> Replication:
    """Compare new trainings of one condition with its records.

    Args:
        cells: all of the row; those without a record are ignored.
        again: those that were trained again.
        folder: as in ``retrain``.

    Raises:
        RecordError: no record, or one of another cell.
    """
    records = {cell.id: read_record(cell.record, cell) for cell in cells if cell.record.is_file()}
    found = {
        cell.id: read_record(folder / "results" / cell.study / "records" / f"{cell.id}.json", cell)
        for cell in again
    }
    if not records:
        raise RecordError(f"{cells[0].record}: there is no record to compare with")
    committed = tuple(record.metrics.top1_error for record in records.values())
    errors = tuple(record.metrics.top1_error for record in found.values())
    identical = sum(
        id in records and record.metrics == records[id].metrics for id, record in found.items()
    )
    images = next(iter(records.values())).metrics.test_images
    limit = _limit(committed, len(errors), images)
    return Replication(tuple(again), identical, committed, errors, limit)


def _limit(committed: Sequence[float], again: int, images: int) -> float:
    """The largest difference of the means that is consistent, at 95 %.

    With two records or more it is the half-width of the prediction interval over seeds; with one,
    that of the sampling of the test images.
    """
    n = len(committed)
    std = statistics.stdev(committed) if n > 1 else 0.0
    if std > 0:
        return float(stats.t.ppf(0.975, n - 1)) * std * math.sqrt(1 / n + 1 / again)
    share = statistics.mean(committed) / 100
    share = min(max(share, 1 / images), 1 - 1 / images)
    return 100 * 1.96 * math.sqrt(2 * share * (1 - share) / images)
