"""The best hyperparameters of a model, chosen by the records of its tuning trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from attngrid.core.errors import DivergedTrialsError, RecordError
from attngrid.core.files import write_atomically
from attngrid.core.types import Positive, Strict, WeightDecay
from attngrid.records.record import Percent, read_trial
from attngrid.study.cell import Cell


class Hyperparameters(Strict):
    """What the trials vary in a recipe."""

    learning_rate: Positive
    weight_decay: WeightDecay


class TrialResult(Hyperparameters):
    """A trial's validation error after its last epoch; None if it diverged."""

    id: str
    validation_top1_error: Percent | None


class TuningResult(Strict):
    """A model's trials and the hyperparameters of the smallest error.

    Of equal errors, the smaller learning rate is chosen, then the smaller weight decay.
    """

    chosen: Hyperparameters
    trials: Annotated[tuple[TrialResult, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _check_chosen(self) -> TuningResult:
        if self.chosen != _best(self.trials):
            raise ValueError("chosen is not the setting of the least validation_top1_error")
        return self


def _best(trials: tuple[TrialResult, ...]) -> Hyperparameters | None:
    ended = [
        (trial.validation_top1_error, trial.learning_rate, trial.weight_decay)
        for trial in trials
        if trial.validation_top1_error is not None
    ]
    if not ended:
        return None
    _, learning_rate, weight_decay = min(ended)
    return Hyperparameters(learning_rate=learning_rate, weight_decay=weight_decay)


def choose_hyperparameters(cell: Cell) -> TuningResult:
    """Choose the hyperparameters of a tuned cell by the records of its trials.

    Raises:
        DivergedTrialsError: all of them diverged.
        RecordError: a missing record, or one of another trial.
    """
    results = []
    for trial in cell.trials:
        metrics = read_trial(trial.record, trial).metrics
        results.append(
            TrialResult(
                learning_rate=trial.recipe.learning_rate,
                weight_decay=trial.recipe.weight_decay,
                id=trial.id,
                validation_top1_error=None if metrics is None else metrics.top1_error,
            )
        )
    chosen = _best(tuple(results))
    if chosen is None:
        raise DivergedTrialsError(
            f"{cell.label}, {cell.recipe_name}: all {len(results)} trials diverged; add smaller "
            "values to tuning.learning_rates"
        )
    return TuningResult(chosen=chosen, trials=tuple(results))


def write_tuning_result(cell: Cell, result: TuningResult) -> Path:
    """Write the result for all seeds of a tuned cell, atomically."""
    assert cell.choice is not None
    write_atomically(cell.choice, json.dumps(result.model_dump(mode="json"), indent=1) + "\n")
    return cell.choice


def read_tuning_result(cell: Cell) -> TuningResult:
    """Read the result of a tuned cell's trials.

    Raises:
        RecordError: no JSON, a field that is missing or invalid, or the result of other trials;
            the message names the file.
    """
    file = cell.choice
    assert file is not None
    try:
        result = TuningResult.model_validate(json.loads(file.read_text("utf-8")))
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        field = ".".join(map(str, item["loc"])) or "chosen"
        raise RecordError(f"{file}: {field}: {item['msg']}") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{file}: cannot be read: {error}; `attngrid tune` makes it") from None
    # The id of a trial contains its digest, so equal ids are equal trials.
    expected = [(t.id, t.recipe.learning_rate, t.recipe.weight_decay) for t in cell.trials]
    if [(t.id, t.learning_rate, t.weight_decay) for t in result.trials] != expected:
        raise RecordError(f"{file}: trials: are not those of this cell")
    return result


def with_best_hyperparameters(cell: Cell) -> Cell:
    """A tuned cell with its chosen hyperparameters; any other cell as it is.

    Raises:
        RecordError: as ``read_tuning_result``.
    """
    if cell.tuning is None:
        return cell
    chosen = read_tuning_result(cell).chosen
    return cell.with_setting(chosen.learning_rate, chosen.weight_decay)
