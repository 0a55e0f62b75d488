"""The hours, disk space and wall time that a study needs, from measured times or from MACs."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.core.files import shipped
from attngrid.data.registry import find_dataset
from attngrid.study.cell import MODEL_KEY, Cell
from attngrid.study.cluster import DAY, cluster, cluster_file
from attngrid.study.paths import results_folder
from attngrid.study.schema import Study

# TFLOP/s without sparsity from the vendor's data sheets: float32 without tensor cores (a cell's
# float32 means float32), bfloat16 with them. V100 and T4 have no bfloat16.
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
# Assumptions where nothing was measured: the share of its peak that a device reaches, the shortest
# time of a GPU's step (its kernels start one by one), and the peak of a CPU thread.
SHARE = 0.2
STEP_S = 0.02
CPU_TFLOPS = 0.1
# A multiply-accumulate is two operations. Training computes three products for each MAC: the
# forward one, the gradient of the weights and the gradient of the activations.
FLOPS_PER_TRAINED_MAC, FLOPS_PER_TESTED_MAC = 6, 2
# A cell that asks for at most this wall time shares its job with others.
SMALL_MIN = 60
MEASURED, FROM_MACS, UNKNOWN = "measured", "from MACs", "--"


def _names(name: str, device: str) -> bool:
    """Whether a device's name contains a GPU's name as whole words: an L40S is no L4."""
    pattern = rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])"
    return re.search(pattern, device.lower()) is not None


def duration(seconds: float) -> str:
    """``3 h 05 min``, ``12 min 20 s``, ``40 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@dataclass(frozen=True)
class Estimate:
    """The expected seconds of a training; None where they are unknown."""

    seconds: float | None
    source: str
    params: int | None


@dataclass(frozen=True)
class Line:
    """A part of the grid: the cells of one dataset, recipe and set of options."""

    condition: str
    cells: int
    done: int
    hours: float | None
    longest_h: float | None
    sources: dict[str, int]


