"""The progress of a study, from its files: the cells in each state, and the hours used."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from attngrid.core.errors import RecordError
from attngrid.records.record import read_trial
from attngrid.records.staleness import describe_code, read_run
from attngrid.records.status import RUN_BEGAN, STATES, read_attempts, read_status
from attngrid.study.cell import Cell
from attngrid.study.plan import duration, number
from attngrid.study.schema import Study

# A running cell writes its status after each epoch; an older status than this is reported.
SILENT_S = 900
NOT_STARTED = "not started: the last run had too little time left"


# What the user can do about a cell in each of these states.
REMEDIES = {
    "stale": "records of another configuration have their names; `attngrid archive {study}` moves "
    "those records away, and the next run trains these cells",
    "refused": "remove the record, and the next run trains the cell again",
    "diverged": "give the recipe a lower learning_rate, a warm-up or clip_grad_norm; with the same "
    "recipe the next run diverges again",
    "failed": "logs/{study}/ID.log has the whole error; the next run tries again, from the last "
    "checkpoint",
}
SHOWN = (*STATES, "refused", "stale")


def status(study: Study) -> Iterator[str]:
    """The lines of ``attngrid status``: what failed comes last, and each state has its remedy."""
    codes, stale, details = Counter[str](), study.superseded, list[str]()
    for name, cells in (("cells", study.trainings), ("trials", study.trials)):
        if not cells:
            continue
        lines: dict[str, list[str]] = {state: [] for state in SHOWN}
        for cell in cells.values():
            state, line = ("stale", cell.id) if cell.id in stale else _state(cell)
            if state == "done":
                try:
                    codes[describe_code(read_trial(cell.record, cell).run)] += 1
                except RecordError as error:
                    state, line = "refused", f"{cell.id}: {error}"
            lines[state].append(line)
        counts = ", ".join(f"{len(lines[state])} {state}" for state in SHOWN if lines[state])
        yield f"study {study.study}: {len(cells)} {name}: {counts}"
        if not_started := lines["waiting"].count(NOT_STARTED):
            details.append(f"  waiting: {not_started} {name} {NOT_STARTED}")
        for state in ("running", "waiting", *REMEDIES):
            details += (
                f"  {state}: {line}" for line in lines[state] if line not in ("", NOT_STARTED)
            )
            if lines[state] and state in REMEDIES:
                details.append(f"    remedy: {REMEDIES[state].format(study=study.study)}")
    others = {code: count for code, count in codes.items() if code}
    yield from (f"  {count} records: {code}" for code, count in others.items())
    if others:
        yield f"  they count; `attngrid archive {study.study} --other-code` moves them away"
    yield used(study)
    yield from details


def _state(cell: Cell) -> tuple[str, str]:
    if cell.record.is_file():
        return "done", cell.id
    found = read_status(cell.status)
    if found is None or found["state"] == "done":  # its record was removed
        return "waiting", ""
    epoch = f"epoch {found.get('epoch', 0)}/{found.get('epochs', '?')}"
    if found["state"] == "waiting":
        if not cell.checkpoint.is_file() and found["message"].startswith("not started"):
            return "waiting", NOT_STARTED
        return "waiting", f"{cell.id}: {epoch}, {found['message']}"
    if found["state"] != "running":
        file = Path(f"logs/{cell.study}/{cell.id}.log")
        return found["state"], f"{cell.id}: {_last_line(file) or found['message']}"
    parts = [epoch]
    with suppress(KeyError, TypeError, ValueError):
        parts += [f"top-1 error {found['top1_error']:.1f} %", f"{duration(found['left_s'])} left"]
    parts.append(f"on {found.get('node', '?')}")
    if found.get("job"):
        parts.append(f"job {found['job']}")
    with suppress(KeyError, TypeError, ValueError):
        silent = time.time() - datetime.fromisoformat(found["time"]).timestamp()
        if silent > SILENT_S:
            parts.append(f"last heard of {duration(silent)} ago")
    return "running", f"{cell.id}: {', '.join(parts)}"


def failed_jobs(study: Study) -> Iterator[str]:
    """The errors at which this run's other jobs ended, by the last lines of their logs."""
    began = datetime.fromisoformat(os.environ[RUN_BEGAN]).timestamp()
    for file in sorted(Path(f"logs/{study.study}").glob("*.log")):
        line = "" if file.stem in study.by_id or file.stat().st_mtime < began else _last_line(file)
        if "error: " in line:
            yield f"{file.stem}: {line}"


def _last_line(file: Path) -> str:
    with suppress(OSError):
        lines = file.read_text("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def used(study: Study) -> str:
    """The hours that the trainings used, their retries, and the share of time in the records.

    A killed attempt counts until its last sign of life.
    """
    held = useful = gpu_s = all_s = 0.0
    attempts, cells, endings = 0, 0, Counter[str]()
    for cell in study.by_id.values():
        made: list[dict[str, Any]] = read_attempts(cell.status)
        if not made:
            continue
        cells, attempts = cells + 1, attempts + len(made)
        seconds = [one["heard"] - one["began"] for one in made]
        all_s += sum(seconds)
        gpu_s += sum(s * one["gpus"] for s, one in zip(seconds, made, strict=True))
        endings.update(one["state"] for one in made[:-1])
        wall_s = (read_run(cell) or {}).get("wall_s")
        if isinstance(wall_s, int | float):
            useful += wall_s
            held += sum(seconds)
    if not cells:
        return "no training of this study is known on this machine"
    retries = f"{attempts - cells} retries"
    if endings:
        named = {"InterruptedTrainingError": "after a last checkpoint", "running": "killed"}
        counts = (f"{n} {named.get(state, f'after {state}')}" for state, n in endings.items())
        retries += f" ({', '.join(counts)})"
    hours = f"{number((gpu_s or all_s) / 3600)} {'GPU hours held' if gpu_s else 'hours on CPUs'}"
    text = f"{hours}, {cells} cells in {attempts} attempts, {retries}"
    share = 100 * useful / held if held else 0.0
    return f"{text}, {share:.0f} % of the finished cells' time in their records" if held else text


def has_failed(cell: Cell) -> bool:
    """Whether a cell's last training ended with an error."""
    return (read_status(cell.status) or {}).get("state") in ("failed", "diverged")
