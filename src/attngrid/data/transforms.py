"""The transforms that a recipe may name; ``images`` and ``stream`` apply them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from attngrid.core.types import Fraction, Strict


class RandomCrop(Strict):
    """Zero-pad by ``padding`` pixels, then crop at a random place to the image's own size."""

    kind: Literal["random_crop"]
    padding: PositiveInt


class Flip(Strict):
    """Mirror left to right with probability one half."""

    kind: Literal["flip"]


class RandomResizedCrop(Strict):
    """Crop of random area and aspect ratio, resized to ``size`` (torchvision's defaults)."""

    kind: Literal["random_resized_crop"]
    size: PositiveInt


class Resize(Strict):
    """Resize the shorter side to ``size``; with ``squash``, both sides."""

    kind: Literal["resize"]
    size: PositiveInt
    squash: bool = False


class CropTo(Strict):
    """Crop to ``size`` at a random place (training) or at the centre (test)."""

    kind: Literal["crop_to"]
    size: PositiveInt


class Brightness(Strict):
    """Multiply by a factor drawn from [1 - amount, 1 + amount]."""

    kind: Literal["brightness"]
    amount: Fraction


Transform = Annotated[
    RandomCrop | Flip | RandomResizedCrop | Resize | CropTo | Brightness,
    Field(discriminator="kind"),
]
