"""The record of a cell: its configuration, its metrics, and the run that measured them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, Field, model_validator

from attngrid.core.errors import AttngridError, ConfigError, RecordError
from attngrid.core.files import write_atomically
from attngrid.core.types import Strict
from attngrid.core.validation import validate
from attngrid.records.sources import kept_names
from attngrid.study.cell import Cell

Percent = Annotated[float, Field(ge=0, le=100)]
# A number that every program reads exactly.
Count = Annotated[int, Field(gt=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=0)]
# JSON can escape half of a character, which no file can hold.
Text = Annotated[str, AfterValidator(lambda text: text.encode().decode())]
AnyModel = TypeVar("AnyModel", bound=BaseModel)
AnyRecord = TypeVar("AnyRecord", bound="Record")


class Epoch(Strict):
    """A line of a training curve; errors in percent."""

    epoch: Count
    learning_rate: float
    train_loss: float
    train_top1_error: Percent
    test_loss: float
    test_top1_error: Percent
    test_top5_error: Percent


class Metrics(Strict):
    """The ``metrics`` block: the errors of the last epoch and of the best one, and the curve."""

    top1_error: Percent
    top5_error: Percent
    best_epoch: Count
    best_top1_error: Percent
    best_top5_error: Percent
    train_images: Count
    test_images: Count
    params: Count
    curve: Annotated[tuple[Epoch, ...], Field(strict=False, min_length=1, repr=False)]

    @model_validator(mode="after")
    def _headline_matches_curve(self) -> Metrics:
        for name, value in headline([vars(line) for line in self.curve]).items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}: found {getattr(self, name)}; the curve has {value}")
        return self


def headline(curve: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The errors of a curve's last epoch and of the epoch with the lowest top-1 error."""
    last, best = curve[-1], min(curve, key=lambda line: line["test_top1_error"])
    return {
        "top1_error": last["test_top1_error"],
        "top5_error": last["test_top5_error"],
        "best_epoch": best["epoch"],
        "best_top1_error": best["test_top1_error"],
        "best_top5_error": best["test_top5_error"],
    }


class Run(BaseModel, strict=True, allow_inf_nan=False, extra="allow"):
    """What the readers of a ``run`` block need of it; an older record may lack any of them."""

    started: Text = ""
    wall_s: Seconds = 0.0
    images_per_s: Seconds = 0.0
    peak_memory_mb: Seconds = 0.0
    resumed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    deterministic: bool = True
    device: Text = ""
    device_name: Text = ""
    torch: Text = ""
    commit: Text | None = None
    code: Text | None = None
    diverged: Text = ""
    performance: dict[str, bool | int | float | str | None] = {}
    fast: dict[str, bool | int | float | str | None] = {}  # an earlier name of ``performance``


def _check_run(run: dict[str, Any]) -> dict[str, Any]:
    Run.model_validate(run)
    return run


class Record(Strict):
    """The record of a trained cell. Bit-identical runs have equal ``config`` and ``metrics``."""

    config: Annotated[dict[str, Any], Field(repr=False)]
    metrics: Metrics
    run: Annotated[dict[str, Any], AfterValidator(_check_run), Field(repr=False)]


class Trial(Record):
    """A trial's record. A trial that diverged has no metrics; its ``run`` says at which step."""

    metrics: Metrics | None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _has_metrics_or_diverged(self) -> Trial:
        if (self.metrics is None) != ("diverged" in self.run):
            raise ValueError("needs either metrics or run.diverged")
        return self


def write_record(
    file: Path, cell: Cell, metrics: Mapping[str, Any] | None, run: Mapping[str, Any]
) -> None:
    """Write the record of a finished cell atomically; only a trial may have no metrics."""
    kind = Trial if cell.validation else Record
    write_model(
        file, kind.model_validate({"config": cell.config(), "metrics": metrics, "run": run})
    )


def read_record(file: Path, cell: Cell | None = None) -> Record:
    """Read a record; with a cell, check that it is the record of that cell.

    Raises:
        RecordError: not JSON, a missing or impossible field, or the record of another cell; the
            message names the file, the field and the value.

    Examples:
        >>> from pathlib import Path
        >>> file = next(Path("results/cifar20/records").glob("*-se-cifar20_3ep-s0-*.json"))
        >>> record = read_record(file)
        >>> record.metrics.top1_error, len(record.metrics.curve), record.run["device"]
        (48.7, 3, 'cpu')
    """
    return _read(Record, file, cell)


def read_trial(file: Path, cell: Cell) -> Trial:
    """Read a trial's record, with the checks of ``read_record``."""
    return _read(Trial, file, cell)


def _read(kind: type[AnyRecord], file: Path, cell: Cell | None) -> AnyRecord:
    record = read_model(kind, file)
    try:
        matches = cell is None or cell.matches(record.config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{file}: config: {type(error).__name__}: {error}") from None
    if not matches:
        raise RecordError(f"{file}: config: is not that of this cell, or does not match its digest")
    return record


def read_cell(file: Path) -> tuple[Cell, Record]:
    """Read a record and make the cell of its ``config`` block, with the users' files kept of it.

    Raises:
        RecordError: as ``read_record``; or a user's class that was not kept, and has changed or
            is missing.
    """
    record, results = read_record(file), file.absolute().parents[1]
    if results.name == "archive":  # a record that `attngrid archive` moved
        results = results.parent
    try:
        config = {**record.config, **kept_names(results, record.config)}
        cell = Cell.from_config(config, study=results.name)
    except (AttngridError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{file}: config: {error}") from None
    return cell, read_record(file, cell)


def write_model(file: Path, model: BaseModel) -> None:
    """Write a pydantic model as JSON, atomically."""
    write_atomically(file, json.dumps(model.model_dump(mode="json"), indent=1) + "\n")


def read_model(kind: type[AnyModel], file: Path) -> AnyModel:
    """Read a pydantic model from JSON; NaN and infinity are errors.

    Raises:
        RecordError: not JSON, or a missing or impossible field; the message names the file, the
            field and the value.
    """
    try:
        content = json.loads(file.read_text("utf-8"), parse_constant=_refuse_constant)
        return validate(kind, content, file)
    except ConfigError as error:
        text = str(error).encode(errors="backslashreplace").decode()
        raise RecordError(text.splitlines()[0]) from None
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{file}: cannot be read: {error}") from None


def _refuse_constant(found: str) -> NoReturn:
    raise ValueError(f"found {found}; needs finite numbers")
