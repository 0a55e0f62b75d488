"""MAF, the attention module of accumulated features, and its place in CBAM and in BAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attngrid.models.attention.bam import BAM
from attngrid.models.attention.bottleneck import bottleneck
from attngrid.models.attention.cbam import SpatialGate
from attngrid.models.attention.gates import multiplied
from attngrid.models.attention.statistics import CHANNEL, known, squeeze


class DeformedBottleneck(nn.Module):
    """One perceptron for all squeezes: k·C → C/r → C, from k statistics of each channel.

    Args:
        channels: C of the N×C×H×W input.
        reduction: r; the hidden width is max(1, C // r).
        statistics: names of ``attention.statistics``.
    """

    def __init__(self, channels: int, *, reduction: int, statistics: Sequence[str]) -> None:
        super().__init__()
        self.statistics = known(statistics)
        self.mlp = bottleneck(len(self.statistics) * channels, channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W to logits N×C."""
        return self.recalibrated(x)[1]

    def recalibrated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map to go on with, as ``squeeze`` returns it, and the logits N×C."""
        x, squeezes = squeeze(x, self.statistics, CHANNEL)
        return x, self.mlp(torch.cat(squeezes, 1))


class MAF(nn.Module):
    """``x ⊙ σ(DBR(statistics of x))``, a channel gate; the arguments are the bottleneck's."""

    def __init__(
        self, channels: int, *, reduction: int = 16, statistics: Sequence[str] = ("avg", "std")
    ) -> None:
        super().__init__()
        self.dbr = DeformedBottleneck(channels, reduction=reduction, statistics=statistics)

    def forward(self, x: Tensor) -> Tensor:
        x, logits_NC = self.dbr.recalibrated(x)
        return multiplied(x, logits_NC.sigmoid()[:, :, None, None])


class MAFInCBAM(nn.Sequential):
    """MAF_C: MAF for CBAM's channel gate, then CBAM's spatial gate over the same statistics."""

    def __init__(
        self, channels: int, *, reduction: int = 16, statistics: Sequence[str] = ("avg", "std")
    ) -> None:
        super().__init__(
            MAF(channels, reduction=reduction, statistics=statistics), SpatialGate(statistics)
        )


class MAFInBAM(BAM):
    """MAF_B: BAM with MAF's logits for its channel branch."""

    def __init__(
        self, channels: int, *, reduction: int = 16, statistics: Sequence[str] = ("avg", "std")
    ) -> None:
        dbr = DeformedBottleneck(channels, reduction=reduction, statistics=statistics)
        super().__init__(channels, reduction=reduction, channel_branch=dbr)
