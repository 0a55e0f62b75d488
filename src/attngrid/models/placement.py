"""Where attention modules are in a backbone; the rules are the same for every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

Site = Literal["block", "expanded", "stages"]
Placement = Literal["default", "every_block", "last_stage", "stage_end"]
PLACEMENTS: tuple[Placement, ...] = ("default", "every_block", "last_stage", "stage_end")
# Builds a module; arguments: its number of channels, and its stage, counted from 1.
Make = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class Sites:
    """Builds the attention module, or the identity, for each place in a backbone.

    Attributes:
        make: builds the module of one place.
        site: the module's default place. ``block``: a block's output, before the residual sum;
            ``expanded``: the expanded channels of an inverted residual, or a block's output in
            networks without these; ``stages``: after stages 1 to 3.
        placement: ``default``: at ``site``, only in ``listed`` blocks; ``every_block``;
            ``last_stage``: every block of the last stage; ``stage_end``: after each stage.
    """

    make: Make
    site: Site = "block"
    placement: Placement = "default"

    @property
    def calls(self) -> str:
        """The methods that build a module at ``site`` with ``placement``, in words."""
        if self.placement == "stage_end":
            return "sites.after_stage"
        if self.placement == "default" and self.site == "stages":
            return "sites.after_stage for a stage up to 3"
        kind = "expanded" if self.site == "expanded" else "block"
        where = " in the last stage" if self.placement == "last_stage" else ""
        return f"sites.any_block or sites.{kind}{where}"

    def any_block(
        self, channels: int, stage: int, stages: int, *, listed: bool = True
    ) -> nn.Module:
        """The module of a block's output, by default only if the block is ``listed``."""
        if self.placement == "default":
            placed = listed and self.site != "stages"
        else:
            in_last = self.placement == "last_stage" and stage == stages
            placed = in_last or self.placement == "every_block"
        return self.make(channels, stage) if placed else nn.Identity()

    def block(self, channels: int, stage: int, stages: int, *, listed: bool = True) -> nn.Module:
        """The module of an inverted residual's output."""
        if self.site == "expanded":
            return nn.Identity()
        return self.any_block(channels, stage, stages, listed=listed)

    def expanded(self, channels: int, stage: int, stages: int, *, listed: bool = True) -> nn.Module:
        """The module of an inverted residual's expanded channels."""
        if self.site != "expanded":
            return nn.Identity()
        return self.any_block(channels, stage, stages, listed=listed)

    def head(self, channels: int, stages: int) -> nn.Module:
        """The module of the convolution after the last stage, by default only."""
        placed = self.placement == "default" and self.site != "stages"
        return self.make(channels, stages) if placed else nn.Identity()

    def after_stage(self, channels: int, stage: int, stages: int) -> nn.Module:
        """The module of a stage's output."""
        default = self.placement == "default" and self.site == "stages" and stage <= 3
        placed = default or self.placement == "stage_end"
        return self.make(channels, stage) if placed else nn.Identity()
