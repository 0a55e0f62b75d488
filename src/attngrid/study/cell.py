"""The cell: one model trained once. The one place that makes ids, paths and labels."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from attngrid.data.registry import Dataset, find_dataset, full_name, short_name
from attngrid.models.registry import Entry, find_attention, find_backbone
from attngrid.study.labels import _shown, model_label, pairs, setting_label
from attngrid.study.options import Options, Precision
from attngrid.study.paths import results_folder
from attngrid.study.recipe import Recipe
from attngrid.study.tuning import TUNED, TUNED_KEYS, Tuning

# The columns of a complexity table that identify a model.
MODEL_KEY = ("backbone", "attention", "stem", "num_classes", "input_size", "options")


# What is counted of a model, the sums first, then what fvcore says that they are made of.
COUNTED = (
    "params",
    "macs",
    "fvcore_total",
    "torch_macs",
    "conv_macs",
    "linear_macs",
    "product_macs",
    "norm_flops",
    "other_flops",
)


@dataclass(frozen=True)
class Cell:
    """Dataset × backbone × attention × recipe × seed, with options, in a study.

    With a ``tuning`` the learning rate and the weight decay of its recipe are those that its
    ``trials`` choose. A trial is a cell, too: of its ``validation`` training images it sees the
    figures, and of the test images nothing. Each batch is normalised in ``micro_batches``, by themselves.
    """

    study: str
    dataset: str
    backbone: str
    attention: str
    recipe_name: str
    recipe: Recipe
    seed: int
    options: Options = field(default_factory=Options)
    precision: Precision = "float32"
    threads: int = 1
    tuning: Tuning | None = None
    validation: int = 0
    micro_batches: int = 1

    @cached_property
    def trained_attention(self) -> str:
        """The attention whose record this cell reads: ``cam`` computes what ``se`` does."""
        return find_attention(self.attention).alias_of or self.attention

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what changes the trained numbers, in hexadecimal.

        Defaults are left out, so that a new option stales no record. A class of the user's
        own counts by its file's content. Study, device, workers and paths are no part of it.
        """
        content: dict[str, Any] = {
            "dataset": _identity(short_name(self.dataset), find_dataset(self.dataset)),
            "backbone": _identity(self.backbone, find_backbone(self.backbone)),
            "attention": _identity(self.trained_attention, find_attention(self.attention)),
            "recipe": self._frozen(self.recipe),
            "seed": self.seed,
            "options": self.effective_options.changed(),
        }
        if self.tuning is not None:
            content["tuning"] = self.tuning.digested()
        if self.validation:
            content["validation"] = self.validation
        if self.precision != "float32":
            content["precision"] = self.precision
        if self.threads != 1:
            content["threads"] = self.threads
        if self.micro_batches != 1:
            content["parts"] = self.micro_batches
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def id(self) -> str:
        """A name for files: readable, path-safe, and unique by eight digits of the digest."""
        names = (
            _slug(short_name(self.dataset)),
            _slug(self.backbone),
            _slug(self.trained_attention),
            self.recipe_name,
            f"s{self.seed}",
        )
        return "-".join((*names, self.digest[:8]))

    def _frozen(self, recipe: Recipe) -> dict[str, Any]:
        """What of a recipe is this cell's before any trial has been made."""
        free = TUNED_KEYS if self.tuning is not None else ()
        return {name: value for name, value in recipe.digested().items() if name not in free}

    def tuned(self, tuning: Tuning) -> Cell:
        """The same cell with its learning rate and weight decay tuned."""
        return replace(self, recipe_name=self.recipe_name + TUNED, tuning=tuning)

    def with_setting(self, learning_rate: float, weight_decay: float) -> Cell:
        """The same cell, to be trained with these; a tuned cell's id stays what it is."""
        setting = {"learning_rate": learning_rate, "weight_decay": weight_decay}
        return replace(self, recipe=self.recipe.model_copy(update=setting))

    @cached_property
    def trials(self) -> tuple[Cell, ...]:
        """What a tuned cell's setting is chosen by; the same for all its seeds."""
        if self.tuning is None:
            return ()
        name = self.recipe_name.removesuffix(TUNED)
        return tuple(
            replace(
                self.with_setting(learning_rate, weight_decay),
                recipe_name=f"{name}+lr{learning_rate:g}+wd{weight_decay:g}",
                seed=self.tuning.seed,
                tuning=None,
                validation=self.tuning.validation_images,
            )
            for learning_rate, weight_decay in self.tuning.settings
        )

    @property
    def choice(self) -> Path | None:
        """Where a tuned cell's setting is, for all its seeds under the name of the trials'."""
        if self.tuning is None:
            return None
        name = replace(self, seed=self.tuning.seed).id
        return results_folder() / self.study / "tuning" / f"{name}.json"

    @cached_property
    def record(self) -> Path:
        """Where the cell's measured numbers go."""
        folder = "trials" if self.validation else "records"
        return results_folder() / f"{self.study}/{folder}/{self.id}.json"

    @property
    def status(self) -> Path:
        """Where the cell says that it runs, or why it has no record."""
        return results_folder() / self.study / "status" / f"{self.id}.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains it, or that files what was trained elsewhere."""
        return self.status.with_suffix(".lock")

    @property
    def attempts(self) -> Path:
        """What its trainings took, those that were killed included."""
        return self.status.with_suffix(".attempts")

    @property
    def weights(self) -> Path:
        """Where the trained network's weights are kept, if they are."""
        return results_folder() / self.study / "weights" / f"{self.id}.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Where a training that is not finished goes on from."""
        return results_folder() / self.study / "checkpoints" / f"{self.id}.ckpt"

    @property
    def label(self) -> str:
        """The cell for a person: ``ResNet-18 + SE, seed 0``."""
        label = f"{model_label(self.backbone, self.attention)}, seed {self.seed}"
        if self.validation:
            label += f", {setting_label(self.recipe.learning_rate, self.recipe.weight_decay)}"
        return label

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier."""
        return self.options.classes or find_dataset(self.dataset).num_classes

    @property
    def condition(self) -> str:
        """All but backbone, attention and seed, for a person: what a column was measured on."""
        dataset = find_dataset(self.dataset)
        parts = [dataset.label, f"{dataset.input_size}×{dataset.input_size}"]
        changed = self.options.changed()
        if (classes := changed.pop("classes", None)) is not None:
            parts.append(f"first {classes} classes")
        if (width := changed.pop("width", None)) is not None:
            named = {0.25: "quarter width", 0.5: "half width", 2.0: "double width"}
            parts.append(named.get(width, f"{width:g}× width"))
        parts += [f"{name} {_shown(value)}" for name, value in changed.items()]
        parts.append(self.recipe_name)
        if self.precision != "float32":
            parts.append(self.precision)
        if self.micro_batches != 1:
            parts.append(f"batch norm over {self.recipe.batch_size // self.micro_batches} images")
        return ", ".join(parts)

    @property
    def options_text(self) -> str:
        """The options that are not at their defaults, as ``name=value`` pairs."""
        return pairs(self.options.changed())

    @cached_property
    def effective_options(self) -> Options:
        """The options that change this cell: a baseline has no reduction and no placement."""
        used = {"width", "classes"} | find_attention(self.attention).accepts
        used |= find_backbone(self.backbone).accepts
        if self.attention == "none":
            used -= {"placement"}
        return Options(**{name: v for name, v in self.options.changed().items() if name in used})

    @property
    def model_options(self) -> dict[str, Any]:
        """Those of the options that are ``create_model``'s."""
        options = self.effective_options.changed()
        entry = find_attention(self.attention)
        if entry.sha256 is not None and "reduction" in entry.accepts:
            # what the configuration says, not what a user's class happens to default to
            options["reduction"] = self.options.reduction
        if entry.needs_feature_size or entry.quantity == "macs":
            options["input_size"] = find_dataset(self.dataset).input_size
        return {name: value for name, value in sorted(options.items()) if name != "classes"}

    @property
    def model_key(self) -> tuple[str, str, str, int, int, str]:
        """The values of ``MODEL_KEY``: what the model's cost depends on."""
        dataset = find_dataset(self.dataset)
        options = pairs(self.model_options)
        size = dataset.input_size
        return (self.backbone, self.attention, dataset.stem, self.num_classes, size, options)

    def model_arguments(self) -> dict[str, Any]:
        """The arguments of ``create_model`` for this cell."""
        return {
            "backbone": self.backbone,
            "attention": self.trained_attention,
            "num_classes": self.num_classes,
            "stem": find_dataset(self.dataset).stem,
            **self.model_options,
        }

    def config(self) -> dict[str, Any]:
        """The resolved configuration, as the record carries it."""
        return {
            "dataset": self.dataset,
            "backbone": self.backbone,
            "attention": self.trained_attention,
            "recipe": {"name": self.recipe_name, **self.recipe.model_dump(mode="json")},
            "seed": self.seed,
            "options": self.effective_options.model_dump(mode="json"),
            "precision": self.precision,
            "threads": self.threads,
            # of most cells none of these is a part
            **({"tuning": self.tuning.digested()} if self.tuning else {}),
            **({"validation": self.validation} if self.validation else {}),
            **({"parts": self.micro_batches} if self.micro_batches != 1 else {}),
            "sha256": self.sha256,
            "digest": self.digest,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], study: str) -> Cell:
        """The cell of a record's ``config`` block.

        Raises:
            KeyError, TypeError, ValueError: a block that is no cell's.
        """
        recipe = dict(config["recipe"])
        return cls(
            study=study,
            dataset=full_name(config["dataset"]),
            backbone=config["backbone"],
            attention=config["attention"],
            recipe_name=recipe.pop("name"),
            recipe=Recipe.model_validate(recipe),
            seed=config["seed"],
            options=Options.model_validate(config["options"]),
            precision=config["precision"],
            threads=config["threads"],
            tuning=Tuning.model_validate(config["tuning"]) if "tuning" in config else None,
            validation=config.get("validation", 0),
            micro_batches=config.get("parts", 1),
        )

    @property
    def sha256(self) -> dict[str, str]:
        """Of the files of the user's own that this cell runs, by what they are for."""
        found = {
            "dataset": find_dataset(self.dataset).sha256,
            "backbone": find_backbone(self.backbone).sha256,
            "attention": find_attention(self.attention).sha256,
        }
        return {kind: sha256 for kind, sha256 in found.items() if sha256 is not None}

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether a record's ``config`` block is this cell's, whatever defaults came since."""
        recipe = Recipe.model_validate(
            {name: value for name, value in config["recipe"].items() if name != "name"}
        )
        setting = (recipe.learning_rate, recipe.weight_decay)
        names = {
            "dataset": self.dataset,
            "backbone": self.backbone,
            "attention": self.trained_attention,
        }
        if find_dataset(self.dataset).folder is not None:
            del names["dataset"]  # the digest has it, wherever the folder is
        # a class of the user's own is the same wherever its file is
        own = self.sha256
        return (
            config["digest"] == self.digest
            and config["sha256"] == own
            and all(config[kind] == name for kind, name in names.items() if kind not in own)
            and self._frozen(recipe) == self._frozen(self.recipe)
            and (self.tuning is None or setting in self.tuning.settings)
            and config.get("tuning") == (self.tuning.digested() if self.tuning else None)
            and config.get("validation", 0) == self.validation
            and config.get("parts", 1) == self.micro_batches
            and Options.model_validate(config["options"]) == self.effective_options
            and (config["seed"], config["precision"]) == (self.seed, self.precision)
            and config["threads"] == self.threads
        )


def cell_names(cell_id: str) -> str:
    """An id without its digest: what a cell is called, whatever its configuration says."""
    return cell_id.rpartition("-")[0]


def _identity(name: str, entry: Entry | Dataset) -> Any:
    """What a name computes: itself, or the content of the user's file that it is in."""
    if entry.sha256 is None:
        return name
    return {"class": re.sub(r"[^:]*\.py:", "", name), "sha256": entry.sha256}


def _slug(name: str) -> str:
    """A name for files; of a user's ``folder/file.py:Class`` it is ``file.Class``."""
    short = re.sub(r"[^:]*?([^/:]+)\.py:", r"\1.", name)
    return re.sub(r"[^A-Za-z0-9._]+", "_", short)
