"""Estimates of a study's hours, disk space and wall time, from measured times or from MACs."""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from attngrid.core.errors import UnknownNameError
from attngrid.core.files import shipped
from attngrid.data.registry import find_dataset
from attngrid.study.cell import MODEL_KEY, Cell
from attngrid.study.cluster import DAY, cluster
from attngrid.study.paths import results_folder
from attngrid.study.schema import Study

# TFLOP/s without sparsity from the vendor's data sheets: float32 without tensor cores (TF32
# is off), bfloat16 with them. V100 and T4 have no bfloat16.
PEAKS: dict[str, tuple[float, float]] = {
    "A100": (19.5, 312),
    "A40": (37.4, 149.7),
    "B200": (75, 2250),
    "GB200": (75, 2250),
    "GH200": (66.9, 989),
    "H100": (66.9, 989),
    "H200": (66.9, 989),
    "L4": (30.3, 121),
    "L40S": (91.6, 362),
    "RTX 3090": (35.6, 71),
    "RTX 4090": (82.6, 165),
    "RTX A6000": (38.7, 154.8),
    "T4": (8.1, 8.1),
    "V100": (15.7, 15.7),
}
# Assumptions without measured times: the share of its peak that a device reaches, the shortest
# time of a step on a GPU (to launch its kernels), and the peak of a CPU thread.
SHARE = 0.2
STEP_S = 0.02
CPU_TFLOPS = 0.1
# A multiply-accumulate is two operations. Training computes three products for each MAC: the
# forward one, the gradient of the weights and the gradient of the activations.
FLOPS_PER_TRAINED_MAC, FLOPS_PER_TESTED_MAC = 6, 2
# Images of ImageNet's size that one core reads, decodes whole and transforms in a second; from
# docs/performance.md, "Reading images".
IMAGES_PER_CORE_S = 270
# A cell that asks for at most this wall time shares its job with others.
SMALL_MIN = 60
MEASURED, FROM_MACS, UNKNOWN = "measured", "from MACs", "unknown"
READING = "reading images"  # it takes longer than the network
# Numbers of devices for which a plan gives the wall time.
DEVICE_COUNTS = (1, 4, 16, 64)


def _is_device(name: str, device: str) -> bool:
    """Whether a device's name contains a GPU's name as whole words: an L40S is not an L4."""
    pattern = rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])"
    return re.search(pattern, device.lower()) is not None


