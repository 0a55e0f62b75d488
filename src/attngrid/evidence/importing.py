"""Records that were made elsewhere: each is checked, then filed as if it had been made here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from attngrid import data
from attngrid.cell import Cell, cell_names
from attngrid.config import Study, load_study
from attngrid.errors import AttngridError, ConfigError, RecordError
from attngrid.evidence.stale import Behaviour
from attngrid.files import home, unsealed, write_atomically
from attngrid.pack import checkpoints, unpack
from attngrid.training.attempts import read_attempts
from attngrid.training.record import (
    Record,
    Trial,
    reached,
    read_record,
    read_status,
    read_trial,
)

KINDS = ("records", "trials")
# What a record's ``run`` has to say.
TEXTS = ("device", "device_name", "torch", "python", "started")
# An error is a number of images; this is what rounding may do to one.
NEARLY = 1e-6


@dataclass
class Imported:
    """What became of each file: where it is filed now, that it was there, or why it is refused."""

    filed: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    continued: list[Cell] = field(default_factory=list)
    studies: dict[str, Study] = field(default_factory=dict)


def known_studies() -> list[Study]:
    """Those of the configurations in this folder, in its ``config/`` and in the checkout's."""
    found: dict[str, Study] = {}
    for folder in (Path(), Path("config"), home() / "config"):
        for file in sorted(folder.glob("*.yaml")):
            with suppress(OSError, yaml.YAMLError, ConfigError):
                if "study" in (yaml.safe_load(file.read_text("utf-8")) or {}):
                    study = load_study(file)
                    found.setdefault(study.study, study)
    return list(found.values())


def import_folder(folder: Path, studies: Sequence[Study]) -> Imported:
    """File the records of a folder, and what a pack has besides for cells that go on.

    A record is a JSON file in the folder itself, or in one of the name ``records`` or ``trials``
    beneath it, in the folder of its study. It is filed whole and as it is, or not at all.

    Args:
        folder: with records, or what ``attngrid pack`` has made.
        studies: whose cells they may be.

    Raises:
        RecordError: there is nothing in it, or a pack that cannot be read.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: there is no such folder")
    result = Imported()
    behaviours = {study.study: Behaviour(study) for study in studies}
    with TemporaryDirectory(prefix="attngrid-") as scratch:
        unpacked = Path(scratch).absolute()
        unpack(folder, unpacked)
        found = [*_records(folder), *_records(unpacked)]
        if not found and not any(unpacked.iterdir()):
            raise RecordError(f"{folder}: there is no record and no pack in it")
        for file in found:
            shown = folder / file.relative_to(unpacked) if unpacked in file.parents else file
            try:
                study, cell = _cell(file, studies)
                record = _checked(file, cell)
                if behaviours[study.study].changed(record):
                    raise RecordError("this code does not compute what the code that made it did")
                content = file.read_bytes()
                if cell.record.is_file():
                    _require_same(record, cell)
                    result.skipped.append(cell.record)
                else:
                    write_atomically(cell.record, content)
                    result.filed.append(cell.record)
                    result.studies[study.study] = study
                _forget(cell)
            except AttngridError as error:
                result.refused.append(f"{shown}: {str(error).removeprefix(f'{file}: ')}")
        for behaviour in behaviours.values():
            behaviour.keep()
        _go_on(folder, unpacked, studies, result)
    # Snakemake collects again where the mark is gone, whatever the files' times
    for study in result.studies.values():
        for mark in study.collected.parent.glob("*.collected"):
            mark.unlink(missing_ok=True)
    return result


def _records(folder: Path) -> Iterator[Path]:
    folder = folder.absolute()
    for file in sorted(folder.rglob("*.json")):
        if file.parent.name in KINDS or (file.parent == folder and file.name != "study.json"):
            yield file


def _cell(file: Path, studies: Sequence[Study]) -> tuple[Study, Cell]:
    """The cell or trial that a file's name says it is of, in the study that its folder names."""
    known = [(s, s.training(file.stem)) for s in studies if s.has(file.stem)]
    if not known:
        names = cell_names(file.stem)
        others = [id for study in studies for id in study.trainings if cell_names(id) == names]
        if others:
            raise RecordError(f"is of another configuration of the cell that is {others[0]} now")
        raise RecordError(f"is of no cell of {', '.join(study.study for study in studies)}")
    if len(known) > 1 and file.parent.name in KINDS:
        known = [one for one in known if one[0].study == file.parent.parent.name] or known
    if len(known) > 1:
        names = " and ".join(study.study for study, _ in known)
        raise RecordError(f"is a cell of {names}; say which by --study")
    return known[0]


