"""Recipes whose transforms do not fit the images are errors."""

from __future__ import annotations

from typing import Any

import pytest

from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.data.transforms import (
    CropTo,
    Flip,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotation,
    Transform,
)
from attngrid.study.recipe import shipped_recipes
from attngrid.study.schema import Study

PAD4 = RandomCrop(kind="random_crop", padding=4)
FLIP = Flip(kind="flip")
TURN = Rotation(kind="rotation", degrees=15)
TO8 = CropTo(kind="crop_to", size=8)
CROP = RandomResizedCrop(kind="random_resized_crop", size=16)
SHORTER = Resize(kind="resize", size=224)
IMAGENET = shipped_recipes()["imagenet_100ep"]


@pytest.mark.parametrize(
    ("dataset", "split", "kinds", "message"),
    [
        ("digits", "train", [CROP], "found random_resized_crop; train images of digits can have"),
        ("digits", "train", [FLIP, FLIP], "found flip; train images of digits can have"),
        ("digits", "train", [TO8], r"give images of 8×8; .* 16×16; end with crop_to: \{size: 16\}"),
        ("digits", "test", [FLIP], "found flip; test images of digits can have resize, crop_to"),
        (
            "digits",
            "train",
            [TO8.model_copy(update={"size": 17})],
            "crop_to: found 17 for images of 16 pixels",
        ),
        ("digits", "train", [TURN, FLIP], "rotation: must come after crop and flip"),
        ("digits", "test", [TURN], "found rotation; test images of digits can have resize"),
        ("digits", "train", [SHORTER], "resize: digits is stored at 16×16 and not resized"),
        ("dogs", "train", [FLIP], "give images of 256×256; networks for dogs need 224×224"),
        ("imagenet", "train", [PAD4], "found random_crop; train images of imagenet can have"),
        ("imagenet", "test", [TO8], "crop_to: found 8 for images of any shape; resize them first"),
        ("imagenet", "test", [SHORTER], "give images of any shape; networks for imagenet"),
    ],
)
def test_transforms_that_do_not_fit_the_images_are_one_error(
    tiny: dict[str, Any], dataset: str, split: str, kinds: list[Transform], message: str
) -> None:
    tiny["grid"][0] |= {"dataset": dataset}
    recipe = tiny["recipes"]["tiny"]
    if dataset == "imagenet":
        for name in ("train", "test"):
            transforms = getattr(IMAGENET, f"{name}_transforms")
            recipe[f"{name}_transforms"] = [t.model_dump() for t in transforms]
    recipe[f"{split}_transforms"] = [t.model_dump() for t in kinds]
    with pytest.raises(
        ConfigError, match=rf"grid\.0\.recipes: 'tiny': {split}_transforms: {message}"
    ):
        validate(Study, tiny, "tiny.yaml")
