"""Records that are not of what would be trained now: of another configuration, or of other code."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attngrid.core.errors import RecordError
from attngrid.core.files import write_atomically
from attngrid.records.record import Record, read_trial
from attngrid.study.cell import Cell
from attngrid.study.schema import Study
from attngrid.training.fingerprint import agrees, code_digest, key, losses_of

REMEDY = "`attngrid retire` puts it aside, and the next run trains this cell again"


def superseded(record: Path) -> str:
    """Why a cell that has a record under another digest is not trained by itself."""
    return f"{record}: is of another configuration of this cell; {REMEDY}"


class Behaviour:
    """Whether the code computes what it did when a record was made.

    A record of the same sources needs no answer. For others the cell's losses are computed once a
    model and recipe, and kept in the study's results until the sources change again. Where they
    cannot be, here, that is said, and the record stands as it does.
    """

    def __init__(self, study: Study) -> None:
        self.study = study.study
        self.file = study.results / "fingerprints.json"
        self.known: dict[str, list[float]] = {}
        self.unknown: set[str] = set()
        self.computed = False
        try:
            content = json.loads(self.file.read_text("utf-8"))
            if content["code"] == code_digest():
                self.known = content["losses"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # computed again

    def changed(self, record: Record) -> bool:
        """Whether the record's fingerprint is no longer that of its model and recipe."""
        recorded = record.run.get("fingerprint")
        if recorded is None or recorded["code"] == code_digest():
            return False  # nearly all of them, of which no cell is made
        # a tuned one with what was chosen
        return self.differs(recorded, Cell.from_config(record.config, self.study))

    def differs(self, recorded: Mapping[str, Any] | None, cell: Cell) -> bool:
        """Whether a fingerprint is no longer that of a cell, a tuned one with what was chosen."""
        if recorded is None or recorded["code"] == code_digest():
            return False
        name = key(cell)
        if name in self.unknown:
            return False
        if name not in self.known:
            try:
                self.known[name] = losses_of(cell)
            except Exception as error:  # no torch here, or a user's module that wants a GPU
                self.unknown.add(name)
                why = f"{type(error).__name__}: {error}"
                print(f"{cell.label}: not compared with this code: {why}", file=sys.stderr)
                return False
            self.computed = True
        return not agrees(recorded, self.known[name])

    def keep(self) -> None:
        """Write what was computed."""
        if self.computed:
            content = {"code": code_digest(), "losses": self.known}
            write_atomically(self.file, json.dumps(content, indent=1, sort_keys=True) + "\n")


def stale_records(study: Study) -> dict[str, tuple[Path, str]]:
    """A study's stale records by the id of the cell that they stand in the way of, and why."""
    found = {id: (file, superseded(file)) for id, file in study.superseded.items()}
    behaviour = Behaviour(study)
    for cell in (*study.trials.values(), *study.trainings.values()):
        if cell.record.is_file():
            try:
                record = read_trial(cell.record, cell)
            except RecordError:
                continue  # refused, which says more
            if behaviour.changed(record):
                found[cell.id] = (
                    cell.record,
                    f"{cell.record}: this code does not compute what it did; {REMEDY}",
                )
    behaviour.keep()
    return found


def retire(study: Study) -> list[tuple[Path, Path]]:
    """Move a study's stale records to its ``retired/``, where nothing reads them.

    What stale trials have chosen goes along.

    Returns:
        Where each was and where it is.
    """
    moved = []
    stale = stale_records(study)
    files = [file for file, _ in stale.values()]
    files += [
        cell.choice
        for cell in study.choices.values()
        if cell.choice and cell.choice.is_file() and any(t.id in stale for t in cell.trials)
    ]
    for file in dict.fromkeys(files):
        target = study.results / "retired" / file.parent.name / file.name
        number = 1
        while target.exists():  # an earlier one of the same cell
            number += 1
            target = target.with_name(f"{file.stem}.{number}.json")
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
        moved.append((file, target))
    return moved