def _checked(file: Path, cell: Cell) -> Record:
    """A record that can be what its cell measured.

    Raises:
        RecordError: says what cannot be.
    """
    record: Record = read_trial(file, cell) if cell.validation else read_record(file, cell)
    run = record.run
    if missing := [name for name in TEXTS if not isinstance(run.get(name), str)]:
        raise RecordError(f"run.{missing[0]}: is missing")
    if not (isinstance(run.get("wall_s"), int | float) and 0 < run["wall_s"] < math.inf):
        raise RecordError(f"run.wall_s: found {run.get('wall_s')!r}; needs seconds")
    if record.metrics is not None:
        _require_plausible(record, cell)
    return record


def _require_plausible(record: Record, cell: Cell) -> None:
    metrics, recipe = record.metrics, cell.recipe
    epochs = [line.epoch for line in metrics.curve]
    if epochs != list(range(1, recipe.epochs + 1)):
        raise RecordError(
            f"metrics.curve: found {len(epochs)} epochs; {cell.recipe_name} has {recipe.epochs}"
        )
    images = data.find(cell.dataset).images
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
            if abs(wrong - round(wrong)) > NEARLY * metrics.test_images:
                raise RecordError(
                    f"metrics.curve: epoch {line.epoch}: {error} % of {metrics.test_images} "
                    "images is no number of images"
                )


def _require_same(record: Record, cell: Cell) -> None:
    """Raise where the record that is filed already has other numbers."""
    try:
        filed = read_trial(cell.record, cell)
    except RecordError as error:
        raise RecordError(f"there is another one, which cannot be read: {error}") from None
    if filed.metrics != record.metrics:
        numbers = f"top-1 error {_top1(record)}, {_top1(filed)} there"
        raise RecordError(f"has other numbers than {cell.record}: {numbers}")


def _top1(record: Record | Trial) -> str:
    return "--" if record.metrics is None else f"{record.metrics.top1_error:.10g}"


def _forget(cell: Cell) -> None:
    """What a training leaves that has no record yet."""
    for file in (cell.status, cell.checkpoint, cell.checkpoint.with_suffix(".previous")):
        file.unlink(missing_ok=True)


def _go_on(folder: Path, unpacked: Path, studies: Sequence[Study], result: Imported) -> None:
    """File a pack's checkpoints and states of cells that have no record, and its logs.

    A checkpoint here stays where its training is as far as the pack's.
    """
    for name, id, parts, of in checkpoints(folder):
        shown = f"{folder}: {name}.{id}.ckpt"
        study = next((s for s in studies if s.study == name and s.has(id)), None)
        if study is None:
            result.refused.append(f"{shown}: is of no cell that is known here")
            continue
        cell, status = study.training(id), unpacked / name / "status" / f"{id}.json"
        if cell.record.is_file() or (
            cell.checkpoint.is_file() and _epoch(cell.status) >= _epoch(status)
        ):
            continue
        content = b"".join(part.read_bytes() for part in parts)
        try:
            unsealed(content)
        except ValueError:
            why = "is damaged" if len(parts) == of else f"{len(parts)} of its {of} parts are here"
            result.refused.append(f"{shown}: {why}")
            continue
        write_atomically(cell.checkpoint, content)
        cell.status.unlink(missing_ok=True)
        result.continued.append(cell)
    new = {file.stem for file in result.filed} | {cell.id for cell in result.continued}
    for study in studies:
        pack = unpacked / study.study
        for cell in (*study.trials.values(), *study.trainings.values()):
            status, attempts = (pack / "status" / f.name for f in (cell.status, cell.attempts))
            if not (cell.record.is_file() or cell.status.is_file()) and read_status(status):
                write_atomically(cell.status, status.read_bytes())
            if len(read_attempts(attempts)) > len(read_attempts(cell.attempts)):
                write_atomically(cell.attempts, attempts.read_bytes())
        for log in pack.glob("logs/*.log"):
            target = Path("logs", study.study, log.name)
            if log.stem in new or not target.exists():
                write_atomically(target, log.read_bytes())


def _epoch(status: Path) -> int:
    return reached(status).get("epoch", 0)
