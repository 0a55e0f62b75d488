"""What attention costs on the machine at hand: latency, images a second, memory.

A few models of one backbone are timed in one process, together with the same backbone without
attention, a round of each beside a round of the others, so that a ratio is of one run. Each one's
memory is that of a process of its own.
"""

from __future__ import annotations

import csv
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby, islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from attngrid.analysis.costs import FILE, TIMED, identity, keep_cost, measured_as, read_costs
from attngrid.core.errors import AttngridError, UnknownNameError
from attngrid.core.files import read_yaml, shipped
from attngrid.core.hardware import processor_name
from attngrid.core.validation import validate
from attngrid.data.registry import find_dataset
from attngrid.measure.complexity import Model, models_of_grid
from attngrid.models.create import create_model
from attngrid.records.environment import code_version, now
from attngrid.study.cell import MODEL_KEY
from attngrid.study.compute import Performance
from attngrid.study.counted import CostGrid, CountedGrid
from attngrid.study.labels import model_label, pairs
from attngrid.study.recipe import Recipe, Schedule
from attngrid.training.loop import (
    autocast,
    choose_device,
    make_deterministic,
    make_optimizer,
    too_slow,
)
from attngrid.training.performance import callable_network, memory_format, resolve

SAMPLE_S = 0.2  # a sample is as many calls as take this long
WARM_UP = 3  # calls on a GPU before its first sample: a graph is recorded in the second
# How a model is run where nothing else is said; what differs is said beside the machine.
USUAL = Performance(compile=False, cuda_graphs=False)
# Models that share the rounds of their baseline: of what it takes, this one part goes to each. A
# process that is killed takes their figures with it.
TOGETHER = 4
MEMORY_STEPS = 2  # from the second on there is the optimizer's momentum
# Its step is a training's; so small that no weight becomes infinite on images of noise.
RECIPE = Recipe(
    epochs=1,
    batch_size=2,
    learning_rate=1e-5,
    weight_decay=1e-4,
    schedule=Schedule(kind="step"),
)


class NotMeasuredError(AttngridError):
    """A model whose process ended without a row."""


def models_to_measure(grid: CostGrid) -> list[Model]:
    """The models that a configuration asks for, each function once, the cheapest backbones first.

    Raises:
        UnknownNameError: a backbone, attention or dataset that none of them has.
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
        without = replace(model, attention="none")
        return [macs.get(tuple(map(str, m.key().values())), 0.0) for m in (without, model)]

    return sorted({repr(model): model for model in models}.values(), key=cost)


def _counted_macs() -> dict[tuple[str, ...], float]:
    """What has been counted at the papers' full size, by the values of ``MODEL_KEY``."""
    file = shipped("results/complexity.csv")
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["macs"]]
    return {tuple(row[name] for name in MODEL_KEY): float(row["macs"]) for row in rows}


def measure_all(
    grid: CostGrid, threads: int, *, again: bool = False, file: Path = FILE
) -> list[str]:
    """Measure the models that have no row of this machine yet, and keep each row as it comes.

    Args:
        grid: which models, and how.
        threads: of the CPU.
        again: measure those that have a row, too.
        file: of the rows.

    Returns:
        The models that could not be measured, each with why.

    Raises:
        UnknownNameError: as ``models_to_measure``.
    """
    machine = machine_of(grid, threads)
    models = models_to_measure(grid)
    known = set() if again else {identity(row) for row in read_costs(file)}

    def key_of(model: Model) -> dict[str, Any]:
        return model.key() | machine | {"switches": switches(grid, model)}

    left = [model for model in models if identity(key_of(model)) not in known]
    _say(f"{len(models)} models, {len(models) - len(left)} of them measured before")
    if left and (slow := too_slow(grid.precision, choose_device(grid.device))):
        _say(slow)
    failed: list[str] = []
    start, done = time.perf_counter(), 0
    for group in _groups(left, grid):
        minutes = (time.perf_counter() - start) / 60
        if grid.minutes is not None and minutes >= grid.minutes:
            _say(f"{minutes:.0f} minutes are over; {len(left) - done} models are left")
            break
        for model, row in _measured(group, grid, threads):
            size = f"{model.input_size}×{model.input_size}"
            label = f"{model_label(model.backbone, model.attention)}, {size}"
            done += 1
            if isinstance(row, NotMeasuredError):
                failed.append(f"{label}: {row}")
                _say(f"not measured: {failed[-1]}")
                continue
            keep_cost(row | key_of(model), file)
            _say(f"[{done}/{len(left)}] {label}: {_figures(row)}")
    return failed


