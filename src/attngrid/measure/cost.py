"""Measure the cost of attention on this machine: latency, images per second, memory.

A new process measures each model together with the same backbone without attention, in
alternating rounds, so that a ratio compares times of the same run.
"""

from __future__ import annotations

import logging
import os
import re
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from attngrid.core.errors import UnknownNameError
from attngrid.core.files import read_yaml, shipped
from attngrid.core.hardware import processor_name
from attngrid.core.validation import validate
from attngrid.data.registry import find_dataset
from attngrid.measure.complexity import Model, models_of_grid, once
from attngrid.measure.cost_file import TIMED, identity, keep_cost, read_costs
from attngrid.models.registry import trained_attention
from attngrid.records.environment import code_version, now
from attngrid.study.compute import Performance
from attngrid.study.counted import CostGrid, CountedGrid
from attngrid.study.labels import model_label, pairs
from attngrid.study.recipe import Recipe, Schedule
from attngrid.training import performance
from attngrid.training.loop import (
    autocast,
    choose_device,
    make_deterministic,
    too_slow,
    train_step,
)
from attngrid.training.optimization import make_optimizer

log = logging.getLogger(__name__)

# The default options; the column `switches` lists only others.
USUAL = Performance(compile=False, cuda_graphs=False)
SAMPLE_S = 0.2  # a sample is the mean over as many calls as fit into this time
WARM_UP_CALLS = 3  # on a GPU, where a graph is recorded in the second call
MEMORY_STEPS = 2  # the second step runs with all of the optimizer's state
# The learning rate is so small that no weight becomes infinite on images of noise.
RECIPE = Recipe(
    epochs=1,
    batch_size=2,
    learning_rate=1e-5,
    weight_decay=1e-4,
    schedule=Schedule(kind="step"),
)


