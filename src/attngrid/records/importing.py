"""Records that were made elsewhere: each is checked, then filed as if it had been made here."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from attngrid.core.errors import AttngridError, ConfigError, RecordError
from attngrid.core.files import home, keep_as, read_yaml, unsealed, write_atomically
from attngrid.core.validation import validate
from attngrid.data.registry import find_dataset
from attngrid.records.attempts import read_attempts
from attngrid.records.collected import latest
from attngrid.records.record import Record, Trial, read_record, read_trial
from attngrid.records.staleness import Behaviour
from attngrid.records.status import STOPPED, reached, read_status, write_status
from attngrid.records.tuning import choose_hyperparameters, with_best_hyperparameters
from attngrid.study.cell import Cell, cell_names
from attngrid.study.schema import Study
from attngrid.training.pack import MEASURED, archives, checkpoints, read_archive

# What a cell's file is named, as ``Cell.id`` has it.
ID = re.compile(r".+-[0-9a-f]{8}")
# What a record's ``run`` has to say.
TEXTS = ("device", "device_name", "torch", "python", "started")
OTHER_CODE = "this code does not compute what the code that made it did"
# An error is a number of images; this is what rounding may do to one.
NEARLY = 1e-6
# Seconds; no training takes a year.
YEAR = 3.2e7


@dataclass
class Imported:
    """What became of each file: where it is filed now, that it was there, or why it is refused."""

    filed: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    continued: list[Cell] = field(default_factory=list)
    studies: dict[str, Study] = field(default_factory=dict)


def known_studies() -> list[Study]:
    """Those of the configurations in this folder, in its ``config/`` and in the checkout's.

    One with a mistake in it is passed over, which is said.
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
                print(f"passed over: {error}", file=sys.stderr)
    return list(found.values())


def import_folder(folder: Path, studies: Sequence[Study]) -> Imported:
    """File the records of a folder, and what a pack has besides for cells that go on.

    A record is a JSON file that has a cell's id for its name, in the folder itself or in one of
    the name ``records`` or ``trials`` beneath it, in the folder of its study. It is filed whole and
    as it is, or not at all; so is a checkpoint.

    Args:
        folder: with records, or what ``attngrid pack`` has made.
        studies: whose cells they may be.

    Raises:
        RecordError: there is nothing in it.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: there is no such folder")
    result = Imported()
    behaviours = {study.study: Behaviour(study) for study in studies}
    with TemporaryDirectory(prefix="attngrid-") as scratch:
        unpacked = Path(scratch).absolute()
        packs = archives(folder)
        for archive in packs:
            try:
                for name, content in read_archive(archive).items():
                    file = unpacked / archive.name / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
            except RecordError as error:
                result.refused.append(str(error))
        found = [*_records(folder), *_records(unpacked)]
        if not found and not packs:
            raise RecordError(f"{folder}: there is no record and no pack in it")
        try:
            for file in found:
                shown = folder / file.relative_to(unpacked) if unpacked in file.parents else file
                try:
                    study, cell = _cell(file, studies)
                    _file(file, study, cell, behaviours[study.study], result)
                except (AttngridError, OSError, RecursionError) as error:
                    result.refused.append(f"{shown}: {str(error).removeprefix(f'{file}: ')}")
            _go_on(folder, unpacked, studies, behaviours, result)
            for behaviour in behaviours.values():
                behaviour.keep()
        except OSError as error:  # what is filed stays
            result.refused.append(f"{folder}: {error}")
        finally:
            # the next run collects again, whatever the files' times
            for study in result.studies.values():
                latest(study).unlink(missing_ok=True)
    return result


def _records(folder: Path) -> Iterator[Path]:
    folder = folder.absolute()
    for file in sorted(folder.rglob("*.json")):
        place = file.relative_to(folder).parts[:-1]
        measured = not place or place[-1] in MEASURED
        if measured and "retired" not in place and ID.fullmatch(file.stem):
            yield file


@contextmanager
def _held(cell: Cell) -> Iterator[None]:
    """Nobody trains the cell meanwhile, or files a record of it.

    Raises:
        RecordError: somebody does.
    """
    cell.lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cell.lock, timeout=0):
            yield
    except Timeout:
        raise RecordError("its cell is being trained here; import it again after that") from None


def _file(file: Path, study: Study, cell: Cell, behaviour: Behaviour, result: Imported) -> None:
    """File one record.

    Raises:
        RecordError: says why not.
    """
    record = _checked(file, cell)
    if behaviour.changed(record):
        raise RecordError(OTHER_CODE)
    with _held(cell):
        if cell.record.is_file():
            _require_same(record, cell)
            result.skipped.append(cell.record)
        else:
            write_atomically(cell.record, file.read_bytes())
            result.filed.append(cell.record)
            result.studies[study.study] = study
        # what a training leaves that has no record yet
        for left in (cell.status, cell.checkpoint, _previous(cell)):
            left.unlink(missing_ok=True)


def _cell(file: Path, studies: Sequence[Study]) -> tuple[Study, Cell]:
    """The cell or trial that a file's name says it is of, in the study that its folder names."""
    known = [(s, s.training(file.stem)) for s in studies if s.has(file.stem)]
    if not known:
        names = cell_names(file.stem)
        others = [id for study in studies for id in study.trainings if cell_names(id) == names]
        if others:
            raise RecordError(f"is of another configuration of the cell that is {others[0]} now")
        raise RecordError(f"is of no cell of {', '.join(study.study for study in studies)}")
    if len(known) > 1 and file.parent.name in MEASURED:
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
    run, named = record.run, record.config["recipe"].get("name")
    json.loads(file.read_text("utf-8"), parse_constant=_no_number)
    if named != cell.recipe_name:
        raise RecordError(f"config.recipe.name: found {named!r}; needs {cell.recipe_name!r}")
    if missing := [name for name in TEXTS if not isinstance(run.get(name), str)]:
        raise RecordError(f"run.{missing[0]}: is missing")
    if not (_is_number(run.get("wall_s")) and 0 < run["wall_s"] < YEAR):
        raise RecordError(f"run.wall_s: found {run.get('wall_s')!r}; needs seconds")
    if run.get("fingerprint") is not None and not _is_fingerprint(run["fingerprint"]):
        raise RecordError("run.fingerprint: needs code, losses and tolerance")
    if record.metrics is not None:
        _require_plausible(record, cell)
    return record


