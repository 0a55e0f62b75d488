"""Hyperparameter tuning: every model gets the same trials."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from attngrid.core.types import Count, Positive, Strict, WeightDecay
from attngrid.study.options import Seed

# The keys of a recipe that trials vary.
TUNED_KEYS = ("learning_rate", "weight_decay")
FEWEST_TRIALS = 6
# The end of a tuned recipe's name; no name in a configuration may contain a plus sign.
TUNED = "+tuned"


def _each_once(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"found {list(values)}; needs each once")
    return values


# The keys that choose what is tuned.
CHOSEN = ("recipes", "backbones", "attentions")
Tuned = Annotated[tuple[str, ...] | None, Field(strict=False, min_length=1)]


class Tuning(Strict):
    """The trials that every model gets, the baseline included: learning rates × weight decays."""

    recipes: Tuned = Field(None, description="recipes of the grid to tune; default: all")
    backbones: Tuned = Field(None, description="backbones of the grid to tune; default: all")
    attentions: Tuned = Field(None, description="attentions of the grid to tune; default: all")
    learning_rates: Annotated[tuple[Positive, ...], AfterValidator(_each_once)] = Field(
        strict=False, min_length=1, description="learning rates to try, before the schedule"
    )
    weight_decays: Annotated[tuple[WeightDecay, ...], AfterValidator(_each_once)] = Field(
        strict=False, min_length=1, description="weight decays to try with every learning rate"
    )
    validation_images: Count = Field(
        description="number of training images to test trials on, equally many of each class"
    )
    seed: Seed = Field(0, description="of the trials")

    @model_validator(mode="after")
    def _check_count(self) -> Tuning:
        if (found := len(self.settings)) < FEWEST_TRIALS:
            raise ValueError(
                f"found {len(self.learning_rates)} learning_rates × {len(self.weight_decays)} "
                f"weight_decays = {found} trials a model; needs {FEWEST_TRIALS} or more"
            )
        return self

    def covers(self, recipe: str, backbone: str, attention: str) -> bool:
        """Whether cells of these are tuned."""
        named = (self.recipes, self.backbones, self.attentions)
        return all(
            names is None or name in names
            for names, name in zip(named, (recipe, backbone, attention), strict=True)
        )

    @property
    def settings(self) -> list[tuple[float, float]]:
        """Learning rate and weight decay of each trial, in ascending order."""
        return list(product(sorted(self.learning_rates), sorted(self.weight_decays)))

    def digested(self) -> dict[str, Any]:
        """The part of the configuration that changes the best hyperparameters."""
        content = self.model_dump(mode="json", exclude=set(CHOSEN), exclude_defaults=True)
        lists = {name: sorted(content[name]) for name in ("learning_rates", "weight_decays")}
        return content | lists
