"""The compared programs, called sides: each has its own process, and they take turns."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from attngrid.core.files import write_atomically
from attngrid.core.hardware import processor_name, processors

# A side calls it after each sample. It returns when the side's next sample begins.
Wait = Callable[[], None]


class Side:
    """A process that does its work one sample at a time.

    Args:
        name: its name in the table.
        work: the function to run. It is called with a ``Wait``, the arguments and the options, and
            must call the ``Wait`` after each sample.
        arguments, options: of ``work``; they must be picklable.
    """

    def __init__(
        self,
        name: str,
        work: Callable[..., None],
        *arguments: Any,
        **options: Any,
    ) -> None:
        self.name, self.seconds, self.ended = name, list[float](), False
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # not a daemon, because a daemon may not start workers that read images
        self.process = context.Process(
            target=_side, args=(theirs, partial(work, **options), arguments)
        )
        self.process.start()
        theirs.close()

    def sample(self, *, kept: bool = True) -> None:
        """Run the next sample and, if ``kept``, store its seconds.

        If the process has ended (perhaps for lack of memory), print a message and drop its samples.
        """
        if self.ended:
            return
        try:
            self.pipe.send(None)
            seconds: float = self.pipe.recv()
            self.seconds += [seconds] * kept
        except (EOFError, OSError):
            self.ended = True
            self.seconds.clear()
            print(f"{self.name}: its process ended; it is omitted", file=sys.stderr)

    def end(self) -> None:
        """Stop the process."""
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _side(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # fork DataLoader workers, which is their default on Linux outside a spawned process
    set_start_method("fork", force=True)
    pipe.recv()
    began = time.perf_counter()

    def wait() -> None:
        nonlocal began
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            # the sample ends when the GPU has finished its work
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - began)
        pipe.recv()
        began = time.perf_counter()

    try:
        work(wait, *arguments)
    except EOFError:
        return


def interleave(sides: Iterable[Side], rounds: int, *, one_by_one: bool = False) -> None:
    """Run rounds; in each round a side makes one sample for each time that it is listed.

    The first sample of each side loads, builds and compiles. It is not kept. As many sides as there
    are cores make it at the same time, because it uses mostly one core.

    Args:
        sides: the sides in the order of a round.
        rounds: number of rounds.
        one_by_one: also make the first samples one at a time. Sides on one GPU need this, because
            cuDNN and the compiler choose kernels by their measured time.
    """
    sides = list(sides)
    each = list(dict.fromkeys(sides))
    try:
        with ThreadPoolExecutor(1 if one_by_one else processors()) as pool:
            for _ in pool.map(partial(Side.sample, kept=False), each[::-1]):
                pass
        for _ in range(rounds):
            for side in sides:
                side.sample()
    finally:
        for side in each:
            side.end()


def machine_info(device: str = "cpu", **more: Any) -> dict[str, Any]:
    """The machine, its load before the benchmark starts, and ``more``, for the output."""
    cpu = device == "cpu"
    return {
        "device_name": processor_name() if cpu else torch.cuda.get_device_name(),
        **({} if cpu else {"processor": processor_name()}),
        "device": device,
        "cores": processors(),
        "load_before": round(os.getloadavg()[0], 2),
        "torch": str(torch.__version__),
        **more,
    }


def headline(run: Mapping[str, Any]) -> str:
    """The result of ``machine_info`` as one line."""
    return ", ".join(
        [run["device_name"], *(f"{k} {v}" for k, v in run.items() if k != "device_name")]
    )


def report(file: Path | None, run: Mapping[str, Any], **content: Any) -> None:
    """Write a benchmark's results to a file, if one is given."""
    if file is not None:
        write_atomically(file, json.dumps({"run": run, **content}, indent=1) + "\n")


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median and third quartile; a single value three times."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def paired_ratios(ours: Side, other: Side) -> list[float]:
    """Quartiles over the rounds of the other's seconds divided by ours."""
    return quartiles([b / a for a, b in zip(ours.seconds, other.seconds, strict=True)])


def table(rows: Iterable[Mapping[str, Any]], formats: Mapping[str, str]) -> str:
    """Aligned text with a column for each key of ``formats``."""
    lines = [list(formats)]
    for row in rows:
        lines.append(
            [
                "--" if row.get(key) is None else format(row[key], how)
                for key, how in formats.items()
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(formats))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
