"""Where attention sits in a backbone: one answer for every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

# Where a module belongs: on a block's output before the residual sum, on the expanded channels
# of an inverted residual (a network without them takes it as "block"), or between stages.
Site = Literal["block", "expanded", "stages"]
Placement = Literal["default", "every_block", "last_stage", "stage_end"]
PLACEMENTS: tuple[Placement, ...] = ("default", "every_block", "last_stage", "stage_end")
# The module for a number of channels in a stage (from 1).
Make = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class Sites:
    """Makes the attention module of each site, the identity where there is none.

    Attributes:
        make: makes each site's module.
        site: where the module belongs.
        placement: ``default`` is that site: every block that the network lists, or after
            stages 1 to 3; ``every_block`` and ``last_stage`` are all blocks there are, or the
            last stage's; ``stage_end`` is once after each stage.
    """

    make: Make
    site: Site = "block"
    placement: Placement = "default"

    def block(self, channels: int, stage: int, stages: int, *, listed: bool = True) -> nn.Module:
        """On a block's output; ``listed`` blocks are those the network itself gives attention."""
        return self._in_block(channels, stage, stages, listed, self.site != "expanded")

    def expanded(self, channels: int, stage: int, stages: int, *, listed: bool = True) -> nn.Module:
        """On the expanded channels of an inverted residual."""
        return self._in_block(channels, stage, stages, listed, self.site == "expanded")

    def any_block(self, channels: int, stage: int, stages: int) -> nn.Module:
        """On the output of a block that expands nothing."""
        return self._in_block(channels, stage, stages, True, True)

    def after_stage(self, channels: int, stage: int, stages: int) -> nn.Module:
        """Between this stage and the next."""
        between = self.placement == "default" and self.site == "stages" and stage <= 3
        if between or self.placement == "stage_end":
            return self.make(channels, stage)
        return nn.Identity()

    def _in_block(
        self, channels: int, stage: int, stages: int, listed: bool, here: bool
    ) -> nn.Module:
        wanted = {
            "default": listed and self.site != "stages",
            "every_block": True,
            "last_stage": stage == stages,
            "stage_end": False,
        }[self.placement]
        return self.make(channels, stage) if here and wanted else nn.Identity()


def initialise_attention(model: nn.Module) -> None:
    """Let the modules that do not start as their backbone does start as their authors' do."""
    for module in model.modules():
        if callable(initialise := getattr(module, "initialise", None)):
            initialise()
