"""The places of attention modules in a backbone, the same for every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

Site = Literal["block", "expanded", "stages"]
Placement = Literal["default", "every_block", "last_stage", "stage_end"]
PLACEMENTS: tuple[Placement, ...] = ("default", "every_block", "last_stage", "stage_end")
# Makes a module from its number of channels and its stage, counted from 1.
Make = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class Sites:
    """Makes the attention module of each place in a backbone; the identity where there is none.

    Attributes:
        make: makes the module of one place.
        site: the module's own place. ``block``: a block's output, before the residual sum;
            ``expanded``: the expanded channels of an inverted residual, or a block's output in
            networks without these; ``stages``: after stages 1 to 3.
        placement: ``default``: the module's own place, in the blocks that the network lists;
            ``every_block``; ``last_stage``: every block of the last stage; ``stage_end``: once
            after each stage.
    """

    make: Make
    site: Site = "block"
    placement: Placement = "default"

    def block(self, channels: int, stage: int, stages: int, *, listed: bool = True) -> nn.Module:
        """For a block's output; the network itself has attention in its ``listed`` blocks."""
        here = self.site != "expanded" and self._in_block(stage, stages, listed)
        return self._make_if(here, channels, stage)

    def expanded(self, channels: int, stage: int, stages: int, *, listed: bool = True) -> nn.Module:
        """For the expanded channels of an inverted residual."""
        here = self.site == "expanded" and self._in_block(stage, stages, listed)
        return self._make_if(here, channels, stage)

    def any_block(self, channels: int, stage: int, stages: int) -> nn.Module:
        """For the output of a block that has no expanded channels."""
        return self._make_if(self._in_block(stage, stages, True), channels, stage)

    def after_stage(self, channels: int, stage: int, stages: int) -> nn.Module:
        """For the output of a stage."""
        default = self.placement == "default" and self.site == "stages" and stage <= 3
        return self._make_if(default or self.placement == "stage_end", channels, stage)

    def _in_block(self, stage: int, stages: int, listed: bool) -> bool:
        if self.placement == "default":
            return listed and self.site != "stages"
        last = self.placement == "last_stage" and stage == stages
        return last or self.placement == "every_block"

    def _make_if(self, here: bool, channels: int, stage: int) -> nn.Module:
        return self.make(channels, stage) if here else nn.Identity()


def initialise_attention(model: nn.Module) -> None:
    """Call ``initialise`` of the modules that have it, after the backbone's initialisation."""
    for module in model.modules():
        if callable(initialise := getattr(module, "initialise", None)):
            initialise()
