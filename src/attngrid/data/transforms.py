"""The transforms that a recipe may name; ``images`` and ``stream`` apply them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from attngrid.core.types import Fraction, Number, Strict


class RandomCrop(Strict):
    """Zero-pad by ``padding`` pixels, then crop at a random place to the image's own size."""

    kind: Literal["random_crop"]
    padding: PositiveInt


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
    size: PositiveInt
    shrink_on_load: bool = False


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
    RandomCrop | Flip | Rotation | RandomResizedCrop | Resize | CropTo | Brightness,
    Field(discriminator="kind"),
]
