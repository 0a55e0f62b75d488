"""The transforms that a recipe may name; ``images`` and ``stream`` apply them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from attngrid.core.types import Fraction, Number, Pixels, Strict
from attngrid.data.registry import Dataset


class RandomCrop(Strict):
    """Zero-pad by ``padding`` pixels, then crop at a random place to the image's own size."""

    kind: Literal["random_crop"]
    padding: Pixels


class Flip(Strict):
    """Mirror left to right with probability one half."""

    kind: Literal["flip"]


class Rotation(Strict):
    """Rotate about the centre by an angle drawn from [-degrees, degrees]; the corners are black."""

    kind: Literal["rotation"]
    degrees: Annotated[Number, Field(gt=0, le=180)]


class RandomResizedCrop(Strict):
    """Crop of random area and aspect ratio, resized to ``size`` (torchvision's defaults).

    ``shrink_on_load`` decodes a large JPEG at 1/2, 1/4 or 1/8 of its size, if the crop is then
    still at least ``size``. It saves time; single pixels differ by 40 grey levels and more.
    """

    kind: Literal["random_resized_crop"]
    size: Pixels
    shrink_on_load: bool = False


class Resize(Strict):
    """Resize the shorter side to ``size``; with ``squash``, both sides."""

    kind: Literal["resize"]
    size: Pixels
    squash: bool = False


class CropTo(Strict):
    """Crop to ``size`` at a random place (training) or at the centre (test)."""

    kind: Literal["crop_to"]
    size: Pixels


class Brightness(Strict):
    """Multiply by a factor drawn from [1 - amount, 1 + amount]."""

    kind: Literal["brightness"]
    amount: Fraction


class RandAugment(Strict):
    """``num_ops`` random operations of one ``magnitude``, by torchvision's RandAugment."""

    kind: Literal["rand_augment"]
    num_ops: Annotated[int, Field(ge=1, le=20)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class TimmRandAugment(Strict):
    """timm's RandAugment, such as ``rand-m6-mstd0.5-inc1``: each part is a key with its number."""

    kind: Literal["timm_rand_augment"]
    config: Annotated[str, Field(pattern=r"^rand(-(m|n|mmax)\d+|-(p|mstd)\d+(\.\d+)?|-inc[01])+$")]


class TrivialAugment(Strict):
    """One random operation of random magnitude, by torchvision's TrivialAugmentWide."""

    kind: Literal["trivial_augment"]


class ColorJitter(Strict):
    """Multiply brightness, contrast and saturation by factors drawn from [1 - x, 1 + x].

    The hue is shifted by a fraction of the colour circle drawn from [-hue, hue].
    """

    kind: Literal["color_jitter"]
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[Number, Field(ge=0, le=0.5)] = 0.0


class RandomErasing(Strict):
    """With this ``probability``, fill a rectangle of 2 to 33 % of the image with the mean colour.

    The rectangle is drawn as by torchvision's RandomErasing.
    """

    kind: Literal["random_erasing"]
    probability: Annotated[Number, Field(gt=0, le=1)] = 0.5


# The transforms that ``augmentation`` applies to single decoded images.
PerImage = RandAugment | TimmRandAugment | TrivialAugment | ColorJitter | RandomErasing
PER_IMAGE = (
    "rand_augment",
    "timm_rand_augment",
    "trivial_augment",
    "color_jitter",
    "random_erasing",
)
Transform = Annotated[
    RandomCrop | Flip | Rotation | RandomResizedCrop | Resize | CropTo | Brightness | PerImage,
    Field(discriminator="kind"),
]


def final_size(transforms: Sequence[Transform]) -> int | None:
    """The ``size`` of the last transform that has one: that of the network's images."""
    sized = [t.size for t in transforms if isinstance(t, Resize | CropTo | RandomResizedCrop)]
    return sized[-1] if sized else None


def size_in_memory(
    dataset: Dataset, transforms: Sequence[Transform], input_size: int | None
) -> int:
    """The size to which a dataset's images in memory are averaged before their transforms.

    Args:
        dataset: its images are read into memory.
        transforms: of the split; for images that are stored larger than the network's input, their
            ``resize`` says the size.
        input_size: the cell's option.
    """
    if dataset.stored_size is None:
        return input_size or dataset.input_size
    return next((t.size for t in transforms if isinstance(t, Resize)), dataset.stored_size)
