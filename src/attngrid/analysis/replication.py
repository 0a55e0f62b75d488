"""Train a table's row again in another folder, and compare the results with its records."""

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

from attngrid.core.errors import AttngridError
from attngrid.core.files import write_atomically
from attngrid.records.record import read_record
from attngrid.study.cell import Cell
from attngrid.study.paths import site
from attngrid.study.schema import Study

GRACE_S = 60  # seconds to write a last checkpoint


@dataclass(frozen=True)
class Replication:
    """Repeated trainings of one condition."""

    trained: int  # trainings that finished
    identical: int  # trainings whose metrics are bit-identical to the record
    records: int  # records that they are compared with
    difference: float  # new mean of the top-1 error minus the records', in points
    limit: float  # the largest consistent difference

    @property
    def consistent(self) -> bool:
        """Whether all metrics are bit-identical, or the means differ by at most the limit."""
        return self.identical == self.trained or abs(self.difference) <= self.limit


def retrain(study: Study, cells: Sequence[Cell], folder: Path, budget_s: float) -> list[Cell]:
    """Train cells again, one after another, in a separate folder.

    At the end of the budget, the training stops at a checkpoint. The next call with the same
    folder continues it and repeats no finished training.

    Returns:
        The cells that finished.

    Raises:
        AttngridError: a training failed.
    """
    own = site().model_copy(update={"results": str((folder / "results").absolute())})
    write_atomically(folder / "site.yaml", yaml.safe_dump(own.model_dump(exclude_none=True)))
    # the best hyperparameters of tuned cells
    if (tuning := study.results / "tuning").is_dir():
        shutil.copytree(tuning, folder / "results" / study.study / "tuning", dirs_exist_ok=True)
    configuration = folder / "study.json"
    write_atomically(configuration, study.resolved())
    environment = os.environ | {"ATTNGRID_SITE": str((folder / "site.yaml").absolute())}
    deadline = time.monotonic() + budget_s
    finished = []
    for cell in cells:
        if not _record(folder, cell).is_file():
            if (left_s := deadline - time.monotonic()) <= 0:
                break
            command = [sys.executable, "-m", "attngrid.cli", "train", str(configuration), cell.id]
            code = _run(command, environment, left_s)
            if code is None:
                break
            if code:
                raise AttngridError(f"{cell.id}: training ended with status {code}; see above")
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
    """Compare new trainings of one condition, those of ``retrain``, with its records."""
    old = {cell.id: read_record(cell.record, cell).metrics for cell in cells}
    new = {cell.id: read_record(_record(folder, cell), cell).metrics for cell in again}
    before = [metrics.top1_error for metrics in old.values()]
    after = [metrics.top1_error for metrics in new.values()]
    return Replication(
        trained=len(new),
        identical=sum(metrics == old[id] for id, metrics in new.items()),
        records=len(old),
        difference=sum(after) / len(after) - sum(before) / len(before),
        limit=_limit(before, len(after), old[cells[0].id].test_images),
    )


def _record(folder: Path, cell: Cell) -> Path:
    return folder / "results" / cell.study / "records" / f"{cell.id}.json"


def _limit(errors: Sequence[float], again: int, images: int) -> float:
    """The largest consistent difference of the means, at 95 %.

    With two or more records it is the half-width of the prediction interval over seeds; with one
    record, of the interval for the sampling of the test images.
    """
    n = len(errors)
    std = statistics.stdev(errors) if n > 1 else 0.0
    if std > 0:
        return float(stats.t.ppf(0.975, n - 1)) * std * math.sqrt(1 / n + 1 / again)
    share = statistics.mean(errors) / 100
    share = min(max(share, 1 / images), 1 - 1 / images)
    return 100 * 1.96 * math.sqrt(2 * share * (1 - share) / images)
