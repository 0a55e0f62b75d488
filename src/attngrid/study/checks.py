"""Checks of a study that need more than one key. Each raises ``ValueError`` with its message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.data.registry import find_dataset, short_name
from attngrid.data.transforms import (
    PER_IMAGE,
    CropTo,
    RandomResizedCrop,
    Resize,
    Transform,
    size_in_memory,
)
from attngrid.models.registry import (
    attention_label,
    find_attention,
    find_backbone,
    require_width,
)
from attngrid.study.labels import backbone_label
from attngrid.study.recipe import Recipe, shipped_recipes
from attngrid.study.tuning import CHOSEN

if TYPE_CHECKING:
    from attngrid.study.schema import Block, Study


def check_options(block: Block) -> None:
    """Check ``classes``, ``pretrained`` and ``width``, and that ``rates`` fit the statistics."""
    classes, rates = block.options.classes, block.options.rates
    known = find_dataset(block.dataset).num_classes
    if classes is not None and classes >= known:
        raise ValueError(
            f"options.classes: found {classes}; {block.dataset} has {known}; take fewer, or omit it"
        )
    for backbone in block.backbones:
        if block.options.pretrained and "pretrained" not in find_backbone(backbone).accepts:
            raise ValueError(
                f"options.pretrained: found true; {backbone} has no pretrained weights; "
                "timm:NAME and torchvision:NAME have"
            )
        for attention in block.attentions:
            try:
                require_width(backbone, attention, block.options.width)
            except ConfigError as error:
                raise ValueError(f"{error}") from None
    if rates is None:
        return
    for name in block.attentions:
        entry = find_attention(name)
        entry = find_attention(entry.matches or name)  # a control has the options of its module
        count = len(entry.options.get("statistics", ("avg", "std")))
        wrong = len(rates) != count or not math.isclose(sum(rates), 1)
        if "rates" in entry.accepts and not entry.external and wrong:
            raise ValueError(
                f"options.rates: found {list(rates)}; {name} needs {count} that sum to 1"
            )


def check_names(study: Study) -> None:
    """Check that recipes, rows, datasets and tables have different names."""
    if shadowed := set(study.recipes) & set(shipped_recipes()):
        raise ValueError(f"recipes.{min(shadowed)}: is a shipped recipe's name; choose another")
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
        raise ValueError("tables: found 'claims', which every study has; choose another name")
    if len(study.descriptions) < len(study.tables):
        raise ValueError(f"tables: found {list(study.tables)}; each needs a file name of its own")


def check_recipes(study: Study) -> None:
    """Check that recipes exist, fit their images, and divide into the micro-batches."""
    gpus, steps = study.compute.gpus, study.compute.gradient_accumulation_steps
    count = gpus * steps
    for number, block in enumerate(study.grid):
        for name in block.recipes:
            where = f"grid.{number}.recipes: "
            try:
                study.recipe(name)
                where += f"{name!r}: "
                recipe = study.recipe_of(block, name)
                for split in ("train", "test"):
                    _check_transforms(recipe, split, block.dataset, block.options.input_size)
            except (ValueError, ConfigError) as error:
                raise ValueError(f"{where}{error}") from None
            size = recipe.batch_size
            if count > 1 and (size % count or size < 2 * count):
                raise ValueError(
                    f"{where}batch_size: found {size}; compute.gpus {gpus} × "
                    f"compute.gradient_accumulation_steps {steps} need a multiple of {count} "
                    "with 2 or more images in each micro-batch"
                )
            if recipe.mixes and study.compute.sync_bn and gpus > 1:
                raise ValueError(
                    f"{where}mixup, cutmix: found compute.sync_bn true with compute.gpus {gpus}; "
                    "each GPU would mix other pairs of images than one GPU; set sync_bn: false"
                )


def check_tuning(study: Study) -> None:
    """Check that the grid has what is tuned, and datasets have the validation images."""
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
                f"{wrong}needs a multiple of {classes}, the number of classes of {block.dataset}"
            )
        smallest = dataset.smallest_class
        if smallest is not None and images // classes >= smallest:
            raise ValueError(
                f"{wrong}can be {(smallest - 1) * classes} at most: {block.dataset} has "
                f"{smallest} training images of a class, and trials need one or more to train on"
            )


def _check_transforms(recipe: Recipe, split: str, name: str, input_size: int | None) -> None:
    """Check that each transform can be applied, and the last gives the network's input size."""
    transforms: Sequence[Transform] = getattr(recipe, f"{split}_transforms")
    dataset = find_dataset(name)
    in_memory = dataset.target is not None
    network = input_size or dataset.input_size
    size = (recipe.train_size if split == "train" else None) or network
    # after each transform, the images' shorter side, 0 if unknown, and whether they are square
    shorter, square = 0, in_memory
    if in_memory:
        stored = dataset.stored_size or dataset.input_size
        shorter = size_in_memory(dataset, transforms, input_size)
        if stored % shorter:
            at = "" if shorter == network else f" to {shorter}×{shorter} for it"
            raise ValueError(
                f"options.input_size: found {network}; images of {name} are averaged from "
                f"{stored}×{stored}{at}, so {'it' if not at else shorter} must divide {stored}"
            )
    _check_kinds(transforms, split, name, in_memory=in_memory)
    for transform in transforms:
        match transform:
            case Resize() if in_memory and (transform.size, transform.squash) != (shorter, True):
                raise ValueError(
                    f"{split}_transforms: resize: {name} is stored at {shorter}×{shorter} and not "
                    f"resized; needs no resize, or {{size: {shorter}, squash: true}}"
                )
            case Resize():
                shorter, square = transform.size, transform.squash
            case CropTo() if transform.size > shorter:
                shape = f"{shorter} pixels on the shorter side" if shorter else "any shape"
                raise ValueError(
                    f"{split}_transforms: crop_to: found {transform.size} for images of {shape}; "
                    "resize them first"
                )
            case CropTo() | RandomResizedCrop():
                shorter, square = transform.size, True
    if (shorter, square) != (size, True):
        shape = f"{shorter}×{shorter}" if square else "any shape"
        need = "train_size is" if size == recipe.train_size else f"networks for {name} need"
        raise ValueError(
            f"{split}_transforms: give images of {shape}; {need} {size}×{size}; "
            f"end with crop_to: {{size: {size}}}"
        )


def _check_kinds(
    transforms: Sequence[Transform], split: str, name: str, *, in_memory: bool
) -> None:
    """Check which transforms there are, and their order."""
    crop = "random_crop" if in_memory else "random_resized_crop"
    allowed = ["resize", "crop_to"]
    if split == "train":
        allowed = ["flip", crop, *allowed, "rotation", "brightness", *PER_IMAGE]
    found = [transform.kind for transform in transforms]
    if wrong := [kind for kind in found if kind not in allowed or found.count(kind) > 1]:
        raise ValueError(
            f"{split}_transforms: found {', '.join(dict.fromkeys(wrong))}; {split} images of "
            f"{name} can have {', '.join(allowed)}, each once"
        )
    early = {crop, "crop_to", "flip"}
    for number, kind in enumerate(found):
        after = set(found[number + 1 :])
        if kind in PER_IMAGE and after & {*early, "resize", "rotation"}:
            raise ValueError(
                f"{split}_transforms: {kind}: must come after resize, crop, flip and rotation"
            )
        if in_memory and kind == "rotation" and after & early:
            raise ValueError(f"{split}_transforms: rotation: must come after crop and flip")
        if in_memory and kind == "brightness" and after & set(PER_IMAGE):
            raise ValueError(
                f"{split}_transforms: brightness: must come last; color_jitter can come earlier"
            )
