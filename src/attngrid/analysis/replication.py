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

from attngrid.analysis.deviations import Deviation
from attngrid.core.errors import AttngridError
from attngrid.core.files import write_atomically
from attngrid.records.record import read_record
from attngrid.study.cell import Cell
from attngrid.study.paths import site
from attngrid.study.schema import Study

GRACE_S = 60  # seconds to write a last checkpoint


@dataclass(frozen=True)
class Replication:
    """Repeated trainings of one condition, each with the seed of its record."""

    trained: int  # trainings that finished
    identical: int  # trainings whose metrics are bit-identical to the record
    difference: float  # mean of new minus old top-1 error over these seeds, in points
    limit: float | None  # the largest consistent difference; None if it is not known
    basis: str  # what the limit is computed from

    @property
    def consistent(self) -> bool | None:
        """Whether all metrics are bit-identical, or the difference is within the limit."""
        if self.identical == self.trained:
            return True
        return None if self.limit is None else abs(self.difference) <= self.limit


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


def compare(again: Sequence[Cell], folder: Path, known: Deviation | None) -> Replication:
    """Compare new trainings of one condition, those of ``retrain``, with their records.

    Both runs of a seed share their test images, and may share more, so they are compared in
    pairs: the limit is the half-width of the paired 95 % t-interval. One pair has no deviation of
    its own. Its limit is t·s·√2, with the known deviation ``s`` of a model's error over seeds.
    """
    old = [read_record(cell.record, cell).metrics for cell in again]
    new = [read_record(_record(folder, cell), cell).metrics for cell in again]
    changes = [b.top1_error - a.top1_error for a, b in zip(old, new, strict=True)]
    n, limit, basis = len(changes), None, "no deviation over seeds is known"
    if n > 1:
        limit = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(changes) / math.sqrt(n)
        basis = "paired by seed"
    elif known is not None:
        limit = float(stats.t.ppf(0.975, known.df)) * known.std * math.sqrt(2)
        basis = f"σ = {known.std:.2f}: {known.source}"
    identical = sum(a == b for a, b in zip(old, new, strict=True))
    return Replication(n, identical, statistics.fmean(changes), limit, basis)


def _record(folder: Path, cell: Cell) -> Path:
    return folder / "results" / cell.study / "records" / f"{cell.id}.json"
