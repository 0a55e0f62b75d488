"""Where a study is, from its files alone: done, running, waiting or failed, and what it took."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from attngrid.records.attempts import read_attempts
from attngrid.records.status import read_status
from attngrid.study.cell import Cell
from attngrid.study.plan import duration, number
from attngrid.study.schema import Study

STATES = ("done", "running", "waiting", "failed", "diverged")
# A running cell says so after each epoch; one that is silent for longer is named.
SILENT_S = 900
NOT_STARTED = "not started: would not have fitted in what was left of the last run"


def status(study: Study) -> Iterator[str]:
    """The lines of ``attngrid status``."""
    for name, cells in (("cells", study.trainings), ("trials", study.trials)):
        if not cells:
            continue
        lines: dict[str, list[str]] = {state: [] for state in STATES}
        for cell in cells.values():
            state, line = _of(cell)
            lines[state].append(line)
        counts = ", ".join(f"{len(lines[state])} {state}" for state in STATES if lines[state])
        yield f"study {study.study}: {len(cells)} {name}: {counts}"
        if late := lines["waiting"].count(NOT_STARTED):
            yield f"  waiting: {late} {name} {NOT_STARTED}"
        for state in ("running", "waiting", "failed", "diverged"):
            yield from (
                f"  {state}: {line}" for line in lines[state] if line not in ("", NOT_STARTED)
            )
    yield used(study)


def _of(cell: Cell) -> tuple[str, str]:
    if cell.record.is_file():
        return "done", cell.id
    said = read_status(cell.status)
    if said is None:
        return "waiting", ""
    if said["state"] == "waiting":
        if not cell.checkpoint.is_file():
            return "waiting", NOT_STARTED
        where = f"epoch {said.get('epoch', 0)}/{said.get('epochs', '?')}"
        return "waiting", f"{cell.id}: {where}, {said['message']}"
    if said["state"] != "running":
        return said["state"], f"{cell.id}: {_last_line(cell) or said['message']}"
    parts = [f"epoch {said.get('epoch', 0)}/{said.get('epochs', '?')}"]
    if "left_s" in said:
        parts += [f"top-1 {said['top1_accuracy']:.1f} %", f"{duration(said['left_s'])} left"]
    parts.append(f"on {said.get('node', said['host'])}")
    if said.get("job"):
        parts.append(f"job {said['job']}")
    with suppress(KeyError, TypeError, ValueError):
        silent = time.time() - datetime.fromisoformat(said["time"]).timestamp()
        if silent > SILENT_S:
            parts.append(f"last heard of {duration(silent)} ago")
    return "running", f"{cell.id}: {', '.join(parts)}"


def has_failed(cell: Cell) -> bool:
    """Whether a cell's last training ended with an error."""
    return (read_status(cell.status) or {}).get("state") in ("failed", "diverged")


def _last_line(cell: Cell) -> str:
    with suppress(OSError):
        lines = Path(f"logs/{cell.study}/{cell.id}.log").read_text("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def used(study: Study) -> str:
    """What the trainings took so far: hours, retries, and how much of the hours went into records.

    An attempt that was killed counts until it was last heard of.
    """
    held = useful = gpu_s = all_s = 0.0
    attempts, cells, ended = 0, 0, Counter[str]()
    for cell in (*study.trainings.values(), *study.trials.values()):
        made: list[dict[str, Any]] = read_attempts(cell.attempts)
        if not made:
            continue
        cells, attempts = cells + 1, attempts + len(made)
        seconds = [one["heard"] - one["began"] for one in made]
        all_s += sum(seconds)
        gpu_s += sum(s * one["gpus"] for s, one in zip(seconds, made, strict=True))
        ended.update(one["state"] for one in made[:-1])
        with suppress(OSError, ValueError, KeyError):
            useful += json.loads(cell.record.read_text("utf-8"))["run"]["wall_s"]
            held += sum(seconds)
    if not cells:
        return "no training of it is known on this machine"
    retries = f"{attempts - cells} retries"
    if ended:
        retries += " (" + ", ".join(f"{n} {_ending(state)}" for state, n in ended.items()) + ")"
    share = (
        f", {100 * useful / held:.0f} % of the finished cells' time in their records"
        if held
        else ""
    )
    hours = f"{number((gpu_s or all_s) / 3600)} {'GPU hours held' if gpu_s else 'hours on CPUs'}"
    return f"{hours}, {cells} cells in {attempts} attempts, {retries}{share}"


def _ending(state: str) -> str:
    names = {"InterruptedTrainingError": "after a last checkpoint", "running": "killed"}
    return names.get(state, f"after {state}")
