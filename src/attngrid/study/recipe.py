"""Recipes: how a cell is trained. ``recipes.yaml`` has the shipped recipes."""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.core.files import read_yaml
from attngrid.core.types import (
    Count,
    CountFrom0,
    CountFrom2,
    Fraction,
    Number,
    Pixels,
    Positive,
    Strict,
    WeightDecay,
)
from attngrid.core.validation import validate
from attngrid.data.registry import Dataset
from attngrid.data.transforms import Transform, final_size
from attngrid.models.registry import Initialisation
from attngrid.study.options import Options, Share

# The optimizers of torch that need no further package; timm has others.
OPTIMIZERS = ("sgd", "adamw")
TIMM = "timm:"


class Schedule(Strict):
    """The factor of the learning rate as a function of the epoch.

    ``step`` multiplies by ``gamma`` at each of ``milestones`` (epochs). ``cosine`` falls after the
    warm-up by half a cosine to ``final_factor`` at the end. Both rise linearly from
    ``warmup_factor`` to 1 in the first ``warmup_epochs``. ``one_cycle`` rises linearly in the first
    ``warmup`` (a fraction) of the training, and then falls linearly to 0.
    """

    kind: Literal["step", "one_cycle", "cosine"]
    milestones: tuple[Count, ...] = Field((), strict=False, description="epochs of `step`")
    gamma: Positive = Field(0.1, description="factor at each milestone of `step`")
    warmup: Fraction = Field(0.2, description="rising share of the training in `one_cycle`")
    warmup_epochs: CountFrom0 = Field(0, description="epochs of rising, of `step` and `cosine`")
    warmup_factor: Fraction = Field(0.0, description="factor at the start of the warm-up")
    final_factor: Fraction = Field(0.0, description="factor at the end of `cosine`")

    @model_validator(mode="after")
    def _of_one_kind(self) -> Schedule:
        own = {
            "step": ("milestones", "gamma", "warmup_epochs", "warmup_factor"),
            "one_cycle": ("warmup",),
            "cosine": ("warmup_epochs", "warmup_factor", "final_factor"),
        }
        for name, field in Schedule.model_fields.items():
            if name not in ("kind", *own[self.kind]) and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name}: found {getattr(self, name)}; {self.kind} has only "
                    f"{', '.join(own[self.kind])}"
                )
        return self

    def factor(self, epoch: float, epochs: int) -> float:
        """The factor of the learning rate after ``epoch`` of ``epochs`` epochs."""
        if self.kind == "one_cycle":
            done = epoch / epochs
            return done / self.warmup if done < self.warmup else (1 - done) / (1 - self.warmup)
        if self.kind == "step":
            factor = math.prod(self.gamma for milestone in self.milestones if epoch >= milestone)
        else:
            done = max(0.0, epoch - self.warmup_epochs) / (epochs - self.warmup_epochs)
            cosine = (1 + math.cos(math.pi * done)) / 2
            factor = self.final_factor + (1 - self.final_factor) * cosine
        if epoch < self.warmup_epochs:
            risen = epoch / self.warmup_epochs
            factor *= self.warmup_factor + (1 - self.warmup_factor) * risen
        return factor


def _known_optimizer(name: str) -> str:
    """Accept any name after ``timm:``; ``try_recipes`` asks timm before the first job."""
    if name not in OPTIMIZERS and not (name.startswith(TIMM) and name[len(TIMM) :].isalnum()):
        raise UnknownNameError("optimizer", name, [*OPTIMIZERS, f"{TIMM}lamb", f"{TIMM}NAME"])
    return name


OptimizerName = Annotated[str, AfterValidator(_known_optimizer)]
OptimizerOption = bool | int | Number | None | Annotated[tuple[Number, ...], Field(strict=False)]


