"""Recipes: how a cell is trained. ``recipes.yaml`` has the shipped recipes."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from attngrid.core.files import read_yaml
from attngrid.core.types import Fraction, Positive, Strict, WeightDecay
from attngrid.data.transforms import Transform
from attngrid.models.registry import Initialisation


class Schedule(Strict):
    """The factor of the learning rate as a function of the epoch.

    ``step`` rises linearly in the first ``warmup_epochs``, and multiplies by ``gamma`` at each of
    ``milestones`` (epochs). ``one_cycle`` rises linearly in the first ``warmup`` (a fraction) of
    the training, and then falls linearly to 0.
    """

    kind: Literal["step", "one_cycle"]
    milestones: tuple[PositiveInt, ...] = Field((), strict=False)
    gamma: Positive = 0.1
    warmup: Fraction = 0.2
    warmup_epochs: NonNegativeInt = 0

    @model_validator(mode="after")
    def _of_one_kind(self) -> Schedule:
        own = {"step": ("milestones", "gamma", "warmup_epochs"), "one_cycle": ("warmup",)}
        for name, field in Schedule.model_fields.items():
            if name not in ("kind", *own[self.kind]) and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name}: found {getattr(self, name)}; {self.kind} has only "
                    f"{', '.join(own[self.kind])}"
                )
        return self

    def factor(self, epoch: float, epochs: int) -> float:
        """The factor of the learning rate after ``epoch`` of ``epochs`` epochs."""
        if self.kind == "step":
            dropped = math.prod(self.gamma for milestone in self.milestones if epoch >= milestone)
            return dropped * min(1.0, epoch / self.warmup_epochs if self.warmup_epochs else 1.0)
        done = epoch / epochs
        return done / self.warmup if done < self.warmup else (1 - done) / (1 - self.warmup)


class Recipe(Strict):
    """One way to train: SGD, its schedule and the transforms of the images.

    ``source`` and ``expected`` are documentation; a cell's digest omits them.
    """

    source: str = ""
    expected: str = ""
    epochs: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Positive
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: WeightDecay = 0.0
    label_smoothing: Fraction = 0.0
    initialisation: Initialisation = "family"
    schedule: Schedule
    train_transforms: tuple[Transform, ...] = Field((), strict=False)
    test_transforms: tuple[Transform, ...] = Field((), strict=False)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        found, epochs = list(self.schedule.milestones), self.epochs
        if found != sorted(set(found)) or any(milestone >= epochs for milestone in found):
            raise ValueError(f"milestones: found {found}; needs rising epochs below {epochs}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: found true with momentum 0; needs a momentum above 0")
        return self

    def learning_rate_at(self, epoch: float) -> float:
        """The learning rate after ``epoch`` epochs, from 0.0 on."""
        return self.learning_rate * self.schedule.factor(epoch, self.epochs)

    def digested(self) -> dict[str, Any]:
        """The keys that change the trained numbers, without defaults."""
        content = self.model_dump(
            mode="json", exclude={"source", "expected"}, exclude_defaults=True
        )
        for crop in content.get("train_transforms", ()):
            # a digest without this key means shrunk images, as in earlier versions
            if crop["kind"] == "random_resized_crop" and not crop.pop("shrink_on_load", False):
                crop["shrink_on_load"] = False
        return content


@cache
def shipped_recipes() -> dict[str, Recipe]:
    """The recipes of ``recipes.yaml``, by name."""
    recipes = read_yaml(Path(__file__).with_name("recipes.yaml"))
    return {name: Recipe.model_validate(fields) for name, fields in recipes.items()}


def list_recipes() -> list[str]:
    """The shipped recipes that a study can name; it can also define its own."""
    return list(shipped_recipes())
