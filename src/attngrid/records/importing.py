"""Records that were made on another machine: each is checked, then filed as if made here."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from attngrid.core.errors import AttngridError, BusyCellError, ConfigError, RecordError
from attngrid.core.files import home, keep_as, read_yaml, write_atomically
from attngrid.core.validation import validate
from attngrid.data.registry import find_dataset
from attngrid.records.collected import latest
from attngrid.records.record import Record, Trial, read_record, read_trial
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
RECORDS = ("records", "trials")
# Folders of records that were put aside.
ARCHIVES = {"archive", "retired"}
# The texts that a record's ``run`` block must have.
TEXTS = ("device", "device_name", "torch", "python", "started")
# An error is a number of images; rounding may change it by this share of them.
ROUNDING = 1e-6
YEAR_S = 3.2e7


@dataclass
class Imported:
    """What happened to each file: filed, skipped because it was here, or refused with a reason."""

    filed: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    continued: list[Cell] = field(default_factory=list)
    studies: dict[str, Study] = field(default_factory=dict)


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

    A record is a JSON file with a cell's id as its name, in the folder itself or in a folder
    ``records`` or ``trials`` below it. A checkpoint is a ``.ckpt`` file with such a name in a
    folder ``checkpoints``; its content is checked when its training continues. A folder
    ``status`` beside them says how far a cell has come, and what it took.

    Args:
        folder: for instance a copy of another machine's ``results``.
        studies: the cells may be of any of these.

    Raises:
        RecordError: the folder has no records and no checkpoints.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: there is no such folder")
    result = Imported()
    found = [*_find(folder, "*.json"), *_find(folder, "*.ckpt")]
    if not found:
        raise RecordError(f"{folder}: there is no record and no checkpoint in it")
    for file in found:
        try:
            study, cell = _cell(file, studies)
            with locked(cell):
                if file.suffix == ".json":
                    _file_record(file, study, cell, result)
                elif _file_checkpoint(file, cell):
                    result.continued.append(cell)
        except BusyCellError:
            result.refused.append(
                f"{file}: its cell is being trained here; import it again after that"
            )
        except (AttngridError, OSError, RecursionError) as error:
            result.refused.append(f"{file}: {str(error).removeprefix(f'{file}: ')}")
    _copy_failures(folder, studies)
    # the next run collects again, whatever the files' times
    for study in result.studies.values():
        latest(study).unlink(missing_ok=True)
    return result


def _find(folder: Path, pattern: str) -> Iterator[Path]:
    """Files of a cell's name, in a folder of their kind or at the top."""
    kinds = RECORDS if pattern == "*.json" else ("checkpoints",)
    for file in sorted(folder.rglob(pattern)):
        place = file.relative_to(folder).parts[:-1]
        expected = not place or place[-1] in kinds
        if expected and not ARCHIVES & set(place) and ID.fullmatch(file.stem):
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


def _file_record(file: Path, study: Study, cell: Cell, result: Imported) -> None:
    record = _checked(file, cell)
    if cell.record.is_file():
        _require_same(record, cell)
        result.skipped.append(cell.record)
    else:
        write_atomically(cell.record, file.read_bytes())
        result.filed.append(cell.record)
        result.studies[study.study] = study
    for left in (cell.checkpoint, _previous(cell)):
        left.unlink(missing_ok=True)
    merge_attempts(cell.status, _status_beside(file))
    if cell.status.is_file():
        write_status(cell.status, "done")


def _file_checkpoint(file: Path, cell: Cell) -> bool:
    """Copy a checkpoint unless the cell has a record, or has come as far here."""
    status = _status_beside(file)
    there, here = reached(status), reached(cell.status)
    as_far = here.get("epoch", 0) >= there.get("epoch", 0)
    if cell.record.is_file() or (cell.checkpoint.is_file() and as_far):
        return False
    content = file.read_bytes()
    if cell.checkpoint.is_file():
        keep_as(cell.checkpoint, _previous(cell))
    write_atomically(cell.checkpoint, content)
    merge_attempts(cell.status, status)
    write_status(cell.status, "waiting", STOPPED, **there)
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


def _previous(cell: Cell) -> Path:
    return cell.checkpoint.with_suffix(".previous")


def _checked(file: Path, cell: Cell) -> Record:
    """Read a record whose figures are possible for its cell.

    Raises:
        RecordError: names the field.
    """
    record: Record = read_trial(file, cell) if cell.validation else read_record(file, cell)
    run, recipe_name = record.run, record.config["recipe"].get("name")
    json.loads(file.read_text("utf-8"), parse_constant=_refuse_constant)
    if recipe_name != cell.recipe_name:
        raise RecordError(f"config.recipe.name: found {recipe_name!r}; needs {cell.recipe_name!r}")
    if missing := [name for name in TEXTS if not isinstance(run.get(name), str)]:
        raise RecordError(f"run.{missing[0]}: is missing")
    if not isinstance(run.get("code", ""), str):
        raise RecordError(f"run.code: found {run['code']!r}; needs a digest")
    if not (_is_number(run.get("wall_s")) and 0 < run["wall_s"] < YEAR_S):
        raise RecordError(f"run.wall_s: found {run.get('wall_s')!r}; needs seconds")
    if record.metrics is not None:
        _require_plausible(record, cell)
    return record


def _refuse_constant(found: str) -> NoReturn:
    raise RecordError(f"found {found}; needs finite figures")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_plausible(record: Record, cell: Cell) -> None:
    metrics, recipe = record.metrics, cell.recipe
    epochs = [line.epoch for line in metrics.curve]
    if epochs != list(range(1, recipe.epochs + 1)):
        raise RecordError(
            f"metrics.curve: found {len(epochs)} epochs; {cell.recipe_name} has {recipe.epochs}"
        )
    images = find_dataset(cell.dataset).images
    if images is not None and cell.options.classes is None:
        train, test = images
        wanted = (train - cell.validation, cell.validation or test)
        if (found := (metrics.train_images, metrics.test_images)) != wanted:
            raise RecordError(f"metrics: found {found} training and test images; needs {wanted}")
    for line in metrics.curve:
        errors = (line.test_top1_error, line.test_top5_error)
        if errors[1] > errors[0]:
            raise RecordError(f"metrics.curve: epoch {line.epoch}: top-5 error above top-1 error")
        for error in errors:
            wrong = error * metrics.test_images / 100
            if abs(wrong - round(wrong)) > ROUNDING * metrics.test_images:
                raise RecordError(
                    f"metrics.curve: epoch {line.epoch}: {error} % of {metrics.test_images} "
                    "images is no number of images"
                )


def _require_same(record: Record, cell: Cell) -> None:
    """Raise where the record that is here has other metrics."""
    try:
        here = read_trial(cell.record, cell)
    except RecordError as error:
        raise RecordError(f"there is another one, which cannot be read: {error}") from None
    if here.metrics != record.metrics:
        numbers = f"top-1 error {_top1(record)}, {_top1(here)} there"
        raise RecordError(f"has other numbers than {cell.record}: {numbers}")


def _top1(record: Record | Trial) -> str:
    return "--" if record.metrics is None else f"{record.metrics.top1_error:.10g}"