def duration(seconds: float) -> str:
    """``3 h 05 min``, ``12 min 20 s``, ``40 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def number(value: float) -> str:
    """Two significant digits, no decimals from 100 on, and 0 below 0.001."""
    if value < 0.001:
        return "0"
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.2g}"


@dataclass(frozen=True)
class Estimate:
    """The expected seconds of a training, or None if they are unknown, and their source."""

    seconds: float | None
    source: str
    devices: int = 1

    @property
    def hours(self) -> float:
        """Hours of all its devices; nan if they are unknown."""
        return math.nan if self.seconds is None else self.devices * self.seconds / 3600


class Planner:
    """Estimates for a study's cells on a named GPU.

    Args:
        study: the study; its ``compute`` says whether the cells run on a CPU.
        limit: returns the time limit of a job in minutes; called at most once, when needed.
        gpu: a key of ``PEAKS``, or words of a record's ``device_name``; default: the cluster's.
        on_cpu: whether the cells run on a CPU; default: from the study.
        cores: the cores of the machine; default: as many as a cell's job requests.
    """

    def __init__(
        self,
        study: Study,
        limit: Callable[[], int] = lambda: DAY,
        *,
        gpu: str | None = None,
        on_cpu: bool | None = None,
        cores: int | None = None,
    ) -> None:
        self.study = study
        self._limit = limit
        self.on_cpu = study.compute.device == "cpu" if on_cpu is None else on_cpu
        self.cluster = cluster()
        self.gpu = gpu or self.cluster.gpu
        self.device = "CPU" if self.on_cpu else self.gpu
        self.processes, workers = study.compute.gpus, study.compute.workers
        # processes that read image files at the same time, over all processes of a cell
        self.readers = self.processes * (
            workers if cores is None else min(workers, max(1, cores // self.processes))
        )

    @cached_property
    def limit(self) -> int:
        """The time limit of a job in minutes."""
        return self._limit()

    @cached_property
    def _counts(self) -> dict[tuple[str, ...], tuple[int, int]]:
        """Parameters and MACs of the counted models, by ``MODEL_KEY``."""
        counts = {}
        for file in (shipped("results/complexity.csv"), self.study.results / "complexity.csv"):
            with suppress(OSError), file.open(encoding="utf-8", newline="") as stream:
                for row in csv.DictReader(stream):
                    if row["macs"]:  # empty if an operator cannot be counted
                        key = tuple(row[name] for name in MODEL_KEY)
                        counts[key] = int(row["params"]), int(row["macs"])
        return counts

    def _count(self, cell: Cell) -> tuple[int, int] | None:
        return self._counts.get(tuple(map(str, cell.model_key)))

    @cached_property
    def _measured(self) -> dict[tuple[object, ...], float]:
        """Seconds of the same trainings on the same kind of device in records, by ``_key``.

        It is the median over a model's seeds, because a machine may have been busy.
        """
        records = sorted(results_folder().glob("*/records/*.json"))
        records += sorted(results_folder().glob("*/trials/*.json"))
        files = {file.stem: file for file in records}
        seconds: dict[tuple[object, ...], list[float]] = defaultdict(list)
        compute = self.study.compute
        for cell in self.study.by_id.values():
            with suppress(OSError, ValueError, KeyError, TypeError):
                run = json.loads(files[cell.id].read_text("utf-8"))["run"]
                same = self.on_cpu or _is_device(self.gpu, run["device_name"])
                same &= run.get("processes", 1) == compute.gpus
                if find_dataset(cell.dataset).target is None:
                    same &= run["workers"] == compute.workers
                if (run["device"] == "cpu") == self.on_cpu and same:
                    seconds[_key(cell)].append(float(run["wall_s"]))
        return {key: statistics.median(values) for key, values in seconds.items()}

    @property
    def _peak(self) -> tuple[float, float] | None:
        return next((peak for name, peak in PEAKS.items() if _is_device(name, self.gpu)), None)

    def require_known(self) -> None:
        """Raise an UnknownNameError if neither ``PEAKS`` nor a record has the GPU."""
        if not (self.on_cpu or self._peak or self._measured):
            raise UnknownNameError("GPU", self.gpu, PEAKS)

    def estimate(self, cell: Cell) -> Estimate:
        """Seconds of the cell's whole training with its tests, and their source."""
        if (seconds := self._measured.get(_key(cell))) is not None:
            return Estimate(seconds, MEASURED, 1 if self.on_cpu else self.processes)
        return self.calculate(cell)

    def calculate(self, cell: Cell) -> Estimate:
        """The estimate without any record: from MACs, or from the images to read."""
        devices = 1 if self.on_cpu else self.processes
        counted, dataset = self._count(cell), find_dataset(cell.dataset)
        if counted is None or dataset.images is None or (rate := self._flops(cell)) is None:
            return Estimate(None, UNKNOWN)
        _, macs = counted
        train, test = (n * cell.num_classes / dataset.num_classes for n in dataset.images)
        if cell.validation:
            train, test = train - cell.validation, cell.validation
        batch = cell.recipe.batch_size
        shortest_s = 0 if self.on_cpu else STEP_S
        step_macs = batch / self.processes * macs
        step_s = max(shortest_s, step_macs * FLOPS_PER_TRAINED_MAC / rate)
        test_s = max(shortest_s / 3, step_macs * FLOPS_PER_TESTED_MAC / rate)
        network_s = (train * step_s + test * test_s) / batch
        reading_s = 0.0
        if dataset.target is None:  # the images are not in memory
            reading_s = (train + test) / (IMAGES_PER_CORE_S * (self.readers or self.processes))
        # without workers, the network waits for each batch
        epoch_s = max(network_s, reading_s) if self.readers else network_s + reading_s
        source = READING if reading_s > network_s else FROM_MACS
        return Estimate(cell.recipe.epochs * epoch_s, source, devices)

    def _flops(self, cell: Cell) -> float | None:
        """Floating-point operations per second that the device is assumed to reach."""
        if self.on_cpu:
            return CPU_TFLOPS * 1e12 * SHARE * cell.threads
        return self._peak and self._peak[cell.precision == "bfloat16"] * 1e12 * SHARE

    def runtime(self, cell_id: str) -> int:
        """Minutes of wall time to request for a cell's job."""
        seconds = self.estimate(self.study.training(cell_id)).seconds
        return self.cluster.runtime(seconds, self.limit)

    def group(self, cell_id: str, beside: int) -> str | None:
        """The Snakemake group of a small cell, else None; ``beside`` small cells share a job."""
        minutes = self.runtime(cell_id)
        return "small" if minutes <= SMALL_MIN and beside * minutes <= self.limit else None

    def disk_gb(self) -> float | None:
        """Disk space of the weights in GB; None if a model is not counted yet."""
        if self.study.keep.weights == "none":
            return 0
        counts = [self._count(cell) for cell in self.study.trainings.values()]
        known = [count[0] for count in counts if count is not None]
        return 4 * sum(known) / 1e9 if len(known) == len(counts) else None