def _no_number(found: str) -> NoReturn:
    raise RecordError(f"found {found}; needs finite figures")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_fingerprint(value: object) -> bool:
    if not (isinstance(value, dict) and isinstance(value.get("code"), str)):
        return False
    lists = (value.get("losses"), value.get("tolerance"))
    return all(isinstance(one, list) and all(map(_is_number, one)) for one in lists)


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


def _previous(cell: Cell) -> Path:
    return cell.checkpoint.with_suffix(".previous")


def _go_on(
    folder: Path,
    unpacked: Path,
    studies: Sequence[Study],
    behaviours: Mapping[str, Behaviour],
    result: Imported,
) -> None:
    """File a pack's checkpoints and states of cells that have no record, and its logs.

    A checkpoint here stays where its training is as far as the pack's, and beside the pack's
    otherwise.
    """
    states = {path.name: path for path in unpacked.glob("*/*/status/*")}
    for name, id, parts, of in checkpoints(folder):
        study = next((s for s in studies if s.study == name and s.has(id)), None)
        try:
            if study is None:
                raise RecordError("is of no cell that is known here")
            cell, status = study.training(id), states.get(f"{id}.json")
            with _held(cell):
                if cell.record.is_file() or _is_as_far(cell, status):
                    continue
                if len(parts) < of:
                    raise RecordError(f"{len(parts)} of its {of} parts are here")
                content = b"".join(part.read_bytes() for part in parts)
                _require_checkpoint(content, cell, behaviours[name])
                if cell.checkpoint.is_file():
                    keep_as(cell.checkpoint, _previous(cell))
                write_atomically(cell.checkpoint, content)
                cell.status.unlink(missing_ok=True)
            result.continued.append(cell)
        except (AttngridError, OSError) as error:
            result.refused.append(f"{folder}: {name}.{id}.ckpt: {error}")
    new = {file.stem for file in result.filed} | {cell.id for cell in result.continued}
    for study in studies:
        for cell in (*study.trials.values(), *study.trainings.values()):
            if not (cell.record.is_file() or cell.status.is_file()):
                _take_status(cell, states.get(cell.status.name), cell in result.continued)
            _take_attempts(cell, states.get(cell.attempts.name))
        for log in unpacked.glob(f"*/{study.study}/logs/*.log"):
            target = Path("logs", study.study, log.name)
            if log.stem in new or not target.exists():
                write_atomically(target, log.read_bytes())


def _is_as_far(cell: Cell, status: Path | None) -> bool:
    if not cell.checkpoint.is_file():
        return False
    here, there = (reached(file).get("epoch", 0) if file else 0 for file in (cell.status, status))
    return here >= there


def _require_checkpoint(content: bytes, cell: Cell, behaviour: Behaviour) -> None:
    """Raise where a checkpoint is none, not the cell's, or by code that computes another thing."""
    try:
        from attngrid.training.checkpoint import read_checkpoint
    except ImportError as error:  # no torch
        raise RecordError(f"cannot be checked here: {error}") from None

    try:
        unsealed(content)
    except ValueError:
        raise RecordError("is damaged") from None
    if cell.choice is None or cell.choice.is_file():
        chosen = with_best_hyperparameters(cell)
    else:  # by its trials, which came with it
        chosen = cell.with_setting(**choose_hyperparameters(cell).chosen.model_dump())
    digest = replace(chosen, tuning=None).digest
    try:
        state = read_checkpoint(content)
        found = state["digest"]
    except Exception as error:  # whatever torch's reader makes of it
        raise RecordError(f"is no checkpoint: {type(error).__name__}") from error
    if found != digest:
        raise RecordError(f"is of another cell: found the digest {found}, expected {digest}")
    if behaviour.differs(state.get("fingerprint"), chosen):
        raise RecordError(OTHER_CODE)


def _take_status(cell: Cell, status: Path | None, goes_on: bool) -> None:
    """Say here why a cell has no record there; that it waits only where its checkpoint came."""
    said = read_status(status) if status else None
    if status is None or said is None or not isinstance(said.get("message"), str):
        return
    state, message = said["state"], said["message"]
    if state == "running":  # when it was packed
        state, message = "waiting", STOPPED
    if state in ("failed", "diverged") or (state == "waiting" and goes_on):
        write_status(cell.status, state, message, **reached(status))


def _take_attempts(cell: Cell, file: Path | None) -> None:
    """What was tried there beside what was tried here."""
    there, here = (read_attempts(one) if one else [] for one in (file, cell.attempts))
    if not all(map(_is_attempt, there)):
        return
    every: dict[float, dict[str, Any]] = {one["began"]: one for one in (*there, *here)}
    if len(every) > len(here):
        united = [every[began] for began in sorted(every)]
        write_atomically(cell.attempts, json.dumps(united) + "\n")


def _is_attempt(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("state"), str)
        and all(_is_number(value.get(name)) for name in ("began", "heard", "gpus"))
    )
