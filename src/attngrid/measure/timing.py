"""Time and memory of one model: the functions that run in a new process for each model."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from attngrid.measure.complexity import Model
from attngrid.measure.cost_file import TIMED
from attngrid.models.create import create_model
from attngrid.records.environment import code_version, now
from attngrid.study.compute import Performance
from attngrid.study.counted import CostGrid
from attngrid.study.recipe import Recipe, Schedule
from attngrid.training import performance
from attngrid.training.loop import autocast, choose_device, make_deterministic, make_optimizer

SAMPLE_S = 0.2  # a sample is the mean of as many calls as take this long
WARM_UP_CALLS = 3  # on a GPU, where a graph is recorded in the second call
MEMORY_STEPS = 2  # from the second on there is the optimizer's momentum
# The learning rate is so small that no weight becomes infinite on images of noise.
RECIPE = Recipe(
    epochs=1,
    batch_size=2,
    learning_rate=1e-5,
    weight_decay=1e-4,
    schedule=Schedule(kind="step"),
)


def baseline_of(model: Model) -> Model:
    """The same model without attention."""
    return replace(model, attention="none")


def resolve(grid: CostGrid, model: Model, device: torch.device) -> Performance:
    """The performance options of a model, with ``auto`` decided."""
    return performance.resolve(grid.performance, device, grid.batch * model.input_size**2)


def training_memory(model: Model, grid: CostGrid, threads: int) -> dict[str, Any]:
    """Peak memory of a model's training; to be called in a new process.

    Raises:
        ConfigError: a model that cannot be built.
        RuntimeError, MemoryError: a model that does not run, or not in this memory.
    """
    device = choose_device(grid.device)
    make_deterministic(0, threads, strict=False)
    # a small step first, to load what every training loads
    small = Model("resnet18", "none", "cifar", 10, 32, {"width": 1 / 16})
    Network(small, grid.model_copy(update={"batch": 2}), device).training()
    before = memory_mb(device)
    network = Network(model, grid, device)
    for _ in range(MEMORY_STEPS):
        network.training()
    after = memory_mb(device, peak=True)
    return {"peak_memory_mb": "" if before is None or after is None else round(after - before, 1)}


def measure(model: Model, grid: CostGrid, threads: int) -> dict[str, Any]:
    """Times of a model and their ratios to its baseline's; to be called in a new process.

    Raises:
        ConfigError, RuntimeError, MemoryError: as ``training_memory``.
    """
    device = choose_device(grid.device)
    make_deterministic(0, threads, strict=False)
    row: dict[str, Any] = {"measured": now(), "commit": code_version() or ""}
    networks = [Network(baseline_of(model), grid, device)]
    if model != baseline_of(model):
        networks.append(Network(model, grid, device))
    rounds = []
    for name, column in TIMED.items():
        times = time_rounds(networks, name, grid)
        base_s, model_s = times[0], times[-1]
        images = 1 if name == "latency" else grid.batch
        values = [1e3 * s if name == "latency" else images / s for s in model_s]
        row |= _quartiles(column, values)
        ratios = [s / base for s, base in zip(model_s, base_s, strict=True)]
        row |= _quartiles(f"{name}_ratio", ratios)
        rounds.append(len(model_s))
    return row | {"rounds": min(rounds)}


class Network:
    """A model with its optimizer and one batch of noise.

    Args:
        model: what to build, in training mode.
        grid: batch, precision and performance options.
        device: where it runs.
    """

    def __init__(self, model: Model, grid: CostGrid, device: torch.device) -> None:
        self.precision, self.device = grid.precision, device
        options = resolve(grid, model, device)
        self.model = create_model(
            model.backbone,
            model.attention,
            num_classes=model.num_classes,
            stem=model.stem,
            input_size=model.input_size,
            **model.options,
        )
        layout = performance.memory_format(options)
        self.model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.network = performance.callable_network(self.model, options)
        self.optimizer = make_optimizer(self.model, RECIPE, fused=options.fused_optimizer)
        shape = (grid.batch, 3, model.input_size, model.input_size)
        self.images_NCHW = torch.randn(shape, device=device).contiguous(memory_format=layout)
        self.labels_N = torch.randint(model.num_classes, (grid.batch,), device=device)

    def training(self) -> None:
        """One training step."""
        self.optimizer.zero_grad()
        with autocast(self.precision, self.device):
            logits = self.network(self.images_NCHW)
        loss = cross_entropy(logits.float(), self.labels_N)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def inference(self) -> None:
        """The logits of a batch."""
        self._forward(self.images_NCHW)

    def latency(self) -> None:
        """The logits of one image."""
        self._forward(self.images_NCHW[:1])

    def _forward(self, images_NCHW: torch.Tensor) -> None:
        with torch.no_grad(), autocast(self.precision, self.device):
            self.network(images_NCHW)

    def seconds(self, name: str, calls: int) -> float:
        """Mean time of a call of ``training``, ``inference`` or ``latency``."""
        self.model.train(name == "training")
        work = getattr(self, name)
        self._synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            work()
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


def memory_mb(device: torch.device, *, peak: bool = False) -> float | None:
    """Memory in use now, or its peak since the last call without ``peak``; None if unknown.

    On a GPU that of torch's allocator; on a CPU that of the process, as Linux counts it.
    """
    if device.type == "cuda":
        if peak:
            return torch.cuda.max_memory_allocated(device) / 1e6
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 1e6
    try:
        text = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return None
    if not peak:
        with suppress(OSError):  # without permission the peak is that since the process began
            Path("/proc/self/clear_refs").write_text("5", "utf-8")
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", text)
    return None if found is None else int(found[1]) * 1024 / 1e6
