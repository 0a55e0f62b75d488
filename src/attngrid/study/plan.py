"""What a study will take, before it is run: GPU hours from measured speeds, or else from MACs."""

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
# Where nothing was measured: the share of its peak that a device reaches, how long a GPU's step
# takes at least (its kernels are started one by one), and the peak of a CPU's thread.
SHARE = 0.2
STEP_S = 0.02
CPU_TFLOPS = 0.1
# Forward, and backward by the weights and by the activations; a multiply-gradient_accumulation_steps is two.
FLOPS_PER_TRAINED_MAC, FLOPS_PER_TESTED_MAC = 6, 2
# A cell that asks for no more wall time than this shares its job.
SMALL_MIN = 60
MEASURED, FROM_MACS, UNKNOWN = "measured", "from MACs", "--"


def _is_of(name: str, device: str) -> bool:
    """Whether a device has a name, as words of its own: an L40S is no L4."""
    return (
        re.search(rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])", device.lower())
        is not None
    )


def duration(seconds: float) -> str:
    """``3 h 05 min``, ``12 min 20 s``, ``40 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@dataclass(frozen=True)
class Estimate:
    """What a training should take. ``seconds`` is None where nothing says so."""

    seconds: float | None
    source: str
    params: int | None


@dataclass(frozen=True)
class Line:
    """A part of the grid: cells of one condition and recipe."""

    condition: str
    cells: int
    done: int
    hours: float | None
    longest_h: float | None
    sources: dict[str, int]


class Planner:
    """Estimates for a study's cells on a named GPU.

    Args:
        study: whose compute says whether the cells run on a CPU.
        limit: says how many minutes a job may take; asked once a job has to be planned.
        gpu: a name in ``PEAKS``, or one that a record's ``device_name`` has as words; left out, the
            cluster's.
        on_cpu: whether the cells run on a CPU; left out, as the study says.
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
        # some seeds' records tell of all, and their median of a machine that was busy with others
        measured: dict[tuple[object, ...], list[float]] = {}
        for cell in (*study.trainings.values(), *study.trials.values()):
            if (seconds := self._measured(cell)) is not None:
                key = _key(cell)
                measured.setdefault(key, []).append(seconds)
                median = statistics.median(measured[key])
                self._known[key] = Estimate(median, MEASURED, self._count(cell)[0])

    @property
    def device(self) -> str:
        """What the hours are of."""
        return "CPU" if self.on_cpu else self.gpu

    @cached_property
    def _counts(self) -> dict[tuple[str, ...], tuple[int, int]]:
        """Parameters and MACs of the models that have been counted."""
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
        """Every record of every study, by its cell's id; the study's own come first."""
        found: dict[str, Path] = {}
        folders = [self.study.results, *sorted(results_folder().glob("*"))]
        for folder in folders:
            for kind in ("records", "trials"):
                for file in (folder / kind).glob("*.json"):
                    found.setdefault(file.stem, file)
        return found

    def estimate(self, cell: Cell) -> Estimate:
        """Seconds of the cell's whole training with its tests, and where they are from."""
        key = _key(cell)
        if key not in self._known:
            self._known[key] = self._from_macs(cell)
        return self._known[key]

    def _measured(self, cell: Cell) -> float | None:
        """Of this very training elsewhere or before, if a record says so."""
        if (file := self._records.get(cell.id)) is None:
            return None
        with suppress(OSError, ValueError, KeyError, TypeError):
            run = json.loads(file.read_text("utf-8"))["run"]
            same = self.on_cpu or _is_of(self.gpu, run["device_name"])
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
        """Floating-point operations a second that are assumed of the device."""
        if self.on_cpu:
            return CPU_TFLOPS * 1e12 * SHARE * cell.threads
        for name, peak in PEAKS.items():
            if _is_of(name, self.gpu):
                return peak[cell.precision == "bfloat16"] * 1e12 * SHARE
        return None

    def runtime(self, cell_id: str) -> int:
        """Minutes of wall time that a cell's job asks for."""
        seconds = self.estimate(self.study.training(cell_id)).seconds
        return self.cluster.runtime(seconds, self.limit)

    def group(self, cell_id: str, beside: int) -> str | None:
        """The group of a cell so small that its job may as well take others; None of a large one.

        Args:
            cell_id: of a cell or trial.
            beside: so many share a job, one after the other.
        """
        minutes = self.runtime(cell_id)
        return "small" if minutes <= SMALL_MIN and beside * minutes <= self.limit else None

    @cached_property
    def limit(self) -> int:
        """Minutes that a job may take."""
        return self._limit()

    def require_known(self) -> None:
        """Raise where nothing can be said of the GPU at all.

        Raises:
            ConfigError: no known name, and no record of such a device.
        """
        if self.on_cpu or any(_is_of(name, self.gpu) for name in PEAKS):
            return
        if not any(self._measured(cell) for cell in self.study.trainings.values()):
            raise ConfigError(f"{self._source}: {UnknownNameError('GPU', self.gpu, PEAKS)}")

    def lines(self) -> Iterator[Line]:
        """The grid by condition, in its order; tuning's trials after it."""
        parts: dict[str, list[Cell]] = {}
        for cell in self.study.trainings.values():
            parts.setdefault(cell.condition, []).append(cell)
        for cell in self.study.trials.values():
            name = replace(cell, recipe_name=cell.recipe_name.partition("+")[0]).condition
            parts.setdefault(f"{name}, trials", []).append(cell)
        for condition, cells in parts.items():
            yield self._line(condition, cells)

    def _line(self, condition: str, cells: list[Cell]) -> Line:
        left = [cell for cell in cells if not cell.record.is_file()]
        estimates = [self.estimate(cell) for cell in left]
        hours = [e.seconds / 3600 for e in estimates if e.seconds is not None]
        known = len(hours) == len(left)
        return Line(
            condition,
            len(cells),
            len(cells) - len(left),
            sum(hours) if known else None,
            max(hours, default=0) if known else None,
            dict(Counter(e.source for e in estimates)),
        )

    def disk_gb(self) -> float | None:
        """Weights that are kept of all cells; None where models have not been counted."""
        params = [self.estimate(cell).params for cell in self.study.trainings.values()]
        known = [count for count in params if count is not None]
        if len(known) < len(params):
            return None
        # a record is some 200 bytes an epoch
        records = sum(200 * cell.recipe.epochs + 3000 for cell in self.study.trainings.values())
        weights = 4 * sum(known) if self.study.keep.weights == "last" else 0
        return (weights + records) / 1e9


