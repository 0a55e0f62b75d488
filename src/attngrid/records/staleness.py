"""Find records whose configuration or code is not the current one.

A record of another configuration is superseded: its cell is not trained until the record is
archived. A record of other code is marked and still counts, because an edit of the sources need
not change its numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from attngrid.core.class_digest import file_digest
from attngrid.study.cell import Cell
from attngrid.study.schema import Study

# The sources that decide a record's numbers, relative to the package: networks, images, the
# training loop and what it calls, and recipes. A new file in these folders counts automatically.
SOURCES = ("models", "data", "training", "study/recipe.py", "study/recipes.yaml")
# The exceptions: files of ``training`` that start, stop, save and test a training.
OTHERS = {
    "devices.py",
    "evaluation.py",
    "launch.py",
    "max_runtime.py",
    "run.py",
    "signals.py",
    "start.py",
    "trained.py",
    "weights.py",
}


@cache
def code_digest() -> str:
    """SHA-256 of the names and the code of the sources that decide a record's numbers."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for source in SOURCES:
        path = package / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if source != "training" or file.name not in OTHERS:
                name = file.relative_to(package).as_posix().encode()
                content = file.read_bytes()
                if file.suffix == ".py":
                    content = file_digest(content).encode()
                digest.update(name + b"\0" + content + b"\0")
    return digest.hexdigest()


def describe_code(run: Mapping[str, Any]) -> str:
    """Describe the code that a ``run`` block names; empty if it is the current code."""
    commit = f"commit {str(run.get('commit') or 'unknown')[:8]}"
    if run.get("code") is None:
        return f"unknown version, {commit}"
    return "" if run["code"] == code_digest() else f"other code, {commit}"


def read_run(cell: Cell) -> dict[str, Any] | None:
    """The unchecked ``run`` block of a cell's record; None if it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        run = json.loads(cell.record.read_text("utf-8"))["run"]
        return run if isinstance(run, dict) else None
    return None


def archive(study: Study, *, other_code: bool = False) -> list[tuple[Path, Path]]:
    """Move a study's superseded records to its ``archive/``; return each record's two paths.

    Their weights move, too.

    With ``other_code`` also move the records of other or unknown code, and the tuning results of
    such trials.
    """
    files = list(study.superseded.values())
    if other_code:
        others = {
            cell.id: cell.record
            for cell in (*study.trials.values(), *study.trainings.values())
            if (run := read_run(cell)) is not None and describe_code(run)
        }
        files += others.values()
        for cell in study.choices.values():
            if cell.choice is not None and any(trial.id in others for trial in cell.trials):
                files += filter(Path.is_file, [cell.choice])
    return [(file, _move(file, study.results / "archive")) for file in dict.fromkeys(files)]


def _move(file: Path, archive: Path) -> Path:
    target = archive / file.parent.name / file.name
    number = 1
    while target.exists():  # an earlier record of the same cell
        number += 1
        target = target.with_name(f"{file.stem}.{number}.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    weights = file.parents[1] / "weights" / f"{file.stem}.safetensors"
    if file.parent.name == "records" and weights.is_file():
        (archive / "weights").mkdir(exist_ok=True)
        weights.rename(archive / "weights" / f"{target.stem}.safetensors")
    return file.rename(target)