def _groups(models: Sequence[Model], grid: CostGrid) -> Iterator[list[Model]]:
    """Those next to each other that have the same baseline, ``TOGETHER`` at most."""
    device = choose_device(grid.device)
    for baseline, alike in groupby(models, _without):
        # PyTorch compiles one code for eight models and their modes, and runs the rest uncompiled
        together = 1 if _resolved(grid, baseline, device).compile else TOGETHER
        while group := list(islice(alike, together)):
            yield group


def _without(model: Model) -> Model:
    return replace(model, attention="none")


def _measured(
    models: Sequence[Model], grid: CostGrid, threads: int
) -> Iterator[tuple[Model, dict[str, Any] | NotMeasuredError]]:
    """Each model's figures, or why there are none, of models with the same baseline."""
    fit = []
    for model in models:
        try:
            fit.append((model, _alone(training_memory, model, grid, threads)))
        except NotMeasuredError as error:
            yield model, error
    if fit:
        yield from _timed(fit, grid, threads)


def _timed(
    models: Sequence[tuple[Model, dict[str, Any]]], grid: CostGrid, threads: int
) -> Iterator[tuple[Model, dict[str, Any] | NotMeasuredError]]:
    """The times of models, beside the memory that is known of each."""
    try:
        rows = _alone(measure, [model for model, _ in models], grid, threads)
    except NotMeasuredError as error:
        if len(models) == 1:
            yield models[0][0], error
            return
        for one in models:  # to learn which it was
            yield from _timed([one], grid, threads)
    else:
        for (model, memory), row in zip(models, rows, strict=True):
            yield model, memory | row


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own.

    Raises:
        NotMeasuredError: why it ended without returning.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, arguments), daemon=True)
    process.start()
    sender.close()  # so that its end is seen here
    try:
        returned, result = receiver.recv()
    except EOFError:
        process.join()
        result = f"its process was ended (exit code {process.exitcode}); too little memory?"
        returned = False
    process.join()
    if not returned:
        raise NotMeasuredError(result)
    return result


