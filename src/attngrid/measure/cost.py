"""What attention costs on this machine: latency, images per second, memory.

Each model is timed in one process together with the same backbone without attention, in
alternating rounds, so that a ratio compares times of the same run. Its memory is measured in
another new process.
"""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from attngrid.core.errors import AttngridError, UnknownNameError
from attngrid.core.files import read_yaml, shipped
from attngrid.core.hardware import processor_name
from attngrid.core.validation import validate
from attngrid.data.registry import find_dataset
from attngrid.measure.complexity import Model, models_of_grid
from attngrid.measure.cost_file import FILE, TIMED, identity, keep_cost, measured_as, read_costs
from attngrid.measure.timing import baseline_of, measure, resolve, training_memory
from attngrid.study.cell import MODEL_KEY
from attngrid.study.compute import Performance
from attngrid.study.counted import CostGrid, CountedGrid
from attngrid.study.labels import model_label, pairs
from attngrid.training.loop import choose_device, too_slow

log = logging.getLogger(__name__)

# The performance options without a note in the column `switches`.
USUAL = Performance(compile=False, cuda_graphs=False)


class NotMeasuredError(AttngridError):
    """A model whose process failed."""


def models_to_measure(grid: CostGrid) -> list[Model]:
    """The models that a configuration asks for, those of the cheapest backbones first.

    Raises:
        UnknownNameError: a backbone or attention that none of them has, or an unknown dataset.
    """
    blocks = grid.models
    if blocks is None:
        file = shipped("config/complexity.yaml")
        blocks = validate(CountedGrid, read_yaml(file), file).models
    models = models_of_grid(CountedGrid(models=blocks))
    for kind, names in (("backbone", grid.backbones), ("attention", grid.attentions)):
        known = list(dict.fromkeys(getattr(model, kind) for model in models))
        if unknown := [name for name in names or () if name not in known]:
            raise UnknownNameError(f"{kind} of the models to measure", unknown[0], known)
        models = [model for model in models if names is None or getattr(model, kind) in names]
    if grid.datasets is not None:
        found = [find_dataset(name) for name in grid.datasets]
        sizes = [(d.stem, d.num_classes, d.input_size) for d in found]
        models = [m for m in models if (m.stem, m.num_classes, m.input_size) in sizes]
    models = [replace(model, attention=measured_as(model.attention)) for model in models]
    macs = _counted_macs()

    def cost(model: Model) -> list[float]:
        return [
            macs.get(tuple(map(str, m.key().values())), 0.0) for m in (baseline_of(model), model)
        ]

    return sorted({repr(model): model for model in models}.values(), key=cost)


def _counted_macs() -> dict[tuple[str, ...], float]:
    """Multiply-accumulates from ``results/complexity.csv``, by the values of ``MODEL_KEY``."""
    file = shipped("results/complexity.csv")
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["macs"]]
    return {tuple(row[name] for name in MODEL_KEY): float(row["macs"]) for row in rows}


def measure_all(
    grid: CostGrid, threads: int, *, again: bool = False, file: Path = FILE
) -> list[str]:
    """Measure each model without a row for this machine, and write its row at once.

    Args:
        grid: which models, and how.
        threads: CPU threads.
        again: also measure the models that have a row.
        file: the CSV file of the rows.

    Returns:
        The models that could not be measured, each with the reason.

    Raises:
        UnknownNameError: as ``models_to_measure``.
    """
    machine = machine_of(grid, threads)
    known = set() if again else {identity(row) for row in read_costs(file)}
    keys = [
        (m, m.key() | machine | {"switches": switches(grid, m)}) for m in models_to_measure(grid)
    ]
    left = [(model, key) for model, key in keys if identity(key) not in known]
    log.info("%s models, %s of them measured before", len(keys), len(keys) - len(left))
    if left and (slow := too_slow(grid.precision, choose_device(grid.device))):
        log.warning(slow)
    failed: list[str] = []
    start = time.perf_counter()
    for number, (model, key) in enumerate(left):
        minutes = (time.perf_counter() - start) / 60
        if grid.minutes is not None and minutes >= grid.minutes:
            log.info("%.0f minutes are over; %s models are left", minutes, len(left) - number)
            break
        size = f"{model.input_size}×{model.input_size}"
        label = f"{model_label(model.backbone, model.attention)}, {size}"
        try:
            row = in_new_process(training_memory, model, grid, threads)
            row |= in_new_process(measure, model, grid, threads)
        except NotMeasuredError as error:
            failed.append(f"{label}: {error}")
            log.warning("not measured: %s", failed[-1])
        else:
            keep_cost(row | key, file)
            log.info("[%s/%s] %s: %s", number + 1, len(left), label, _describe(row))
    return failed


def in_new_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a new process, which ends with this one.

    Raises:
        NotMeasuredError: the function raised, or its process was ended.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool:
            raise NotMeasuredError("its process was ended; too little memory?") from None
        except Exception as error:  # a user's module may raise anything
            reason = str(error).strip().partition("\n")[0]
            raise NotMeasuredError(f"{type(error).__name__}: {reason}") from error


def _end_with_parent() -> None:
    """Watch the parent, so that a forgotten process does not slow down the next measurement."""

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _describe(row: dict[str, Any]) -> str:
    parts = []
    for name, column in TIMED.items():
        unit = "ms" if column.endswith("_ms") else "images/s"
        parts.append(f"{name} {row[column]:.4g} {unit} (time × {row[f'{name}_ratio']:.2f})")
    return ", ".join(parts)


def machine_of(grid: CostGrid, threads: int) -> dict[str, Any]:
    """The columns that identify the machine, without ``switches``."""
    device = choose_device(grid.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device_name": name,
        "device": device.type,
        "threads": threads,
        "precision": grid.precision,
        "batch": grid.batch,
        "torch": str(torch.__version__),
    }


def switches(grid: CostGrid, model: Model) -> str:
    """The performance options that differ from ``USUAL``, as ``name=value`` pairs."""
    found = resolve(grid, model, choose_device(grid.device)).model_dump()
    return pairs({name: value for name, value in found.items() if value != getattr(USUAL, name)})
