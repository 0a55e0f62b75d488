"""Records that were made on another machine: each is checked, then filed as if made here."""

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
from attngrid.records.status import (
    STOPPED,
    locked,
    merge_attempts,
    reached,
    read_status,
    write_status,
)
from attngrid.study.cell import Cell, cell_names
from attngrid.study.schema import Study

logger = logging.getLogger(__name__)

# The name of a cell's file, as ``Cell.id`` makes it.
ID = re.compile(r".+-[0-9a-f]{8}")
# The folders that have files of each kind.
FOLDERS = {".json": ("records", "trials"), ".ckpt": ("checkpoints",)}
# An error is a number of images; rounding may change it by this share of them.
ROUNDING = 1e-6


class ImportedRun(BaseModel, strict=True):
    """What a record from elsewhere has to say of its run, among other things."""

    device: str
    device_name: str
    torch: str
    python: str
    started: str
    code: str = ""  # a digest, which older records lack
    wall_s: Annotated[float, Field(gt=0, lt=3.2e7)]  # a year


class ImportedRecord(BaseModel):
    """The part of a record that only an imported one is checked for."""

    run: ImportedRun


@dataclass
class Imported:
    """What happened to each file: filed, skipped because it was here, or refused with a reason."""

    filed: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    continued: list[Cell] = field(default_factory=list)


def known_studies() -> list[Study]:
    """The studies configured in this folder, in its ``config/`` and in the checkout's.

    A configuration with a mistake is passed over with a warning.
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
                logger.warning("passed over: %s", error)
    return list(found.values())


def import_folder(folder: Path, studies: Sequence[Study]) -> Imported:
    """File the records of a folder, and the checkpoints of cells without a record.

    The folder is for instance a copy of another machine's ``results``; the cells may be of any of
    the studies. A record is a JSON file with a cell's id as its name, in the folder itself or in a
    folder ``records`` or ``trials`` below it. A checkpoint is a ``.ckpt`` file with such a name in
    a folder ``checkpoints``; its content is checked when its training continues. A folder
    ``status`` beside them says how far a cell has come, and what it took.

    Raises:
        RecordError: the folder has neither records nor checkpoints.
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
                    result.continued += [cell] * _file_checkpoint(file, cell)
                elif _file_record(file, cell):
                    # the next run collects again, whatever the files' times
                    latest(study).unlink(missing_ok=True)
                    result.filed.append(cell.record)
                else:
                    result.skipped.append(cell.record)
        except (AttngridError, OSError) as error:
            result.refused.append(f"{file}: {str(error).removeprefix(f'{file}: ')}")
    _copy_failures(folder, studies)
    return result


def _find(folder: Path, suffix: str) -> Iterator[Path]:
    """Files of a cell's name, in a folder of their kind or at the top."""
    for file in sorted(folder.rglob(f"*{suffix}")):
        place = file.relative_to(folder).parts[:-1]
        expected = not place or place[-1] in FOLDERS[suffix]
        if expected and "archive" not in place and ID.fullmatch(file.stem):
            yield file


def _cell(file: Path, studies: Sequence[Study]) -> tuple[Study, Cell]:
    """The cell or trial with a file's name, in the study that its folder names."""
    known = [(study, study.training(file.stem)) for study in studies if study.has(file.stem)]
    if not known:
        names = cell_names(file.stem)
        others = [id for study in studies for id in study.trainings if cell_names(id) == names]
        if others:
            raise RecordError(f"is of another configuration of the cell that is {others[0]} now")
        raise RecordError(f"is of no cell of {', '.join(study.study for study in studies)}")
    if len(known) > 1:  # <study>/records/<file>
        known = [one for one in known if one[0].study in file.absolute().parts[-3:-2]] or known
    if len(known) > 1:
        names = " and ".join(study.study for study, _ in known)
        raise RecordError(f"is a cell of {names}; say which by --study")
    return known[0]


def _file_record(file: Path, cell: Cell) -> bool:
    """Copy a record; False where the same one is here."""
    metrics = _checked_metrics(file, cell)
    is_new = not cell.record.is_file()
    if is_new:
        write_atomically(cell.record, file.read_bytes())
    elif read_trial(cell.record, cell).metrics != metrics:
        raise RecordError(f"has other numbers than {cell.record}")
    for left in (cell.checkpoint, cell.checkpoint.with_suffix(".previous")):
        left.unlink(missing_ok=True)
    merge_attempts(cell.status, _status_beside(file))
    if cell.status.is_file():
        write_status(cell.status, "done")
    return is_new


def _file_checkpoint(file: Path, cell: Cell) -> bool:
    """Copy a checkpoint unless the cell has a record, or has come as far here."""
    status = _status_beside(file)
    as_far = cell.checkpoint.is_file() and reached(cell.status) >= reached(status)
    if cell.record.is_file() or as_far:
        return False
    write_atomically(cell.checkpoint, file.read_bytes())
    merge_attempts(cell.status, status)
    epochs = {"epoch": reached(status), "epochs": cell.recipe.epochs}
    write_status(cell.status, "waiting", STOPPED, **epochs)
    return True


def _copy_failures(folder: Path, studies: Sequence[Study]) -> None:
    """Copy the status of cells that failed or diverged there, and were never started here."""
    for file in sorted(folder.rglob("status/*.json")):
        state = (read_status(file) or {}).get("state")
        with suppress(RecordError, OSError):
            if state in ("failed", "diverged") and ID.fullmatch(file.stem):
                _, cell = _cell(file, studies)
                if not (cell.record.is_file() or cell.status.is_file()):
                    write_atomically(cell.status, file.read_bytes())


def _status_beside(file: Path) -> Path:
    return file.absolute().parents[1] / "status" / f"{file.stem}.json"


def _checked_metrics(file: Path, cell: Cell) -> Metrics | None:
    """The metrics of a record whose figures are possible for its cell; a trial may have none."""
    record = read_trial(file, cell) if cell.validation else read_record(file, cell)
    name = record.config["recipe"].get("name")
    if name != cell.recipe_name:
        raise RecordError(f"config.recipe.name: found {name!r}; needs {cell.recipe_name!r}")
    read_model(ImportedRecord, file)
    if record.metrics is not None:
        _require_plausible(record.metrics, cell)
    return record.metrics


def _require_plausible(metrics: Metrics, cell: Cell) -> None:
    epochs, wanted_epochs = [line.epoch for line in metrics.curve], cell.recipe.epochs
    if epochs != list(range(1, wanted_epochs + 1)):
        raise RecordError(
            f"metrics.curve: found {len(epochs)} epochs; {cell.recipe_name} has {wanted_epochs}"
        )
    images = find_dataset(cell.dataset).images
    if images is not None and cell.options.classes is None:
        train, test = images
        wanted = (train - cell.validation, cell.validation or test)
        if (found := (metrics.train_images, metrics.test_images)) != wanted:
            raise RecordError(f"metrics: found {found} training and test images; needs {wanted}")
    for line in metrics.curve:
        where = f"metrics.curve: epoch {line.epoch}"
        if line.test_top5_error > line.test_top1_error:
            raise RecordError(f"{where}: top-5 error above top-1 error")
        for error in (line.test_top1_error, line.test_top5_error):
            wrong = error * metrics.test_images / 100
            if abs(wrong - round(wrong)) > ROUNDING * metrics.test_images:
                raise RecordError(
                    f"{where}: {error} % of {metrics.test_images} images is no number of images"
                )
