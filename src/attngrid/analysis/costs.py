"""``results/cost.csv``: what models took on the machines that they were measured on.

One row a model and machine. A machine is a device with a number of threads, a precision, a batch,
a version of torch and the options in ``study.compute.Performance``: what two of them took never shares a
column.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from attngrid.core.files import shipped, write_atomically
from attngrid.models.registry import find_attention
from attngrid.study.cell import MODEL_KEY

FILE = Path("results/cost.csv")
MACHINE = ("device_name", "device", "threads", "precision", "batch", "torch", "switches")
# What is timed, and the column of its median: the latency of one image, the others of a batch.
TIMED = {
    "latency": "latency_ms",
    "inference": "inference_images_per_s",
    "training": "training_images_per_s",
}
# Medians and quartiles; a ratio is of times, over those of the same backbone without attention in
# the same run.
COLUMNS = (
    *MODEL_KEY,
    *MACHINE,
    *(
        column
        for name, figure in TIMED.items()
        for what in (figure, f"{name}_ratio")
        for column in (what, f"{what}_q1", f"{what}_q3")
    ),
    "peak_memory_mb",
    "rounds",
    "measured",
    "commit",
)
Row = dict[str, str]


def read_costs(file: Path = FILE) -> list[Row]:
    """The rows there are, as they are written; none where there is no file."""
    file = shipped(file)
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        # of a file from before a column, that is empty
        return [{name: row.get(name) or "" for name in COLUMNS} for row in csv.DictReader(stream)]


def keep_cost(row: Mapping[str, Any], file: Path = FILE) -> None:
    """Put a row in the place of its model's on its machine, or behind the others.

    Processes on several machines may do so at once.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        rows = {identity(other): other for other in read_costs(file)}
        rows[identity(row)] = {name: str(row[name]) for name in COLUMNS}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
        write_atomically(file, text.getvalue())


def identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row is of: its model and its machine."""
    return tuple(str(row[name]) for name in (*MODEL_KEY, *MACHINE))


def by_machine(
    costs: list[Row], stem: str, num_classes: int, input_size: int
) -> dict[str, dict[tuple[str, str], Row]]:
    """The rows at a geometry, by the machine's name and then by backbone and attention."""
    at = {"stem": stem, "num_classes": str(num_classes), "input_size": str(input_size)}
    found: dict[str, dict[tuple[str, str], Row]] = {}
    for row in costs:
        if all(row[name] == value for name, value in {**at, "options": ""}.items()):
            machine = found.setdefault(machine_label(row), {})
            machine[row["backbone"], row["attention"]] = row
    return found


def machine_label(machine: Mapping[str, Any]) -> str:
    """A machine for a person: ``AMD EPYC (AVX2), 2 threads, float32, batch 64, torch 2.14.1``."""
    switches = f", {machine['switches']}" if machine["switches"] else ""
    threads = "1 thread" if str(machine["threads"]) == "1" else f"{machine['threads']} threads"
    return (
        f"{machine['device_name']}, {threads}, {machine['precision']}, batch {machine['batch']}, "
        f"torch {machine['torch']}{switches}"
    )


def measured_as(attention: str) -> str:
    """The name that a module's cost is under: ``cam`` computes what ``se`` does."""
    return find_attention(attention).alias_of or attention
