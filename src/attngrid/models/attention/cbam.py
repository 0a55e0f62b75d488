"""CBAM (Woo et al., ECCV 2018): a channel gate, then a spatial gate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attngrid.models.attention.mlp import mlp
from attngrid.models.attention.statistics import PER_CHANNEL, PER_POSITION, check_names, squeeze


class ChannelGate(nn.Module):
    """``x ⊙ σ(MLP(avg) + MLP(max))`` with one shared MLP (eq. 2)."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = mlp(channels, channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        avg_NC, max_NC = squeeze(x, ["avg", "max"], PER_CHANNEL)
        gate_NC: Tensor = (self.mlp(avg_NC) + self.mlp(max_NC)).sigmoid()
        return x * gate_NC[:, :, None, None].to(x.dtype)


class SpatialGate(nn.Module):
    """``x ⊙ σ(BN(conv7×7([max; avg])))`` (eq. 3; the authors' code adds the BN)."""

    def __init__(self, names: Sequence[str] = ("max", "avg")) -> None:
        super().__init__()
        self.names = check_names(names)
        self.conv = nn.Conv2d(len(names), 1, kernel_size=7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def initialise(self) -> None:
        # The authors start the gate at σ(0) = 1/2 everywhere.
        nn.init.zeros_(self.bn.weight)

    def spatial_map(self, x: Tensor) -> Tensor:
        """The gate ``σ(BN(conv7×7(·)))``, N×1×H×W."""
        pooled_NKHW = torch.cat(squeeze(x, self.names, PER_POSITION), 1)
        gate_N1HW: Tensor = self.bn(self.conv(pooled_NKHW)).sigmoid()
        return gate_N1HW

    def forward(self, x: Tensor) -> Tensor:
        return x * self.spatial_map(x).to(x.dtype)


class CBAM(nn.Sequential):
    """Channel gate, then spatial gate."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__(ChannelGate(channels, reduction=reduction), SpatialGate())