class Planner:
    """Estimates for a study's cells on a named GPU.

    Args:
        study: the study; its ``compute`` says whether the cells run on a CPU.
        limit: returns the minutes that a job may take; called at most once, when needed.
        gpu: a key of ``PEAKS``, or words of a record's ``device_name``; left out: the cluster's.
        on_cpu: whether the cells run on a CPU; left out: as the study says.
    """

    def __init__(
        self,
        study: Study,
        limit: Callable[[], int] = lambda: DAY,
        *,
        gpu: str | None = None,
        on_cpu: bool | None = None,
    ) -> None:
        self.study = study
        self._limit = limit
        self.on_cpu = study.compute.device == "cpu" if on_cpu is None else on_cpu
        self.cluster = cluster()
        self.gpu = gpu or self.cluster.gpu
        self._source = "--gpu" if gpu else f"{cluster_file()}: gpu"
        self._known: dict[tuple[object, ...], Estimate] = {}
        # A model's seeds share one estimate: the median, since a machine may have been busy.
        measured: dict[tuple[object, ...], list[float]] = {}
        for cell in (*study.trainings.values(), *study.trials.values()):
            if (seconds := self._measured(cell)) is not None:
                key = _key(cell)
                measured.setdefault(key, []).append(seconds)
                median = statistics.median(measured[key])
                self._known[key] = Estimate(median, MEASURED, self._count(cell)[0])

    @property
    def device(self) -> str:
        """The device that the hours are for."""
        return "CPU" if self.on_cpu else self.gpu

    @cached_property
    def _counts(self) -> dict[tuple[str, ...], tuple[int, int]]:
        """Parameters and MACs of the counted models, by ``MODEL_KEY``."""
        counts = {}
        for file in (shipped("results/complexity.csv"), self.study.results / "complexity.csv"):
            with suppress(OSError), file.open(encoding="utf-8", newline="") as stream:
                for row in csv.DictReader(stream):
                    with suppress(KeyError, ValueError):
                        key = tuple(row[name] for name in MODEL_KEY)
                        counts[key] = int(row["params"]), int(row["macs"])
        return counts

    @cached_property
    def _records(self) -> dict[str, Path]:
        """The records of all studies by id; the study's own take precedence."""
        found: dict[str, Path] = {}
        folders = [self.study.results, *sorted(results_folder().glob("*"))]
        for folder in folders:
            for kind in ("records", "trials"):
                for file in (folder / kind).glob("*.json"):
                    found.setdefault(file.stem, file)
        return found

    def estimate(self, cell: Cell) -> Estimate:
        """Seconds of the cell's whole training with its tests, and their source."""
        key = _key(cell)
        if key not in self._known:
            self._known[key] = self._from_macs(cell)
        return self._known[key]

    def _measured(self, cell: Cell) -> float | None:
        """Seconds in a record of the same training on the same kind of device."""
        if (file := self._records.get(cell.id)) is None:
            return None
        with suppress(OSError, ValueError, KeyError, TypeError):
            run = json.loads(file.read_text("utf-8"))["run"]
            same = self.on_cpu or _names(self.gpu, run["device_name"])
            if (run["device"] == "cpu") == self.on_cpu and same:
                return float(run["wall_s"])
        return None

    def _count(self, cell: Cell) -> tuple[int | None, int | None]:
        return self._counts.get(tuple(map(str, cell.model_key)), (None, None))

    def _from_macs(self, cell: Cell) -> Estimate:
        params, macs = self._count(cell)
        images = find_dataset(cell.dataset).images
        if macs is None or images is None or (rate := self._flops(cell)) is None:
            return Estimate(None, UNKNOWN, params)
        classes = find_dataset(cell.dataset).num_classes
        train, test = (count * cell.num_classes / classes for count in images)
        if cell.validation:
            train, test = train - cell.validation, cell.validation
        batch = cell.recipe.batch_size
        at_least = 0 if self.on_cpu else STEP_S
        step_s = max(at_least, batch * macs * FLOPS_PER_TRAINED_MAC / rate)
        test_s = max(at_least / 3, batch * macs * FLOPS_PER_TESTED_MAC / rate)
        epoch_s = (train * step_s + test * test_s) / batch
        return Estimate(cell.recipe.epochs * epoch_s, FROM_MACS, params)

    def _flops(self, cell: Cell) -> float | None:
        """Floating-point operations per second that the device is assumed to reach."""
        if self.on_cpu:
            return CPU_TFLOPS * 1e12 * SHARE * cell.threads
        for name, peak in PEAKS.items():
            if _names(name, self.gpu):
                return peak[cell.precision == "bfloat16"] * 1e12 * SHARE
        return None

    def runtime(self, cell_id: str) -> int:
        """Minutes of wall time to request for a cell's job."""
        seconds = self.estimate(self.study.training(cell_id)).seconds
        return self.cluster.runtime(seconds, self.limit)

    def group(self, cell_id: str, beside: int) -> str | None:
        """The Snakemake group of a cell: small cells share jobs, large ones have none.

        Args:
            cell_id: the id of a cell or trial.
            beside: how many cells share a job, one after the other.
        """
        minutes = self.runtime(cell_id)
        return "small" if minutes <= SMALL_MIN and beside * minutes <= self.limit else None

    @cached_property
    def limit(self) -> int:
        """Minutes that a job may take."""
        return self._limit()

    def require_known(self) -> None:
        """Check that something is known about the GPU.

        Raises:
            ConfigError: its name is unknown and no record has such a device.
        """
        if self.on_cpu or any(_names(name, self.gpu) for name in PEAKS):
            return
        if not any(self._measured(cell) for cell in self.study.trainings.values()):
            raise ConfigError(f"{self._source}: {UnknownNameError('GPU', self.gpu, PEAKS)}")

    def lines(self) -> Iterator[Line]:
        """The grid by condition, in order, then the tuning trials."""
        parts: dict[str, list[Cell]] = {}
        for cell in self.study.trainings.values():
            parts.setdefault(cell.condition, []).append(cell)
        for cell in self.study.trials.values():
            name = replace(cell, recipe_name=cell.recipe_name.partition("+")[0]).condition
            parts.setdefault(f"{name}, trials", []).append(cell)
        for condition, cells in parts.items():
            estimates = [self.estimate(cell) for cell in cells if not cell.record.is_file()]
            hours = [e.seconds / 3600 for e in estimates if e.seconds is not None]
            known = len(hours) == len(estimates)
            yield Line(
                condition=condition,
                cells=len(cells),
                done=len(cells) - len(estimates),
                hours=sum(hours) if known else None,
                longest_h=max(hours, default=0) if known else None,
                sources=dict(Counter(e.source for e in estimates)),
            )

    def disk_gb(self) -> float | None:
        """Disk space of records and weights in GB; None where a model has not been counted."""
        params = [self.estimate(cell).params for cell in self.study.trainings.values()]
        known = [count for count in params if count is not None]
        if len(known) < len(params):
            return None
        # a record takes some 200 bytes per epoch
        records = sum(200 * cell.recipe.epochs + 3000 for cell in self.study.trainings.values())
        weights = 4 * sum(known) if self.study.keep.weights == "last" else 0
        return (weights + records) / 1e9


