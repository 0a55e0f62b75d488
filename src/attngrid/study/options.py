"""Types of configuration values, and the options of a cell's model and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from attngrid.core.errors import AttngridError
from attngrid.core.types import Count, CountFrom2, Number, Pixels, Strict
from attngrid.core.validation import RECIPE_NAME
from attngrid.data.registry import find_dataset, full_name
from attngrid.models.registry import ATTENTIONS, BACKBONES, find_attention, find_backbone

Item = TypeVar("Item")


def _known(find: Callable[[str], object]) -> AfterValidator:
    """Check that ``find`` knows a name; pydantic reports its error with the key."""

    def check(name: str) -> str:
        try:
            find(name)
        except AttngridError as error:
            raise ValueError(str(error)) from None
        return name

    return AfterValidator(check)


Dataset = Annotated[str, _known(find_dataset), AfterValidator(full_name)]
Backbone = Annotated[str, _known(find_backbone)]
Attention = Annotated[str, _known(find_attention)]
RecipeName = Annotated[str, Field(pattern=RECIPE_NAME, max_length=40)]
# A YAML list; in strict mode pydantic would accept tuples only.
Listed = Annotated[tuple[Item, ...], Field(strict=False, min_length=1)]
Share = Annotated[Number, Field(ge=0, le=1)]
Precision = Literal["float32", "bfloat16"]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
# JSON has only text as keys.
_Tier = Annotated[Count, BeforeValidator(lambda key: int(key) if f"{key}".isdigit() else key)]
_ByTier = Annotated[dict[_Tier, Listed[Seed]], Field(min_length=1)]
# A list, or a list for each tier; the discriminator limits an error to the kind that was meant.
Seeds = Annotated[
    Annotated[Listed[Seed], Tag("list")] | Annotated[_ByTier, Tag("tiers")],
    Discriminator(lambda seeds: "tiers" if isinstance(seeds, dict) else "list"),
]


# The defaults of this package's models. Records and studies of earlier versions spell them out.
SHIPPED = {
    name: default
    for entry in (*ATTENTIONS.values(), *BACKBONES.values())
    for name, default in entry.accepts.items()
    if default is not None
} | {"pretrained": False}


class Options(Strict):
    """Model and data options of a cell. Each model has its own default for an option that is None.

    A cell's digest omits options at their defaults.
    """

    width: Annotated[Number, Field(ge=0.001, le=1000)] = Field(
        1.0, description="factor on the widths of the stages"
    )
    reduction: Count | None = Field(
        None,
        description="reduction ratio r of the channel gates; default: the module's own, 16 in all "
        "of this package",
    )
    placement: Literal["default", "every_block", "last_stage", "stage_end"] = Field(
        "default", description="where the attention modules are"
    )
    statistics: tuple[Literal["avg", "max", "std"], ...] | None = Field(
        None, strict=False, description="statistics of maf, maf_c and maf_b: avg, max, std"
    )
    rates: tuple[Share, ...] | None = Field(
        None, strict=False, description="each statistic's share of the channels in srap"
    )
    residual: bool | None = Field(
        None, description="MobileNetV1 with skips; false: the 2017 original"
    )
    expand_first: bool | None = Field(
        None, description="MobileNetV2's and V3's first block expands; false: the originals"
    )
    head_attention: bool | None = Field(
        None, description="MobileNetV3-S with attention on its final convolution"
    )
    input_bn: bool | None = Field(None, description="MobileNets with a BatchNorm on the image")
    conv_head: bool | None = Field(
        None, description="MobileNets with a 1×1 convolution as classifier"
    )
    pretrained: bool | None = Field(
        None, description="weights of timm's or torchvision's backbone that are on this machine"
    )
    classes: CountFrom2 | None = Field(
        None, description="number of classes to use, from the first on"
    )
    input_size: Pixels | None = Field(
        None, description="height and width of the network's images; default: the dataset's"
    )
    epochs: Count | None = Field(None, description="in place of the recipe's epochs")
    batch_size: CountFrom2 | None = Field(None, description="in place of the recipe's batch size")

    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults, sorted by name."""
        return dict(sorted(self.model_dump(exclude_defaults=True).items()))

    def without(self, defaults: Sequence[Mapping[str, Any]]) -> Options:
        """The options without those that equal every model's own default.

        Args:
            defaults: for each model, its options and their defaults.
        """
        same = {
            name
            for name, value in self.changed().items()
            if value == SHIPPED.get(name) and all(own.get(name, value) == value for own in defaults)
        }
        return self.model_copy(update=dict.fromkeys(same))
