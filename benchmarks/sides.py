"""Sides of a comparison, each a process of its own, that work in turns."""

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

# Called by a side after each sample of its work; returns when the next one is to begin.
Wait = Callable[[], None]


class Side:
    """A process that does one sample of its work at a time.

    Args:
        name: in the table.
        work: is given the side's ``Wait``, the arguments and the options, and calls it after each
            sample.
        arguments, options: can be pickled.
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
        # not a daemon, which may have no processes of its own to read images
        self.process = context.Process(
            target=_side, args=(theirs, partial(work, **options), arguments)
        )
        self.process.start()
        theirs.close()

    def sample(self, *, kept: bool = True) -> None:
        """Let it do its next sample, wait, and keep its seconds.

        One that ends, of too little memory perhaps, is said, and all it did is left out.
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
            print(f"{self.name}: its process has ended; left out", file=sys.stderr)

    def end(self) -> None:
        """Stop it."""
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _side(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # whatever reads images for a side is forked, as it would be without a benchmark around it
    set_start_method("fork", force=True)
    pipe.recv()
    began = time.perf_counter()

    def wait() -> None:
        nonlocal began
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            # what was started there is a part of the sample
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - began)
        pipe.recv()
        began = time.perf_counter()

    try:
        work(wait, *arguments)
    except EOFError:
        return


def interleave(sides: Iterable[Side], rounds: int, *, one_by_one: bool = False) -> None:
    """Rounds of one sample of each side, or of more where it is named more often.

    The first sample of each loads, builds and compiles, mostly on one core: it is not kept, and
    as many sides as there are cores make theirs at once, the last named first, or one at a time
    where they share a GPU, on which kernels are chosen by what they take.
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


def about(device: str = "cpu", **more: Any) -> dict[str, Any]:
    """What a benchmark runs on, asked before it is a part of the load, and what else is to say."""
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
    """The same as a line."""
    return ", ".join(
        [run["device_name"], *(f"{k} {v}" for k, v in run.items() if k != "device_name")]
    )


def report(file: Path | None, run: Mapping[str, Any], **content: Any) -> None:
    """Write a benchmark's figures, if to a file."""
    if file is not None:
        write_atomically(file, json.dumps({"run": run, **content}, indent=1) + "\n")


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third; of one value, that."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def paired(ours: Side, other: Side) -> list[float]:
    """Quartiles, over the rounds, of the other's seconds by ours of the same round."""
    return quartiles([b / a for a, b in zip(ours.seconds, other.seconds, strict=True)])


def table(rows: Iterable[Mapping[str, Any]], formats: Mapping[str, str]) -> str:
    """Rows by columns, each with its format, as aligned text."""
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
