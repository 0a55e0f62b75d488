"""Choose the best hyperparameters of a model from the records of its tuning trials."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from attngrid.core.errors import DivergedTrialsError, RecordError, UnknownNameError
from attngrid.core.types import Positive, Strict, WeightDecay
from attngrid.records.record import Percent, read_model, read_trial, write_model
from attngrid.records.status import write_status
from attngrid.study.cell import Cell
from attngrid.study.schema import Study


class Hyperparameters(Strict):
    """The hyperparameters of a recipe that the trials vary."""

    learning_rate: Positive
    weight_decay: WeightDecay


class TrialResult(Hyperparameters):
    """A trial's validation error after its last epoch; None if it diverged."""

    id: str
    validation_top1_error: Percent | None


class TuningResult(Strict):
    """A model's trials and the hyperparameters with the lowest error.

    A tie goes to the smaller learning rate, then to the smaller weight decay.
    """

    chosen: Hyperparameters
    trials: Annotated[tuple[TrialResult, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _check_chosen(self) -> TuningResult:
        if self.chosen != _best(self.trials):
            raise ValueError("chosen: is not the setting with the lowest validation_top1_error")
        return self


def _best(trials: Iterable[TrialResult]) -> Hyperparameters | None:
    finished = [trial for trial in trials if trial.validation_top1_error is not None]
    if not finished:
        return None
    best = min(finished, key=lambda t: (t.validation_top1_error, t.learning_rate, t.weight_decay))
    return Hyperparameters(learning_rate=best.learning_rate, weight_decay=best.weight_decay)


def choose_hyperparameters(study: Study, name: str) -> tuple[Path, TuningResult]:
    """Choose the best hyperparameters of a model by its trials; return the file and its content.

    ``name`` is the file's name in the study's ``tuning/``, without ``.json``.

    Raises:
        UnknownNameError: the study tunes no model under this name.
        DivergedTrialsError: all trials diverged; each tuned cell gets the status ``diverged``.
        RecordError: a trial's record is missing or belongs to another trial.
    """
    if name not in study.choices:
        raise UnknownNameError(f"tuning result of study {study.study}", name, study.choices)
    cell = study.choices[name]
    assert cell.choice is not None
    results = []
    for trial in cell.trials:
        metrics = read_trial(trial.record, trial).metrics
        setting = trial.recipe.model_dump(include={"learning_rate", "weight_decay"})
        error = None if metrics is None else metrics.top1_error
        results.append(TrialResult(**setting, id=trial.id, validation_top1_error=error))
    if (chosen := _best(results)) is None:
        diverged = DivergedTrialsError(
            f"{cell.label}, {cell.recipe_name}: all {len(results)} trials diverged; add smaller "
            "values to tuning.learning_rates"
        )
        for other in study.trainings.values():
            if other.choice == cell.choice:
                write_status(other.status, "diverged", str(diverged))
        raise diverged
    result = TuningResult(chosen=chosen, trials=tuple(results))
    write_model(cell.choice, result)
    return cell.choice, result


def read_tuning_result(cell: Cell) -> TuningResult:
    """Read the result of a tuned cell's trials.

    Raises:
        RecordError: not JSON, a missing or invalid field, or the result of other trials.
    """
    file = cell.choice
    assert file is not None
    if not file.is_file():
        raise RecordError(f"{file}: does not exist; `attngrid tune` writes it")
    result = read_model(TuningResult, file)
    # The id of a trial contains its digest, so equal ids are equal trials.
    expected = [(t.id, t.recipe.learning_rate, t.recipe.weight_decay) for t in cell.trials]
    if [(t.id, t.learning_rate, t.weight_decay) for t in result.trials] != expected:
        raise RecordError(f"{file}: trials: are not those of this cell")
    return result


def with_best_hyperparameters(cell: Cell) -> Cell:
    """A tuned cell with its chosen hyperparameters; any other cell unchanged."""
    if cell.tuning is None:
        return cell
    chosen = read_tuning_result(cell).chosen
    return cell.with_setting(chosen.learning_rate, chosen.weight_decay)
