"""The cell: one model trained once. Its digest, id, paths and labels are made here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from attngrid.data.registry import Dataset, find_dataset, full_name, short_name
from attngrid.models.registry import Entry, find_attention, find_backbone
from attngrid.study.labels import model_label, option_text, pairs, setting_label
from attngrid.study.options import SHIPPED, Options, Precision
from attngrid.study.paths import results_folder
from attngrid.study.recipe import Recipe
from attngrid.study.tuning import TUNED, TUNED_KEYS, Tuning

# Options of a backbone that only change where its attention modules are.
ATTENTION_OPTIONS = ("placement", "head_attention")
# The columns of a complexity table that identify a model.
MODEL_KEY = ("backbone", "attention", "stem", "num_classes", "input_size", "options")
# The counts of a model: totals first, then fvcore's counts by kind of operator.
Counted = Literal[
    "params",
    "macs",
    "fvcore_total",
    "torch_macs",
    "conv_macs",
    "linear_macs",
    "product_macs",
    "norm_flops",
    "other_flops",
]
COUNTED: tuple[Counted, ...] = get_args(Counted)


@dataclass(frozen=True)
class Cell:
    """Dataset × backbone × attention × recipe × seed, with options, in a study.

    Attributes:
        tuning: only in a tuned cell, whose ``trials`` choose its learning rate and weight decay.
        validation: only in a trial: number of training images that it is tested on in place of the
            test images.
        micro_batches: number of parts of a batch that BatchNorm normalises separately.
    """

    study: str
    dataset: str
    backbone: str
    attention: str
    recipe_name: str
    recipe: Recipe = field(repr=False)
    seed: int
    options: Options = field(default_factory=Options, repr=False)
    precision: Precision = "float32"
    threads: int = 1
    tuning: Tuning | None = field(default=None, repr=False)
    validation: int = 0
    micro_batches: int = 1

    @cached_property
    def trained_attention(self) -> str:
        """The attention whose record this cell reads: ``cam`` is an alias of ``se``."""
        return find_attention(self.attention).alias_of or self.attention

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the configuration that changes the trained numbers.

        It omits defaults, so that a new option changes no digest. For a user's class it covers the
        class and what it uses from its file. It does not cover study, device, workers and paths.
        """
        content = {role: _identity(*named) for role, named in self._entries.items()}
        options = self._digested_options()
        return self._hash({**content, "seed": self.seed, "options": options})

    @cached_property
    def condition_digest(self) -> str:
        """``#`` and eight digits of a digest of everything but backbone, attention and seed.

        The models of a comparison have the same one. Two conditions may have the same label, for
        example with other threads or with two recipes of one name, but not the same digest.
        """
        dataset, options = find_dataset(self.dataset), self.options.changed()
        if options.get("input_size") == dataset.input_size:
            del options["input_size"]
        identity = _identity(short_name(self.dataset), dataset)
        return "#" + self._hash({"dataset": identity, "options": options})[:8]

    def _hash(self, content: dict[str, Any]) -> str:
        """SHA-256 of some content, and of what all models of a condition have in common."""
        recipe = self.recipe.digested()
        if self.tuning is not None:  # the trials choose these values
            recipe = {name: value for name, value in recipe.items() if name not in TUNED_KEYS}
        content = {**content, "recipe": recipe, **self._optional_keys()}
        if self.precision != "float32":
            content["precision"] = self.precision
        if self.threads != 1:
            content["threads"] = self.threads
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def id(self) -> str:
        """A readable name for files, unique by eight digits of the digest."""
        names = [_slug(name) for name, _ in self._entries.values()]
        return "-".join([*names, self.recipe_name, f"s{self.seed}", self.digest[:8]])

    def _digested_options(self) -> dict[str, Any]:
        """The options that differ from what a digest without them means."""
        options, own = self.effective_options.changed(), self._own_defaults
        for entry in (find_backbone(self.backbone), find_attention(self.attention)):
            for name in entry.omitted.keys() & own:
                options[name] = options.get(name, own[name])
                if options[name] == entry.omitted[name]:
                    del options[name]
        return options

    @property
    def _entries(self) -> dict[str, tuple[str, Dataset | Entry]]:
        """By role: the name in ids and digests, and the registry's entry."""
        return {
            "dataset": (short_name(self.dataset), find_dataset(self.dataset)),
            "backbone": (self.backbone, find_backbone(self.backbone)),
            "attention": (self.trained_attention, find_attention(self.attention)),
        }

    def _optional_keys(self) -> dict[str, Any]:
        """Keys of digest and configuration that only some cells have."""
        keys: dict[str, Any] = {}
        if self.tuning is not None:
            keys["tuning"] = self.tuning.digested()
        if self.validation:
            keys["validation"] = self.validation
        if self.micro_batches != 1:
            keys["parts"] = self.micro_batches
        return keys

    def tuned(self, tuning: Tuning) -> Cell:
        """The same cell with its learning rate and weight decay tuned."""
        return replace(self, recipe_name=self.recipe_name + TUNED, tuning=tuning)

    def with_setting(self, learning_rate: float, weight_decay: float) -> Cell:
        """The same cell with these hyperparameters. The id of a tuned cell does not change."""
        setting = {"learning_rate": learning_rate, "weight_decay": weight_decay}
        return replace(self, recipe=self.recipe.model_copy(update=setting))

    @cached_property
    def trials(self) -> tuple[Cell, ...]:
        """The trials that choose a tuned cell's hyperparameters; the same for all its seeds."""
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

    # Files.

    def _file(self, folder: str, suffix: str) -> Path:
        return results_folder() / self.study / folder / f"{self.id}{suffix}"

    @cached_property
    def choice(self) -> Path | None:
        """The file of a tuned cell's best hyperparameters, the same for all its seeds."""
        if self.tuning is None:
            return None
        return replace(self, seed=self.tuning.seed)._file("tuning", ".json")

    @cached_property
    def record(self) -> Path:
        """The file of the cell's measured numbers."""
        return self._file("trials" if self.validation else "records", ".json")

    @property
    def status(self) -> Path:
        """The file of its state, every attempt to train it, and why it has no record."""
        return self._file("status", ".json")

    @property
    def lock(self) -> Path:
        """The file that a process locks while it trains the cell or imports its record."""
        return self._file("status", ".lock")

    @property
    def weights(self) -> Path:
        """The file of the trained weights, if the study keeps them."""
        return self._file("weights", ".safetensors")

    @property
    def checkpoint(self) -> Path:
        """The file from which an interrupted training continues."""
        return self._file("checkpoints", ".ckpt")

    # Labels.

    @property
    def label(self) -> str:
        """A readable label: ``ResNet-18 + SE, seed 0``."""
        label = f"{model_label(self.backbone, self.attention)}, seed {self.seed}"
        if self.validation:
            label += f", {setting_label(self.recipe.learning_rate, self.recipe.weight_decay)}"
        return label

    @property
    def condition(self) -> str:
        """A readable label of everything but backbone, attention and seed."""
        parts = [find_dataset(self.dataset).label, f"{self.input_size}×{self.input_size}"]
        changed = self.options.changed()
        changed.pop("input_size", None)
        if (classes := changed.pop("classes", None)) is not None:
            parts.append(f"first {classes} classes")
        if (width := changed.pop("width", None)) is not None:
            named = {0.25: "quarter width", 0.5: "half width", 2.0: "double width"}
            parts.append(named.get(width, f"{width:g}× width"))
        parts += [f"{name} {option_text(value)}" for name, value in changed.items()]
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

    # The model.

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier."""
        return self.options.classes or find_dataset(self.dataset).num_classes

    @property
    def input_size(self) -> int:
        """Height and width of the network's images, in pixels."""
        return self.options.input_size or find_dataset(self.dataset).input_size

    @cached_property
    def _own_defaults(self) -> dict[str, Any]:
        """The options of this cell's model, with its own defaults; a baseline has no placement."""
        attention = find_attention(self.attention).accepts
        own = {**find_backbone(self.backbone).accepts, **attention}
        if self.attention == "none":
            own = {name: v for name, v in own.items() if name not in ATTENTION_OPTIONS}
        return own

    @cached_property
    def effective_options(self) -> Options:
        """The options that change this cell's model or images."""
        own = self._own_defaults
        used = {"width", "classes", *own}
        if self.input_size != find_dataset(self.dataset).input_size:
            used |= {"input_size"}
        changed = self.options.changed().items()
        return Options(**{k: v for k, v in changed if k in used and (k not in own or own[k] != v)})

    @property
    def model_options(self) -> dict[str, Any]:
        """The options that are arguments of ``create_model``."""
        options = self.effective_options.changed()
        for name in ("classes", "input_size"):  # options of the images
            options.pop(name, None)
        return options

    @property
    def model_key(self) -> tuple[str, str, str, int, int, str]:
        """The values of ``MODEL_KEY``, on which the model's cost depends."""
        stem, options = find_dataset(self.dataset).stem, pairs(self.model_options)
        return (self.backbone, self.attention, stem, self.num_classes, self.input_size, options)

    def model_arguments(self) -> dict[str, Any]:
        """The arguments of ``create_model`` for this cell."""
        return {
            "backbone": self.backbone,
            "attention": self.trained_attention,
            "num_classes": self.num_classes,
            "stem": find_dataset(self.dataset).stem,
            "input_size": self.input_size,
            "initialisation": self.recipe.initialisation,
            **self.model_options,
        }

    # The record's ``config`` block.

    def config(self) -> dict[str, Any]:
        """The resolved configuration, as the record has it."""
        return {
            "dataset": self.dataset,
            "backbone": self.backbone,
            "attention": self.trained_attention,
            "recipe": {"name": self.recipe_name, **self.recipe.model_dump(mode="json")},
            "seed": self.seed,
            "options": self._resolved_options(),
            "precision": self.precision,
            "threads": self.threads,
            **self._optional_keys(),
            "sha256": self.sha256,
            "digest": self.digest,
        }

    def _resolved_options(self) -> dict[str, Any]:
        """The effective options, with this package's defaults in place of None."""
        own = self._own_defaults
        known = {name: v for name, v in SHIPPED.items() if name in own and own[name] == v}
        options = self.effective_options.model_dump(mode="json")
        return {name: known.get(name) if v is None else v for name, v in options.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], study: str) -> Cell:
        """The cell of a record's ``config`` block.

        Raises:
            KeyError, TypeError, ValueError: the block does not describe a cell.
        """
        recipe = dict(config["recipe"])
        options = Options.model_validate(config["options"])
        entries = (find_backbone(config["backbone"]), find_attention(config["attention"]))
        options = options.without([entry.accepts for entry in entries])
        return cls(
            study=study,
            dataset=full_name(config["dataset"]),
            backbone=config["backbone"],
            attention=config["attention"],
            recipe_name=recipe.pop("name"),
            recipe=Recipe.model_validate(recipe),
            seed=config["seed"],
            options=options,
            precision=config["precision"],
            threads=config["threads"],
            tuning=Tuning.model_validate(config["tuning"]) if "tuning" in config else None,
            validation=config.get("validation", 0),
            micro_batches=config.get("parts", 1),
        )

    @cached_property  # an edit during the training does not change it
    def sha256(self) -> dict[str, str]:
        """The digests of the user's classes that this cell runs, by their role."""
        entries = self._entries.items()
        return {role: entry.sha256 for role, (_, entry) in entries if entry.sha256 is not None}

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether a record's ``config`` block describes this cell; raises like ``from_config``."""
        if config["digest"] != self.digest or config["sha256"] != self.sha256:
            return False
        # the path of a user's file does not count
        user_files = {role: getattr(self, role) for role in self.sha256}
        found = Cell.from_config({**config, **user_files}, self.study)
        setting = (found.recipe.learning_rate, found.recipe.weight_decay)
        return (
            found.digest == self.digest
            and found.effective_options == self.effective_options
            and (self.tuning is None or setting in self.tuning.settings)
        )


def cell_names(cell_id: str) -> str:
    """An id without its digest."""
    return cell_id.rpartition("-")[0]


def _identity(name: str, entry: Entry | Dataset) -> Any:
    """What the digest has of a name: the name, or a user's class and its digest."""
    if entry.sha256 is None:
        return name
    return {"class": re.sub(r"[^:]*\.py:", "", name), "sha256": entry.sha256}


def _slug(name: str) -> str:
    """A name for files; ``folder/file.py:Class`` becomes ``file.Class``."""
    short = re.sub(r"[^:]*?([^/:]+)\.py:", r"\1.", name)
    return re.sub(r"[^A-Za-z0-9._]+", "_", short)