def _send(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send((True, work(*arguments)))
    except Exception as error:  # a user's module may raise anything
        reason = str(error).strip().partition("\n")[0]
        sender.send((False, f"{type(error).__name__}: {reason}"))


def _end_with_parent() -> None:
    """What is timed next must not have a forgotten model beside it."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _figures(row: dict[str, Any]) -> str:
    """A row for a person."""
    parts = []
    for name, figure in TIMED.items():
        unit = "ms" if figure.endswith("_ms") else "images/s"
        parts.append(f"{name} {row[figure]:.4g} {unit} (time × {row[f'{name}_ratio']:.2f})")
    return ", ".join(parts)


def machine_of(grid: CostGrid, threads: int) -> dict[str, Any]:
    """What a row's figures are of, beside its model and its switches."""
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
    """What differs from ``USUAL`` of how a model is run, as ``name=value`` pairs."""
    device = choose_device(grid.device)
    found = _resolved(grid, model, device).model_dump()
    changed = {name: value for name, value in found.items() if value != getattr(USUAL, name)}
    return pairs(changed)


def _resolved(grid: CostGrid, model: Model, device: torch.device) -> Performance:
    return resolve(grid.performance, device, grid.batch * model.input_size**2)


def training_memory(model: Model, grid: CostGrid, threads: int) -> dict[str, Any]:
    """The most memory that a model's training takes; to be called in a process of its own.

    Raises:
        ConfigError: a model that cannot be built.
        RuntimeError, MemoryError: one that does not run, or not in this memory.
    """
    device = choose_device(grid.device)
    make_deterministic(0, threads, strict=False)
    # a first small step loads what is loaded once
    first = Model("resnet18", "none", "cifar", 10, 32, {"width": 1 / 16})
    Network(first, grid.model_copy(update={"batch": 2}), device).training()
    before = memory_mb(device)
    network = Network(model, grid, device)
    for _ in range(MEMORY_STEPS):
        network.training()
    after = memory_mb(device, peak=True)
    return {"peak_memory_mb": "" if before is None or after is None else round(after - before, 1)}


def measure(models: Sequence[Model], grid: CostGrid, threads: int) -> list[dict[str, Any]]:
    """How fast models of the same baseline are, in rounds with it; in a process of its own.

    Raises:
        ConfigError, RuntimeError, MemoryError: as ``training_memory``.
    """
    device = choose_device(grid.device)
    make_deterministic(0, threads, strict=False)
    when = {"measured": now(), "commit": code_version() or ""}
    baseline = _without(models[0])
    sides = [baseline, *(model for model in models if model != baseline)]
    networks = [Network(side, grid, device) for side in sides]
    rows: list[dict[str, Any]] = [when | {"rounds": sys.maxsize} for _ in models]
    for name, figure in TIMED.items():
        times = time_rounds(networks, name, grid)
        images = 1 if name == "latency" else grid.batch
        for row, model in zip(rows, models, strict=True):
            ours = times[sides.index(model)]
            row |= _quartiles(figure, [1e3 * s if name == "latency" else images / s for s in ours])
            row |= _quartiles(f"{name}_ratio", [a / b for a, b in zip(ours, times[0], strict=True)])
            row["rounds"] = min(row["rounds"], len(ours))
    return rows


class Network:
    """A model with its optimizer, and the images of noise that it is given over and over.

    Args:
        model: what to build, with weights in training mode.
        grid: batch and precision.
        device: where.
    """

    def __init__(self, model: Model, grid: CostGrid, device: torch.device) -> None:
        self.precision, self.device = grid.precision, device
        performance = _resolved(grid, model, device)
        self.model = create_model(
            model.backbone,
            model.attention,
            num_classes=model.num_classes,
            stem=model.stem,
            input_size=model.input_size,
            **model.options,
        )
        layout = memory_format(performance)
        self.model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.network = callable_network(self.model, performance)
        self.optimizer = make_optimizer(self.model, RECIPE, fused=performance.fused_optimizer)
        shape = (grid.batch, 3, model.input_size, model.input_size)
        self.images_NCHW = torch.randn(shape, device=device).contiguous(memory_format=layout)
        self.labels_N = torch.randint(model.num_classes, (grid.batch,), device=device)

    def training(self) -> None:
        """A step, as ``training.loop`` makes it."""
        self.optimizer.zero_grad()
        with autocast(self.precision, self.device):
            logits = self.network(self.images_NCHW)
        loss = cross_entropy(logits.float(), self.labels_N)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def inference(self) -> None:
        """The logits of a batch."""
        with torch.no_grad(), autocast(self.precision, self.device):
            self.network(self.images_NCHW)

    def latency(self) -> None:
        """The logits of one image."""
        with torch.no_grad(), autocast(self.precision, self.device):
            self.network(self.images_NCHW[:1])

    def seconds(self, name: str, calls: int) -> float:
        """The time of a call of ``training``, ``inference`` or ``latency``, the mean of so many."""
        self.model.train(name == "training")
        work = getattr(self, name)
        self._wait()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        self._wait()
        return (time.perf_counter() - start) / calls

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def time_rounds(networks: Sequence[Network], name: str, grid: CostGrid) -> list[list[float]]:
    """Seconds a call, of each network in each round; every other round goes backwards."""
    calls = []
    for network in networks:
        # the first ones load, choose kernels, compile and record graphs
        network.seconds(name, WARM_UP if network.device.type == "cuda" else 1)
        calls.append(max(1, round(SAMPLE_S / network.seconds(name, 1))))
    times: list[list[float]] = [[] for _ in networks]
    start = time.perf_counter()
    while len(times[0]) < grid.rounds or time.perf_counter() - start < grid.seconds:
        places = range(len(networks)) if len(times[0]) % 2 == 0 else range(len(networks))[::-1]
        for place in places:
            times[place].append(networks[place].seconds(name, calls[place]))
    return times


def _quartiles(name: str, values: Sequence[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {
        column: float(f"{value:.5g}")
        for column, value in ((name, median), (f"{name}_q1", low), (f"{name}_q3", high))
    }


def memory_mb(device: torch.device, *, peak: bool = False) -> float | None:
    """What is held now, or the most that was since this was last asked; None where nobody knows.

    Of torch's allocator on a GPU; of the whole process on a CPU, as Linux knows it.
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
        with suppress(OSError):  # not permitted: then the peak is that since the process began
            Path("/proc/self/clear_refs").write_text("5", "utf-8")
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", text)
    return None if found is None else int(found[1]) * 1024 / 1e6


def _say(line: str) -> None:
    with suppress(OSError):  # whoever reads this may have ended first
        print(line, file=sys.stderr, flush=True)