class Recipe(Strict):
    """One way to train: an optimizer, its schedule, the loss, and the images' transforms.

    ``source`` and ``expected`` are documentation; a cell's digest omits them.
    """

    source: str = Field("", description="the recipe's origin")
    expected: str = Field("", description="the error that others report with it")
    epochs: Count = Field(description="passes over the training images")
    batch_size: CountFrom2 = Field(description="images a step")
    optimizer: OptimizerName = Field("sgd", description="sgd, adamw, or timm:lamb and others")
    optimizer_options: dict[str, OptimizerOption] = Field(
        {}, description="further arguments of the optimizer's class"
    )
    learning_rate: Positive = Field(description="the schedule multiplies it in each step")
    momentum: Fraction = Field(0.9, description="of SGD, and of timm's optimizers that have it")
    nesterov: bool = Field(False, description="Nesterov's momentum, of SGD")
    weight_decay: WeightDecay = Field(0.0, description="the optimizer's weight decay")
    weight_decay_1d: bool = Field(True, description="also of biases and of BatchNorm's weights")
    clip_grad_norm: Positive | None = Field(None, description="largest norm of the gradient")
    ema: Annotated[Number, Field(gt=0, lt=1)] | None = Field(
        None, description="decay of the moving average of the weights, which is tested and kept"
    )
    loss: Literal["cross_entropy", "binary_cross_entropy"] = Field(
        "cross_entropy", description="the training loss"
    )
    target_threshold: Fraction | None = Field(
        None, description="of binary_cross_entropy: a class with a share above it has target 1"
    )
    label_smoothing: Fraction = Field(0.0, description="share of the target for all classes")
    mixup: Positive | None = Field(None, description="its α")
    cutmix: Positive | None = Field(None, description="its α")
    mix_probability: Annotated[Number, Field(gt=0, le=1)] = Field(
        1.0, description="of a batch to be mixed"
    )
    switch_probability: Share = Field(0.5, description="of CutMix, where mixup is given, too")
    initialisation: Initialisation = Field("family", description="how weights are drawn at first")
    schedule: Schedule
    train_size: Pixels | None = Field(
        None, description="height and width of training images; default: those of the tests"
    )
    train_transforms: tuple[Transform, ...] = Field((), strict=False, description="in order")
    test_transforms: tuple[Transform, ...] = Field((), strict=False, description="in order")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        found, epochs = list(self.schedule.milestones), self.epochs
        if found != sorted(set(found)) or any(milestone >= epochs for milestone in found):
            raise ValueError(f"milestones: found {found}; needs rising epochs below {epochs}")
        if (warmup := self.schedule.warmup_epochs) >= epochs:
            raise ValueError(f"warmup_epochs: found {warmup}; needs fewer than {epochs} epochs")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: found true with momentum 0; needs a momentum above 0")
        self._require_used("nesterov", of="optimizer: sgd", used=self.optimizer == "sgd")
        self._require_used("momentum", of="other optimizers", used=self.optimizer != "adamw")
        binary = self.loss == "binary_cross_entropy"
        self._require_used("target_threshold", of="loss: binary_cross_entropy", used=binary)
        self._require_used("mix_probability", of="mixup or cutmix", used=self.mixes)
        both = self.mixup is not None and self.cutmix is not None
        self._require_used("switch_probability", of="mixup and cutmix together", used=both)
        return self

    def _require_used(self, name: str, *, of: str, used: bool) -> None:
        value = getattr(self, name)
        if not used and value != Recipe.model_fields[name].default:
            raise ValueError(f"{name}: found {value}; this is a key of {of}; remove it here")

    def __hash__(self) -> int:  # optimizer_options has no hash
        return hash((self.epochs, self.batch_size, self.learning_rate, self.schedule))

    @property
    def mixes(self) -> bool:
        """Whether the images of a batch are mixed."""
        return self.mixup is not None or self.cutmix is not None

    def learning_rate_at(self, epoch: float) -> float:
        """The learning rate after ``epoch`` epochs, from 0.0 on."""
        return self.learning_rate * self.schedule.factor(epoch, self.epochs)

    def with_options(self, options: Options, dataset: Dataset) -> Recipe:
        """The recipe with a cell's options ``epochs``, ``batch_size`` and ``input_size``.

        If the test images have another size than ``input_size``, every size in ``train_size`` and
        the transforms is multiplied by the quotient of the two and rounded. Images that are stored
        in memory at the size of the network are averaged instead.

        Raises:
            ConfigError: options that do not fit the recipe.
        """
        names = ("epochs", "batch_size", "input_size")
        given = {name: v for name in names if (v := getattr(options, name)) is not None}
        changes = {name: v for name, v in given.items() if name != "input_size"}
        resized = dataset.target is None or dataset.stored_size is not None
        size, own = options.input_size, final_size(self.test_transforms)
        if resized and size is not None and own not in (None, size):
            changes |= self._scaled(size / own)
        if not changes:
            return self
        text = ", ".join(f"{name} {value}" for name, value in given.items())
        return validate(Recipe, {**dict(self), **changes}, f"with options {text}")

    def _scaled(self, factor: float) -> dict[str, Any]:
        """The keys that have sizes, each size multiplied by a factor."""
        changes: dict[str, Any] = {
            key: tuple(
                t.model_copy(update={"size": round(factor * t.size)}) if hasattr(t, "size") else t
                for t in getattr(self, key)
            )
            for key in ("train_transforms", "test_transforms")
        }
        if self.train_size is not None:
            changes["train_size"] = round(factor * self.train_size)
        return changes

    @property
    def uses_timm(self) -> bool:
        """Whether the optimizer or a transform is timm's."""
        kinds = [transform.kind for transform in self.train_transforms]
        return self.optimizer.startswith(TIMM) or "timm_rand_augment" in kinds

    def require_packages(self) -> None:
        """Raise a ConfigError if the recipe needs timm, and it is not installed."""
        if self.uses_timm and find_spec("timm") is None:
            raise ConfigError(
                "the recipe's optimizer or timm_rand_augment is from timm, which is not installed: "
                'pip install "attngrid[timm]"'
            )

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
    """The shipped recipes that a study can name; it can also define its own.

    Examples:
        >>> "cifar_200ep" in list_recipes()
        True
    """
    return list(shipped_recipes())
