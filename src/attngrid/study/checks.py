"""Checks of a study that need more than one key. Each raises ``ValueError`` with its message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from attngrid.core.errors import UnknownNameError
from attngrid.data.registry import find_dataset, short_name
from attngrid.data.transforms import CropTo, RandomResizedCrop, Resize, Transform
from attngrid.models.registry import attention_label, find_attention
from attngrid.study.labels import backbone_label
from attngrid.study.recipe import shipped_recipes
from attngrid.study.tuning import CHOSEN

if TYPE_CHECKING:
    from attngrid.study.schema import Block, Study


def check_options(block: Block) -> None:
    """``classes`` is less than the dataset has; ``rates`` are as many as statistics, sum 1."""
    classes, rates = block.options.classes, block.options.rates
    known = find_dataset(block.dataset).num_classes
    if classes is not None and classes >= known:
        raise ValueError(
            f"options.classes: found {classes}; {block.dataset} has {known}, leave it out for all"
        )
    if rates is None:
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
    for label, names in (
        (attention_label, [name for block in study.grid for name in block.attentions]),
        (backbone_label, [name for block in study.grid for name in block.backbones]),
        (short_name, [block.dataset for block in study.grid]),
    ):
        labels: dict[str, str] = {}
        for name in names:
            if (other := labels.setdefault(label(name), name)) != name:
                raise ValueError(
                    f"grid: {other!r} and {name!r} would both be {label(name)!r} in the "
                    "tables; rename a class or a folder"
                )
    if "claims" in study.descriptions:
        raise ValueError("tables: found 'claims', which every study has; take another name")
    if len(study.descriptions) < len(study.tables):
        raise ValueError(f"tables: found {list(study.tables)}; each needs a file name of its own")


def check_recipes(study: Study) -> None:
    """Every recipe exists and fits its images; its batches divide into the micro-batches."""
    gpus, steps = study.compute.gpus, study.compute.gradient_accumulation_steps
    parts = gpus * steps
    for number, block in enumerate(study.grid):
        for name in block.recipes:
            where = f"grid.{number}.recipes: "
            try:
                recipe = study.recipe(name)
                where += f"{name!r}: "
                for split in ("train", "test"):
                    transforms = getattr(recipe, f"{split}_transforms")
                    _check_transforms(transforms, split, block.dataset, block.options.input_size)
            except ValueError as error:
                raise ValueError(f"{where}{error}") from None
            size = recipe.batch_size
            if parts > 1 and (size % parts or size < 2 * parts):
                raise ValueError(
                    f"{where}batch_size: found {size}; compute.gpus {gpus} × "
                    f"compute.gradient_accumulation_steps {steps} need a multiple of {parts}, "
                    "2 images a part or more"
                )


def check_tuning(study: Study) -> None:
    """What is tuned is in the grid, and every dataset has the validation images."""
    if study.tuning is None:
        return
    for key in CHOSEN:
        in_grid = dict.fromkeys(name for block in study.grid for name in getattr(block, key))
        for name in getattr(study.tuning, key) or ():
            if name not in in_grid:
                raise ValueError(f"tuning.{key}: {UnknownNameError(key[:-1], name, in_grid)}")
    images = study.tuning.validation_images
    wrong = f"tuning.validation_images: found {images}; "
    for block in study.grid:
        models = product(block.recipes, block.backbones, block.attentions)
        if not any(study.tuning.covers(*model) for model in models):
            continue
        dataset = find_dataset(block.dataset)
        classes = block.options.classes or dataset.num_classes
        if images % classes:
            raise ValueError(
                f"{wrong}needs a multiple of {classes}, as many images of each class of "
                f"{block.dataset}"
            )
        smallest = dataset.smallest_class
        if smallest is not None and images // classes >= smallest:
            raise ValueError(
                f"{wrong}can be {(smallest - 1) * classes} at most: {block.dataset} has "
                f"{smallest} training images of a class, and trials need some of them"
            )


def _check_transforms(
    transforms: Sequence[Transform], split: str, name: str, input_size: int | None
) -> None:
    """Each transform can be applied, and the last one makes the network's input size."""
    dataset = find_dataset(name)
    resident = dataset.target is not None
    size = input_size or dataset.input_size
    averaged = resident and dataset.stored_size is None  # to the input size, before transforms
    if averaged and dataset.input_size % size:
        raise ValueError(
            f"options.input_size: found {size}; images of {name} are averaged from "
            f"{dataset.input_size}×{dataset.input_size}, so it must divide {dataset.input_size}"
        )
    crop = "random_crop" if resident else "random_resized_crop"
    allowed = ["resize", "crop_to"]
    if split == "train":
        allowed = ["flip", crop, *allowed, "brightness"]
    found = [transform.kind for transform in transforms]
    if wrong := [kind for kind in found if kind not in allowed or found.count(kind) > 1]:
        raise ValueError(
            f"{split}_transforms: found {', '.join(dict.fromkeys(wrong))}; {split} images of "
            f"{name} can have {', '.join(allowed)}, each once"
        )
    # after each transform, the images' shorter side, 0 if unknown, and whether they are square
    shorter = (dataset.stored_size or size) if resident else 0
    square = resident
    for transform in transforms:
        match transform:
            case Resize() if resident and (transform.size, transform.squash) != (shorter, True):
                raise ValueError(
                    f"{split}_transforms: resize: {name} is stored at {shorter}×{shorter} and not "
                    f"resized; {{size: {shorter}, squash: true}} says so"
                )
            case Resize():
                shorter, square = transform.size, transform.squash
            case CropTo() if transform.size > shorter:
                of = f"{shorter} pixels on the shorter side" if shorter else "any shape"
                raise ValueError(
                    f"{split}_transforms: crop_to: found {transform.size}, of images of {of}; "
                    "resize them first"
                )
            case CropTo() | RandomResizedCrop():
                shorter, square = transform.size, True
    if (shorter, square) != (size, True):
        made = f"{shorter}×{shorter}" if square else "images of any shape"
        raise ValueError(
            f"{split}_transforms: make {made} of {name}, whose networks see {size}×{size}; "
            f"end with crop_to: {{size: {size}}}"
        )