def _key(cell: Cell) -> tuple[object, ...]:
    """Cells with the same key take the same time."""
    return (
        *(cell.dataset, cell.backbone, cell.attention, cell.options, cell.precision),
        *(cell.threads, cell.recipe.batch_size, cell.recipe.epochs),
    )


def summary(planner: Planner) -> str:
    """Cells, hours and disk space in two lines, which every run prints first."""
    study = planner.study
    lines = list(planner.lines())
    cells, done = sum(line.cells for line in lines), sum(line.done for line in lines)
    disk = planner.disk_gb()
    space = "disk --" if disk is None else f"{_size(disk)} on disk"
    text = f"study {study.study}: {study.title}\n" if study.title else f"study {study.study}\n"
    text += f"{cells} cells, {done} done; {_hours(lines, planner.device)}; {space}"
    if any(line.hours is None for line in lines):
        text += "\n-- where a model or a dataset's images have not been counted yet"
    return text


AT_ONCE = (1, 4, 16, 64)


def plan(planner: Planner) -> Iterator[str]:
    """The lines of ``attngrid plan``: cells, hours, wall time and their sources."""
    planner.require_known()
    yield summary(planner)
    lines = list(planner.lines())
    for line in lines:
        times = "--"
        if line.hours is not None:
            longest = duration(3600 * (line.longest_h or 0))
            times = f"{number(line.hours)} h, the longest {longest}"
        sources = _list_sources(Counter(line.sources)) if line.sources else "nothing left"
        yield f"  {line.condition}: {line.cells} cells, {line.done} done; {times}; {sources}"
    if any(line.hours is None for line in lines):
        return
    total = sum(line.hours or 0 for line in lines)
    longest_h = max((line.longest_h or 0 for line in lines), default=0.0)
    walls = [f"{duration(3600 * max(longest_h, total / n))} on {n}" for n in AT_ONCE]
    yield f"wall time on so many {planner.device}s at once: {', '.join(walls)}"
    if any(FROM_MACS in line.sources for line in lines):
        yield (
            f"from MACs: {100 * SHARE:.0f} % of the device's peak is assumed"
            + ("" if planner.on_cpu else f", and no step under {1000 * STEP_S:.0f} ms")
        )


def _hours(lines: Iterable[Line], device: str) -> str:
    lines = list(lines)
    total = sum(line.hours or 0 for line in lines)
    sources = sum((Counter(line.sources) for line in lines), Counter())
    unknown = sources.pop(UNKNOWN, 0)
    kind = "CPU hours" if device == "CPU" else "GPU hours"
    if not sources:
        return f"{kind} --" if unknown else f"no {kind} left"
    named = "" if device == "CPU" else f"{device}, "
    text = f"some {number(total)} {kind} left ({named}{_list_sources(sources)})"
    return f"{text}, and {unknown} cells --" if unknown else text


def _list_sources(sources: Counter[str]) -> str:
    names = [name for name in (MEASURED, FROM_MACS, UNKNOWN) if sources[name]]
    return ", ".join(f"{sources[name]} {name}" for name in names) if len(names) > 1 else names[0]


def number(value: float) -> str:
    """A number with two digits, or without decimals from 100 on; below 0.001 it is 0."""
    if value < 0.001:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _size(gb: float) -> str:
    return f"{gb:,.0f} GB" if gb >= 10 else f"{gb:.1f} GB" if gb >= 0.1 else f"{gb * 1000:.0f} MB"
