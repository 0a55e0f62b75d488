"""CSM: channel attention (CAM), then spatial self-attention (SAM), eqs. 1 and 2."""

from __future__ import annotations

from typing import Any

from torch import nn

from attngrid.models.attention.sam import SpatialSelfAttention
from attngrid.models.attention.se import SqueezeExcitation


class ChannelSpatialAttention(nn.Sequential):
    """``sam(cam(x))``; ``spatial_first``: ``cam(sam(x))``, the other order in CSM's Fig. 6.

    ``key_reduction`` and ``residual`` are options of SAM.
    """

    def __init__(
        self, channels: int, *, reduction: int = 16, spatial_first: bool = False, **sam_options: Any
    ) -> None:
        cam = SqueezeExcitation(channels, reduction=reduction)
        sam = SpatialSelfAttention(channels, **sam_options)
        super().__init__(*((sam, cam) if spatial_first else (cam, sam)))
