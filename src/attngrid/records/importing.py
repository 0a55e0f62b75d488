"""Import records from another machine: check each one, then copy it into its study's results."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from attngrid.core.errors import AttngridError, ConfigError, RecordError
from attngrid.core.files import home, read_yaml, write_atomically
from attngrid.core.validation import validate
from attngrid.data.registry import find_dataset
from attngrid.records.collected import latest
from attngrid.records.record import Metrics, read_model, read_record, read_trial
from attngrid.records.sources import keep_files
from attngrid.records.status import (
    STOPPED,
    locked,
    merge_attempts,
    reached,
    read_status,
    write_status,
)
from attngrid.study.cell import Cell, cell_names
from attngrid.study.paths import results_folder
from attngrid.study.schema import Study

logger = logging.getLogger(__name__)

# A file name (without suffix) of a cell: its ``Cell.id``.
ID = re.compile(r".+-[0-9a-f]{8}")
# The folders that files with each suffix belong to.
FOLDERS = {".json": ("records", "trials"), ".ckpt": ("checkpoints",)}
# Each error is a whole number of images. This fraction of all images is allowed for rounding.
ROUNDING = 1e-6


class ImportedRun(BaseModel, strict=True):
    """The fields that the ``run`` block of an imported record must have."""

    device: str
    device_name: str
    torch: str
    python: str
    started: str
    code: str = ""  # a digest, which older records lack
    wall_s: Annotated[float, Field(gt=0, lt=3.2e7)]  # a year


class ImportedRecord(BaseModel):
    """The block that is checked in imported records only."""

    run: ImportedRun


@dataclass
class Imported:
    """The files that were copied, were here already, or were refused, each with the reason."""

    filed: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    continued: list[Cell] = field(default_factory=list)


def known_studies() -> list[Study]:
    """The studies configured in this folder, in its ``config/`` and in the checkout's.

    A configuration with a mistake is skipped with a warning.
    """
    found: dict[str, Study] = {}
    for folder in dict.fromkeys((Path(), Path("config"), home() / "config")):
        for file in sorted(folder.glob("*.yaml")):
            try:
                content = read_yaml(file)
                if isinstance(content, dict) and "study" in content:
                    study = validate(Study, content, file)
                    found.setdefault(study.study, study)
            except ConfigError as error:
                logger.warning("skipped: %s", error)
    return list(found.values())


def records_elsewhere(study: Study) -> dict[Path, int]:
    """Other studies' results with records of cells that have none in this study, with counts."""
    missing = {id for id, cell in study.trainings.items() if not cell.record.is_file()}
    counts = {
        folder.parent: len(missing & {file.stem for file in folder.glob("*.json")})
        for folder in sorted(results_folder().glob("*/records"))
    }
    return {folder: count for folder, count in counts.items() if count}


def import_folder(folder: Path, studies: Sequence[Study]) -> Imported:
    """Copy the records in a folder, and the checkpoints of cells without a record.

    The folder may be a copy of another machine's ``results``, with cells of any of the studies. A
    record is a JSON file named by its cell's id, in the folder itself or in a folder ``records`` or
    ``trials`` below it. A checkpoint is a ``.ckpt`` file with such a name in ``checkpoints``; its
    content is checked when its training continues. The folder ``status`` beside them has the
    epoch that each cell has reached, and its attempts.

    Raises:
        RecordError: the folder has no records and no checkpoints.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: there is no such folder")
    found = [file for kind in FOLDERS for file in _find(folder, kind)]
    if not found:
        raise RecordError(f"{folder}: there is no record and no checkpoint in it")
    result = Imported()
    for file in found:
        try:
            study, cell = _cell(file, studies)
            with locked(cell):
                if file.suffix == ".ckpt":
                    if _copy_checkpoint(file, cell):
                        result.continued.append(cell)
                elif _copy_record(file, cell):
                    # the next run collects again, regardless of modification times
                    latest(study).unlink(missing_ok=True)
                    result.filed.append(cell.record)
                else:
                    result.skipped.append(cell.record)
        except (AttngridError, OSError) as error:
            result.refused.append(f"{file}: {str(error).removeprefix(f'{file}: ')}")
    _copy_failures(folder, studies)
    return result


def _find(folder: Path, suffix: str) -> Iterator[Path]:
    """Files named by a cell's id, at the top or in a folder for their suffix."""
    for file in sorted(folder.rglob(f"*{suffix}")):
        parents = file.relative_to(folder).parts[:-1]
        expected = not parents or parents[-1] in FOLDERS[suffix]
        if expected and "archive" not in parents and ID.fullmatch(file.stem):
            yield file