def models_to_measure(grid: CostGrid) -> list[Model]:
    """The models that a configuration selects, each once, smallest images first.

    Raises:
        UnknownNameError: a backbone or attention that no model has, or an unknown dataset.
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
    models = once(replace(m, attention=trained_attention(m.attention)) for m in models)
    return sorted(models, key=lambda model: model.input_size)


def measure_all(grid: CostGrid, threads: int, *, again: bool = False) -> list[str]:
    """Measure each model that has no row for this machine; write each row immediately.

    Args:
        grid: the models, and how to measure them.
        threads: the number of CPU threads.
        again: also measure the models that have a row.

    Returns:
        One line per model that could not be measured, with the reason.

    Raises:
        UnknownNameError: as ``models_to_measure``.
    """
    known = set() if again else {identity(row) for row in read_costs()}
    keys = [(m, m.key() | machine_of(grid, m, threads)) for m in models_to_measure(grid)]
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
            with ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent) as new_process:
                row = new_process.submit(measure, model, grid, threads).result()
        except Exception as error:  # a user's module may raise anything
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            if isinstance(error, BrokenProcessPool):
                reason = "its process was ended, perhaps because memory ran out"
            failed.append(f"{label}: {reason}")
            log.warning("not measured: %s", failed[-1])
        else:
            keep_cost(row | key)
            ratios = ", ".join(f"{name} × {row[f'{name}_ratio']:.2f}" for name in TIMED)
            log.info("[%s/%s] %s: %s", number + 1, len(left), label, ratios)
    return failed


def machine_of(grid: CostGrid, model: Model, threads: int) -> dict[str, Any]:
    """The columns that identify the machine and the options that differ from ``USUAL``."""
    device = choose_device(grid.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    options = resolve(grid, model, device).model_dump()
    return {
        "device_name": name,
        "device": device.type,
        "threads": threads,
        "precision": grid.precision,
        "batch": grid.batch,
        "torch": str(torch.__version__),
        "switches": pairs({k: v for k, v in options.items() if v != getattr(USUAL, k)}),
    }


def resolve(grid: CostGrid, model: Model, device: torch.device) -> Performance:
    """The performance options of a model, with a value for each ``auto``."""
    return performance.resolve(grid.performance, device, grid.batch * model.input_size**2)


def _end_with_parent() -> None:
    """End this process with its parent, so that it cannot slow down a later measurement."""

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def measure(model: Model, grid: CostGrid, threads: int) -> dict[str, Any]:
    """Measure memory and times of a model; call this in a new process.

    Raises:
        ConfigError: the model cannot be built.
        RuntimeError, MemoryError: the model does not run, or memory is too small.
    """
    device = choose_device(grid.device)
    make_deterministic(0, threads, strict=False)
    # a small step first, to load the libraries that every training loads
    small = Model("resnet18", "none", "cifar", 10, 32, {"width": 1 / 16})
    Network(small, grid.model_copy(update={"batch": 2}), device).training()
    before_mb = memory_mb(device)
    networks = [Network(model, grid, device)]
    for _ in range(MEMORY_STEPS):
        networks[0].training()
    peak_mb = memory_mb(device, peak=True)
    row: dict[str, Any] = {
        "peak_memory_mb": round(peak_mb - before_mb, 1) or "",
        "measured": now(),
        "commit": code_version() or "",
    }
    if model.attention != "none":
        networks.insert(0, Network(replace(model, attention="none"), grid, device))
    rounds = []
    for name, column in TIMED.items():
        times = time_rounds(networks, name, grid)
        base_s, model_s = times[0], times[-1]
        values = [1e3 * s if name == "latency" else grid.batch / s for s in model_s]
        row |= _quartiles(column, values)
        ratios = [s / base for s, base in zip(model_s, base_s, strict=True)]
        row |= _quartiles(f"{name}_ratio", ratios)
        rounds.append(len(model_s))
    return row | {"rounds": min(rounds)}


class Network:
    """A model with its optimizer and one batch of random images."""

    def __init__(self, model: Model, grid: CostGrid, device: torch.device) -> None:
        self.precision, self.device = grid.precision, device
        options = resolve(grid, model, device)
        layout = performance.memory_format(options)
        self.model = model.create()
        self.model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.network = performance.callable_network(self.model, options)
        self.optimizer = make_optimizer(self.model, RECIPE, fused=options.fused_optimizer)
        shape = (grid.batch, 3, model.input_size, model.input_size)
        self.images_NCHW = torch.randn(shape, device=device).contiguous(memory_format=layout)
        self.labels_N = torch.randint(model.num_classes, (grid.batch,), device=device)

    def training(self) -> None:
        """Run one training step."""
        train_step(
            self.network,
            [(self.images_NCHW, self.labels_N)],
            self.optimizer,
            RECIPE,
            epoch_progress=0,
            images=len(self.labels_N),
            precision=self.precision,
        )

    def inference(self) -> None:
        """Compute the logits of a batch."""
        with torch.no_grad(), autocast(self.precision, self.device):
            self.network(self.images_NCHW)

    def latency(self) -> None:
        """Compute the logits of one image."""
        with torch.no_grad(), autocast(self.precision, self.device):
            self.network(self.images_NCHW[:1])

    def seconds(self, name: str, calls: int) -> float:
        """The mean seconds of a call of ``training``, ``inference`` or ``latency``."""
        self.model.train(name == "training")
        method = getattr(self, name)
        self._synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            method()
        self._synchronize()
        return (time.perf_counter() - start) / calls

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def time_rounds(networks: Sequence[Network], name: str, grid: CostGrid) -> list[list[float]]:
    """Seconds per call of each network in each round; every other round runs in reverse order."""
    calls = []
    for network in networks:
        # the first calls load, choose kernels, compile and record graphs
        network.seconds(name, WARM_UP_CALLS if network.device.type == "cuda" else 1)
        calls.append(max(1, round(SAMPLE_S / network.seconds(name, 1))))
    times: list[list[float]] = [[] for _ in networks]
    order = list(range(len(networks)))
    start = time.perf_counter()
    while len(times[0]) < grid.rounds or time.perf_counter() - start < grid.seconds:
        for place in order:
            times[place].append(networks[place].seconds(name, calls[place]))
        order.reverse()
    return times


def _quartiles(column: str, values: Sequence[float]) -> dict[str, float]:
    low, median, high = (float(f"{v:.5g}") for v in statistics.quantiles(values, n=4))
    return {column: median, f"{column}_q1": low, f"{column}_q3": high}


def memory_mb(device: torch.device, *, peak: bool = False) -> float:
    """The memory in use, or its peak since the last call without ``peak``.

    On a GPU, torch's allocator reports it; on a CPU, it is the process's memory (0 without Linux).
    """
    if device.type == "cuda":
        if peak:
            return torch.cuda.max_memory_allocated(device) / 1e6
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    if not peak:
        with suppress(OSError):  # without permission, the peak counts from the start of the process
            Path("/proc/self/clear_refs").write_text("5", "utf-8")
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status.read_text("utf-8"))
    assert found is not None
    return int(found[1]) * 1024 / 1e6
