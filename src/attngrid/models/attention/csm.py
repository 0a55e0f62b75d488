"""CSM: channel attention (CAM), then spatial self-attention (SAM), eqs. 1 and 2."""

from __future__ import annotations

from torch import nn

from attngrid.models.attention.sam import SpatialSelfAttention
from attngrid.models.attention.se import SqueezeExcitation


class ChannelSpatialAttention(nn.Sequential):
    """``sam(cam(x))``.

    Args:
        channels: C of the N×C×H×W input.
        reduction: of CAM.
        key_reduction, residual: of SAM.
        spatial_first: ``cam(sam(x))``, the other order in CSM's Fig. 6.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        key_reduction: int = 1,
        residual: bool = False,
        spatial_first: bool = False,
    ) -> None:
        cam = SqueezeExcitation(channels, reduction=reduction)
        sam = SpatialSelfAttention(channels, key_reduction=key_reduction, residual=residual)
        super().__init__(*((sam, cam) if spatial_first else (cam, sam)))
