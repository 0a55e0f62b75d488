"""From a model's trials to the learning rate and weight decay that it is trained with."""

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


class Setting(Strict):
    """What trials vary of a recipe."""

    learning_rate: Positive
    weight_decay: WeightDecay


class Tried(Setting):
    """What a choice goes by: a trial's error after its last epoch; None where it diverged."""

    id: str
    validation_top1_error: Percent | None


class Choice(Strict):
    """A model's trials and the setting chosen by them, which is that of the least error.

    Of equal ones it is the smaller learning rate's, then the smaller weight decay's.
    """

    chosen: Setting
    trials: Annotated[tuple[Tried, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _chosen_by_the_trials(self) -> Choice:
        if self.chosen != _best(self.trials):
            raise ValueError("chosen is not the setting of the least validation_top1_error")
        return self


def _best(trials: tuple[Tried, ...]) -> Setting | None:
    ended = [
        (trial.validation_top1_error, trial.learning_rate, trial.weight_decay)
        for trial in trials
        if trial.validation_top1_error is not None
    ]
    if not ended:
        return None
    _, learning_rate, weight_decay = min(ended)
    return Setting(learning_rate=learning_rate, weight_decay=weight_decay)


def choose(cell: Cell) -> Choice:
    """Choose a tuned cell's setting by the records of its trials.

    Raises:
        DivergedTrialsError: none of them came to its end.
        RecordError: one that is missing or not the trial's.
    """
    tried = []
    for trial in cell.trials:
        metrics = read_trial(trial.record, trial).metrics
        tried.append(
            Tried(
                learning_rate=trial.recipe.learning_rate,
                weight_decay=trial.recipe.weight_decay,
                id=trial.id,
                validation_top1_error=None if metrics is None else metrics.top1_error,
            )
        )
    chosen = _best(tuple(tried))
    if chosen is None:
        raise DivergedTrialsError(
            f"{cell.label}, {cell.recipe_name}: all {len(tried)} trials diverged; add smaller "
            "values to tuning.learning_rates"
        )
    return Choice(chosen=chosen, trials=tuple(tried))


def write_choice(cell: Cell, choice: Choice) -> Path:
    """Write what was chosen for a tuned cell, and for its other seeds, atomically."""
    assert cell.choice is not None
    write_atomically(cell.choice, json.dumps(choice.model_dump(mode="json"), indent=1) + "\n")
    return cell.choice


def read_choice(cell: Cell) -> Choice:
    """Read what was chosen for a tuned cell.

    Raises:
        RecordError: no JSON, a field that is missing or cannot be, or the choice of other trials;
            the message names the file.
    """
    file = cell.choice
    assert file is not None
    try:
        choice = Choice.model_validate(json.loads(file.read_text("utf-8")))
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        field = ".".join(map(str, item["loc"])) or "chosen"
        raise RecordError(f"{file}: {field}: {item['msg']}") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{file}: cannot be read: {error}; `attngrid tune` makes it") from None
    # a trial's id has its digest, so these are this cell's trials and no others
    wanted = [(t.id, t.recipe.learning_rate, t.recipe.weight_decay) for t in cell.trials]
    if [(t.id, t.learning_rate, t.weight_decay) for t in choice.trials] != wanted:
        raise RecordError(f"{file}: trials: are not those of this cell")
    return choice


def as_chosen(cell: Cell) -> Cell:
    """The cell as it is trained: a tuned one with its choice, any other as it is.

    Raises:
        RecordError: as ``read_choice``.
    """
    if cell.tuning is None:
        return cell
    chosen = read_choice(cell).chosen
    return cell.with_setting(chosen.learning_rate, chosen.weight_decay)
