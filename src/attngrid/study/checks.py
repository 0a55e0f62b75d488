"""Checks of a study that need more than one key. Each raises ``ValueError`` with its message."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attngrid.core.errors import UnknownNameError
from attngrid.data.registry import Dataset, find_dataset, short_name
from attngrid.data.transforms import CropTo, RandomResizedCrop, Resize, Transform
from attngrid.models.registry import attention_label, find_attention
from attngrid.study.labels import backbone_label
from attngrid.study.recipe import Recipe, shipped_recipes

if TYPE_CHECKING:
    from attngrid.study.schema import Block, Study

# Transforms of training images and of test images, each at most once: for datasets in memory, and
# for datasets that are read from files.
RESIDENT = ("flip", "random_crop", "resize", "crop_to", "brightness"), ("resize", "crop_to")
STREAMED = ("flip", "random_resized_crop", "resize", "crop_to", "brightness"), ("resize", "crop_to")


def check_classes(block: Block) -> None:
    """``options.classes`` is less than the dataset has."""
    known = find_dataset(block.dataset).num_classes
    if block.options.classes is not None and block.options.classes >= known:
        raise ValueError(
            f"options.classes: found {block.options.classes}; {block.dataset} has {known}, "
            "leave it out for all"
        )


def check_rates(block: Block) -> None:
    """``options.rates`` has one share for each statistic, and they sum to 1."""
    if (rates := block.options.rates) is None:
        return
    for name in block.attentions:
        entry = find_attention(name)
        entry = find_attention(entry.matches or name)  # a control has its module's options
        count = len(entry.options.get("statistics", ("avg", "std")))
        wrong = len(rates) != count or not math.isclose(sum(rates), 1)
        if "rates" in entry.accepts and not entry.external and wrong:
            raise ValueError(
                f"options.rates: found {list(rates)}; {name} needs {count} that sum to 1"
            )


def check_names(study: Study) -> None:
    """No two recipes, rows, datasets or tables would have the same name."""
    if shadowed := set(study.recipes) & set(shipped_recipes()):
        raise ValueError(f"recipes.{min(shadowed)}: is a shipped recipe's name; take another")
    for kind, label in (("attentions", attention_label), ("backbones", backbone_label)):
        labels: dict[str, str] = {}
        for name in dict.fromkeys(name for block in study.grid for name in getattr(block, kind)):
            if (other := labels.setdefault(label(name), name)) != name:
                raise ValueError(
                    f"grid: {other!r} and {name!r} would both be {label(name)!r} in the "
                    "tables; rename a class"
                )
    folders: dict[str, str] = {}
    for name in dict.fromkeys(block.dataset for block in study.grid):
        if (other := folders.setdefault(short_name(name), name)) != name:
            raise ValueError(
                f"grid: {other!r} and {name!r} would have the same records; rename a folder"
            )
    if "claims" in study.descriptions:
        raise ValueError("tables: found 'claims', which every study has; take another name")
    if len(study.descriptions) < len(study.tables):
        raise ValueError(f"tables: found {list(study.tables)}; each needs a file name of its own")


def check_recipes(study: Study) -> None:
    """Every recipe exists and its transforms make the images that the networks take."""
    for number, block in enumerate(study.grid):
        for name in block.recipes:
            try:
                recipe = study.recipe(name)
            except UnknownNameError as error:
                raise ValueError(f"grid.{number}.recipes: {error}") from None
            for split in ("train", "test"):
                where = f"grid.{number}.recipes: {name!r}: {split}_transforms"
                _check_transforms(recipe, split, where, block.dataset)


def check_batches(study: Study) -> None:
    """Every batch divides into its micro-batches, each of 2 images or more."""
    gpus, steps = study.compute.gpus, study.compute.gradient_accumulation_steps
    parts = gpus * steps
    for number, block in enumerate(study.grid):
        for name in block.recipes:
            size = study.recipe(name).batch_size
            if parts > 1 and (size % parts or size < 2 * parts):
                raise ValueError(
                    f"grid.{number}.recipes: {name!r}: batch_size: found {size}; compute.gpus "
                    f"{gpus} × compute.gradient_accumulation_steps {steps} need a multiple "
                    f"of {parts}, 2 images a part or more"
                )


def check_tuning(study: Study) -> None:
    """The tuned recipes are in the grid, and every dataset has the validation images."""
    if study.tuning is None:
        return
    in_grid = dict.fromkeys(name for block in study.grid for name in block.recipes)
    for name in study.tuning.recipes or ():
        if name not in in_grid:
            raise ValueError(f"tuning.recipes: {UnknownNameError('recipe', name, in_grid)}")
    images = study.tuning.validation_images
    wrong = f"tuning.validation_images: found {images}; "
    for block in study.grid:
        if not any(map(study.tuning.covers, block.recipes)):
            continue
        dataset = find_dataset(block.dataset)
        classes = block.options.classes or dataset.num_classes
        of_each, rest = divmod(images, classes)
        if rest:
            raise ValueError(
                f"{wrong}needs a multiple of {classes}, as many images of each class of "
                f"{block.dataset}"
            )
        if dataset.smallest_class is not None and of_each >= dataset.smallest_class:
            most = (dataset.smallest_class - 1) * classes
            raise ValueError(
                f"{wrong}can be {most} at most: {block.dataset} has "
                f"{dataset.smallest_class} training images of a class, and trials need some of them"
            )


def _check_transforms(recipe: Recipe, split: str, where: str, name: str) -> None:
    """The transforms are possible and their last one makes the network's input size."""
    dataset = find_dataset(name)
    resident = dataset.target is not None
    allowed = (RESIDENT if resident else STREAMED)[split == "test"]
    transforms: tuple[Transform, ...] = getattr(recipe, f"{split}_transforms")
    found = [transform.kind for transform in transforms]
    if wrong := [kind for kind in found if kind not in allowed or found.count(kind) > 1]:
        raise ValueError(
            f"{where}: found {', '.join(dict.fromkeys(wrong))}; {split} images of {name} "
            f"can have {', '.join(allowed)}, each once"
        )
    size = _size_after(transforms, where, name, dataset)
    if size != dataset.input_size:
        made = "images of any shape" if size is None else f"{size}×{size}"
        raise ValueError(
            f"{where}: make {made} of {name}, whose networks see "
            f"{dataset.input_size}×{dataset.input_size}; end with crop_to: "
            f"{{size: {dataset.input_size}}}"
        )


def _size_after(
    transforms: tuple[Transform, ...], where: str, name: str, dataset: Dataset
) -> int | None:
    """The side of the square images that the transforms make; None where shapes differ."""
    resident = dataset.target is not None
    size: int | None = (dataset.stored_size or dataset.input_size) if resident else None
    shorter = size
    for transform in transforms:
        match transform:
            case Resize() if resident and (transform.size, transform.squash) != (size, True):
                raise ValueError(
                    f"{where}: resize: {name} is stored at {size}×{size} and not resized; "
                    f"{{size: {size}, squash: true}} says so"
                )
            case Resize():
                shorter = transform.size
                size = transform.size if transform.squash else None
            case CropTo() if shorter is None or transform.size > shorter:
                of = "any shape" if shorter is None else f"{shorter} pixels on the shorter side"
                raise ValueError(
                    f"{where}: crop_to: found {transform.size}, of images of {of}; "
                    "resize them first"
                )
            case CropTo() | RandomResizedCrop():
                size = shorter = transform.size
    return size
