"""CBAM (Woo et al., ECCV 2018): a channel gate, then a spatial gate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attngrid.models.attention.bottleneck import bottleneck
from attngrid.models.attention.gates import multiplied
from attngrid.models.attention.statistics import CHANNEL, POSITION, known, normalised_conv, squeeze
from attngrid.models.convolution import Conv2d


class ChannelGate(nn.Module):
    """``x ⊙ σ(MLP(avg) + MLP(max))`` with one shared MLP (CBAM, eq. 2)."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = bottleneck(channels, channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        x, (mean_NC, max_NC) = squeeze(x, ("avg", "max"), CHANNEL)
        of_mean_NC, of_max_NC = self.mlp(torch.cat([mean_NC, max_NC])).chunk(2)
        return multiplied(x, (of_mean_NC + of_max_NC).sigmoid()[:, :, None, None])


class SpatialGate(nn.Module):
    """``x ⊙ σ(BN(conv7×7([max; avg] over C)))`` (CBAM, eq. 3; the BN is the authors' code's).

    Args:
        statistics: names of ``attention.statistics``, in the order of the concatenation.
    """

    def __init__(self, statistics: Sequence[str] = ("max", "avg")) -> None:
        super().__init__()
        self.statistics = known(statistics)
        self.conv = Conv2d(len(self.statistics), 1, kernel_size=7, padding=3)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def initialise(self) -> None:
        # The authors start the gate at σ(0) = 1/2 everywhere.
        nn.init.zeros_(self.bn.weight)

    def spatial_map(self, x: Tensor) -> Tensor:
        """N×C×H×W to the gate ``σ(BN(conv7×7(·)))`` of CBAM's eq. 3, N×1×H×W."""
        return self._gate(squeeze(x, self.statistics, POSITION)[1])

    def _gate(self, pooled: Sequence[Tensor]) -> Tensor:
        return normalised_conv(self.conv, self.bn, pooled).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x, pooled = squeeze(x, self.statistics, POSITION)
        return multiplied(x, self._gate(pooled))


class CBAM(nn.Sequential):
    """Channel gate, then spatial gate.

    Args:
        channels: C of the N×C×H×W input.
        reduction: r; the hidden width is max(1, C // r).
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__(ChannelGate(channels, reduction=reduction), SpatialGate())
