"""Training a table's row again, elsewhere, and whether that is consistent with its records."""

from __future__ import annotations

import math
import os
import shutil
import signal
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
from attngrid.records.record import Record, read_record
from attngrid.study.cell import Cell
from attngrid.study.paths import site
from attngrid.study.schema import Study

GRACE_S = 60  # for a last checkpoint


@dataclass(frozen=True)
class Replication:
    """Trainings that were repeated, in one condition.

    Attributes:
        cells: that were trained again to their end.
        identical: of them, how many have the records' metrics to the bit.
        committed, found: top-1 errors: of all records, and of the new ones.
        limit: how far the means may be apart, in points; None where that cannot be said.
    """

    cells: tuple[Cell, ...]
    identical: int
    committed: tuple[float, ...]
    found: tuple[float, ...]
    limit: float | None

    @property
    def difference(self) -> float:
        """New mean less the committed one, in points."""
        return sum(self.found) / len(self.found) - sum(self.committed) / len(self.committed)

    @property
    def consistent(self) -> bool:
        """Equal to the bit, or within the limit."""
        if self.identical == len(self.cells):
            return True
        return self.limit is not None and abs(self.difference) <= self.limit


def retrain(study: Study, cells: Sequence[Cell], folder: Path, budget_s: float) -> list[Cell]:
    """Train cells again, one after the other, into a folder of their own.

    A training that the budget ends is stopped at a checkpoint; the next call with the same
    folder goes on from there, and repeats none that is finished.

    Args:
        study: whose cells they are.
        cells: in the order in which they are trained.
        folder: gets ``site.yaml`` and ``results/``.
        budget_s: seconds for all of them together.

    Returns:
        Those that came to their end.

    Raises:
        AttngridError: a training that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = site().model_copy(update={"results": str((folder / "results").absolute())})
    write_atomically(folder / "site.yaml", yaml.safe_dump(own.model_dump(exclude_none=True)))
    home = folder / "results" / study.study
    # what a tuned cell is trained with
    if (chosen := study.results / "tuning").is_dir():
        shutil.copytree(chosen, home / "tuning", dirs_exist_ok=True)
    configuration = folder / "study.json"
    write_atomically(configuration, study.resolved())
    environment = os.environ | {"ATTNGRID_SITE": str((folder / "site.yaml").absolute())}
    deadline = time.monotonic() + budget_s
    finished = []
    for cell in cells:
        record = home / "records" / f"{cell.id}.json"
        if not record.is_file():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            command = [sys.executable, "-m", "attngrid.cli", "train", str(configuration), cell.id]
            code = _run(command, environment, left)
            if code is None:
                break
            if code:
                raise AttngridError(f"{cell.id}: its training ended with {code}, see above")
        finished.append(cell)
    return finished


def _run(command: Sequence[str], environment: dict[str, str], seconds: float) -> int | None:
    """Run a training; at the end of its time ask it for a checkpoint. None: it was stopped."""
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
    """Set new trainings of one condition beside its records.

    Args:
        cells: all of the row, those without a record left out.
        again: those that were trained again.
        folder: as ``retrain``'s.

    Raises:
        RecordError: a record that is not its cell's.
    """
    records = {cell.id: read_record(cell.record, cell) for cell in cells if cell.record.is_file()}
    found: dict[str, Record] = {}
    for cell in again:
        file = folder / "results" / cell.study / "records" / f"{cell.id}.json"
        found[cell.id] = read_record(file, cell)
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
    """How far the mean of new trainings may be from the committed ones, at 95 %.

    With two records or more it is the prediction interval of their deviation over seeds; with one
    it is what the drawing of the test images gives two figures, there being nothing better.
    """
    n = len(committed)
    mean = sum(committed) / n
    deviation = math.sqrt(sum((e - mean) ** 2 for e in committed) / (n - 1)) if n > 1 else 0.0
    if deviation > 0:
        return float(stats.t.ppf(0.975, n - 1)) * deviation * math.sqrt(1 / n + 1 / again)
    share = min(max(mean / 100, 1 / images), 1 - 1 / images)
    return 100 * 1.96 * math.sqrt(2 * share * (1 - share) / images)