def _key(cell: Cell) -> tuple[object, ...]:
    """Cells with the same key take the same time."""
    return (
        *(cell.dataset, cell.backbone, cell.attention, cell.options, cell.precision),
        *(cell.threads, cell.recipe.batch_size, cell.recipe.epochs),
    )


def time_left(planner: Planner, began: float) -> float | None:
    """Estimated seconds of a run that began at this time (since 1970), until every cell is trained.

    The cells that got their record since then give the pace: how many calculated seconds of
    training the run does in a second. None before the first one.
    """
    study, done, left = planner.study, 0.0, 0.0
    stale = study.superseded  # these are not trained
    cells = [c for c in (*study.trials.values(), *study.trainings.values()) if c.id not in stale]
    seconds = [planner.calculate(cell).seconds for cell in cells]
    for cell, size in zip(cells, seconds, strict=True):
        work = 1.0 if size is None or None in seconds else size
        try:
            done += work * (cell.record.stat().st_mtime >= began)
        except FileNotFoundError:
            left += work
    return left * (time.time() - began) / done if done else None


def summary(planner: Planner) -> str:
    """Cells, hours and disk space in two lines, the first output of every run."""
    study, disk = planner.study, planner.disk_gb()
    cells = study.by_id.values()
    left = [planner.estimate(cell) for cell in cells if not cell.record.is_file()]
    known = [one.hours for one in left if one.seconds is not None]
    kind = "CPU hours" if planner.on_cpu else "GPU hours"
    if not left:
        hours = f"no {kind} left"
    elif not known:
        hours = f"{kind} not known yet"
    else:
        counts = Counter(estimate.source for estimate in left)
        sources = ", ".join(f"{count} {source}" for source, count in sorted(counts.items()))
        hours = f"about {number(sum(known))} {kind} left ({planner.device}: {sources})"
    return (
        f"study {study.study}{': ' if study.title else ''}{study.title}\n"
        f"{len(cells)} cells, {len(cells) - len(left)} done; {hours}"
        + ("" if disk is None else f"; {number(disk)} GB on disk")
    )


def plan(planner: Planner) -> Iterator[str]:
    """The lines of ``attngrid plan``: cells, hours left and their sources, and wall time."""
    import pandas as pd

    planner.require_known()
    yield summary(planner)
    rows = []
    for cell in planner.study.by_id.values():
        recipe, is_trial, _ = cell.recipe_name.partition("+lr")
        condition = replace(cell, recipe_name=recipe).condition + (", trials" if is_trial else "")
        done, estimate = cell.record.is_file(), planner.estimate(cell)
        hours = 0.0 if done else estimate.hours
        rows.append((condition, done, hours, "done" if done else estimate.source))
    frame = pd.DataFrame(rows, columns=["condition", "done", "hours", "source"])
    table = frame.groupby("condition", sort=False).agg(
        cells=("done", "size"),
        done=("done", "sum"),
        hours=("hours", lambda hours: hours.sum(min_count=1)),
        longest=("hours", "max"),
        source=("source", lambda sources: ", ".join(dict.fromkeys(sources))),
    )
    text = table.reset_index().to_string(index=False, na_rep="--", float_format=number)
    yield from text.splitlines()
    total, longest = frame["hours"].sum(), frame["hours"].max()
    longest /= 1 if planner.on_cpu else planner.processes
    if UNKNOWN in set(frame["source"]):
        yield "unknown: a model or a dataset's images have not been counted yet"
    else:
        walls = [f"{duration(3600 * max(longest, total / n))} on {n}" for n in DEVICE_COUNTS]
        yield f"wall time by the number of {planner.device}s: {', '.join(walls)}"
    if FROM_MACS in set(frame["source"]):
        yield (
            f"from MACs: {100 * SHARE:.0f} % of the device's peak is assumed"
            + ("" if planner.on_cpu else f", and {1000 * STEP_S:.0f} ms or more a step")
        )
    if READING in set(frame["source"]):
        yield (
            f"reading images: takes longer than the network, with {planner.readers} processes "
            f"(compute: workers) of some {IMAGES_PER_CORE_S} images a second"
        )
