"""The measured costs: ``results/cost.csv``, one row per model and machine.

A machine is a device with a number of threads, a precision, a batch size, a version of torch and
performance options. Rows of different machines never share a column of a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pandas as pd
from filelock import FileLock

from attngrid.core.files import shipped, write_atomically
from attngrid.study.cell import MODEL_KEY

FILE = Path("results/cost.csv")
MACHINE = ("device_name", "device", "threads", "precision", "batch", "torch", "switches")
# Each timed quantity and the column of its median. Latency is of one image, the others of a batch.
TIMED = {
    "latency": "latency_ms",
    "inference": "inference_images_per_s",
    "training": "training_images_per_s",
}
# Medians and quartiles. A ratio divides a model's time by that of the same backbone without
# attention in the same run.
COLUMNS = (
    *MODEL_KEY,
    *MACHINE,
    *(
        column
        for name, figure in TIMED.items()
        for median in (figure, f"{name}_ratio")
        for column in (median, f"{median}_q1", f"{median}_q3")
    ),
    "peak_memory_mb",
    "rounds",
    "measured",
    "commit",
)
Row = dict[str, str]


def read_costs() -> list[Row]:
    """All rows, as text; an empty list if there is no file."""
    file = shipped(FILE)
    if not file.is_file():
        return []
    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    # a file of an older version may lack a column
    return cast(list[Row], frame.reindex(columns=COLUMNS, fill_value="").to_dict("records"))


def keep_cost(row: Mapping[str, Any]) -> None:
    """Replace the row of the same model and machine, or append one.

    Several processes may call this at the same time.
    """
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(FILE.with_name(f".{FILE.name}.lock")):
        rows = {identity(other): other for other in read_costs()}
        rows[identity(row)] = {name: str(row[name]) for name in COLUMNS}
        frame = pd.DataFrame(rows.values(), columns=COLUMNS)
        write_atomically(FILE, frame.to_csv(index=False, lineterminator="\n"))


def identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The values that identify a row: its model and machine."""
    return tuple(str(row[name]) for name in (*MODEL_KEY, *MACHINE))


def by_machine(
    costs: list[Row], stem: str, num_classes: int, input_size: int
) -> dict[str, dict[tuple[str, str], Row]]:
    """The rows of one stem and size, by machine label and then by backbone and attention."""
    at = {"stem": stem, "num_classes": str(num_classes), "input_size": str(input_size)}
    found: dict[str, dict[tuple[str, str], Row]] = {}
    for row in costs:
        if all(row[name] == value for name, value in {**at, "options": ""}.items()):
            machine = found.setdefault(machine_label(row), {})
            machine[row["backbone"], row["attention"]] = row
    return found


def machine_label(machine: Mapping[str, Any]) -> str:
    """For example ``AMD EPYC (AVX2), 2 threads, float32, batch 64, torch 2.14.1``."""
    switches = f", {machine['switches']}" if machine["switches"] else ""
    threads = "1 thread" if str(machine["threads"]) == "1" else f"{machine['threads']} threads"
    return (
        f"{machine['device_name']}, {threads}, {machine['precision']}, batch {machine['batch']}, "
        f"torch {machine['torch']}{switches}"
    )