def _cell(file: Path, studies: Sequence[Study]) -> tuple[Study, Cell]:
    """The cell or trial that a file is named by; its folder names the study if several have it."""
    known = [(study, study.training(file.stem)) for study in studies if file.stem in study.by_id]
    if not known:
        names = cell_names(file.stem)
        others = [id for study in studies for id in study.trainings if cell_names(id) == names]
        if others:
            raise RecordError(f"belongs to another configuration; expected {others[0]}")
        raise RecordError(f"belongs to no cell of {', '.join(study.study for study in studies)}")
    if len(known) > 1:  # <study>/records/<file>
        known = [one for one in known if one[0].study in file.absolute().parts[-3:-2]] or known
    if len(known) > 1:
        names = " and ".join(study.study for study, _ in known)
        raise RecordError(f"is a cell of {names}; choose one with --study")
    return known[0]


def _copy_record(file: Path, cell: Cell) -> bool:
    """Copy a record; return False if the same record is here already."""
    metrics = _checked_metrics(file, cell)
    is_new = not cell.record.is_file()
    if is_new:
        write_atomically(cell.record, file.read_bytes())
        keep_files(cell)
        weights = _beside(file, "weights", ".safetensors")
        if weights.is_file() and not cell.weights.is_file():
            write_atomically(cell.weights, weights.read_bytes())
    elif read_trial(cell.record, cell).metrics != metrics:
        raise RecordError(f"has other metrics than {cell.record}")
    for checkpoint in (cell.checkpoint, cell.checkpoint.with_suffix(".previous")):
        checkpoint.unlink(missing_ok=True)
    merge_attempts(cell.status, _beside(file, "status", ".json"))
    if cell.status.is_file():
        write_status(cell.status, "done")
    return is_new


def _copy_checkpoint(file: Path, cell: Cell) -> bool:
    """Copy a checkpoint unless the cell has a record, or has reached the same epoch here."""
    status = _beside(file, "status", ".json")
    is_ahead = cell.checkpoint.is_file() and reached(cell.status) >= reached(status)
    if cell.record.is_file() or is_ahead:
        return False
    write_atomically(cell.checkpoint, file.read_bytes())
    merge_attempts(cell.status, status)
    epochs = {"epoch": reached(status), "epochs": cell.recipe.epochs}
    write_status(cell.status, "waiting", STOPPED, **epochs)
    return True


def _copy_failures(folder: Path, studies: Sequence[Study]) -> None:
    """Copy the status of cells that failed or diverged elsewhere and were never started here."""
    for file in sorted(folder.rglob("status/*.json")):
        state = (read_status(file) or {}).get("state")
        with suppress(RecordError, OSError):
            if state in ("failed", "diverged") and ID.fullmatch(file.stem):
                _, cell = _cell(file, studies)
                if not (cell.record.is_file() or cell.status.is_file()):
                    write_atomically(cell.status, file.read_bytes())


def _beside(file: Path, folder: str, suffix: str) -> Path:
    """A cell's file of another kind in the same copy of results."""
    return file.absolute().parents[1] / folder / f"{file.stem}{suffix}"


def _checked_metrics(file: Path, cell: Cell) -> Metrics | None:
    """Read a record, check that its metrics are possible for its cell, and return them."""
    record = read_trial(file, cell) if cell.validation else read_record(file, cell)
    name = record.config["recipe"].get("name")
    if name != cell.recipe_name:
        raise RecordError(f"config.recipe.name: found {name!r}; needs {cell.recipe_name!r}")
    read_model(ImportedRecord, file)
    if record.metrics is not None:
        _require_plausible(record.metrics, cell)
    return record.metrics


def _require_plausible(metrics: Metrics, cell: Cell) -> None:
    epochs, needed_epochs = [line.epoch for line in metrics.curve], cell.recipe.epochs
    if epochs != list(range(1, needed_epochs + 1)):
        raise RecordError(
            f"metrics.curve: found {len(epochs)} epochs; {cell.recipe_name} has {needed_epochs}"
        )
    images = find_dataset(cell.dataset).images
    if images is not None and cell.options.classes is None:
        train, test = images
        needed = (train - cell.validation, cell.validation or test)
        if (found := (metrics.train_images, metrics.test_images)) != needed:
            raise RecordError(f"metrics: found {found} training and test images; needs {needed}")
    for line in metrics.curve:
        where = f"metrics.curve: epoch {line.epoch}"
        if line.test_top5_error > line.test_top1_error:
            raise RecordError(f"{where}: top-5 error above top-1 error")
        for error in (line.test_top1_error, line.test_top5_error):
            wrong = error * metrics.test_images / 100
            if abs(wrong - round(wrong)) > ROUNDING * metrics.test_images:
                raise RecordError(
                    f"{where}: {error} % of {metrics.test_images} is not a whole number of images"
                )