def _key(cell: Cell) -> tuple[object, ...]:
    """What cells share that take the same time."""
    return (
        *(cell.dataset, cell.backbone, cell.attention, cell.options, cell.precision),
        *(cell.threads, cell.recipe.batch_size, cell.recipe.epochs),
    )


def summary(planner: Planner) -> str:
    """The study in a line or two, as every run begins: cells, hours, disk."""
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
    """The lines of ``attngrid plan``: cells, hours and wall time, and where they are from."""
    planner.require_known()
    yield summary(planner)
    lines = list(planner.lines())
    for line in lines:
        times = "--"
        if line.hours is not None:
            longest = duration(3600 * (line.longest_h or 0))
            times = f"{number(line.hours)} h, the longest {longest}"
        sources = _said(Counter(line.sources)) if line.sources else "nothing left"
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
    text = f"some {number(total)} {kind} left ({named}{_said(sources)})"
    return f"{text}, and {unknown} cells --" if unknown else text


def _said(sources: Counter[str]) -> str:
    names = [name for name in (MEASURED, FROM_MACS, UNKNOWN) if sources[name]]
    return ", ".join(f"{sources[name]} {name}" for name in names) if len(names) > 1 else names[0]


def number(value: float) -> str:
    """Two digits of it, or all before the point; less than a thousandth is 0."""
    if value < 0.001:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _size(gb: float) -> str:
    return f"{gb:,.0f} GB" if gb >= 10 else f"{gb:.1f} GB" if gb >= 0.1 else f"{gb * 1000:.0f} MB"
