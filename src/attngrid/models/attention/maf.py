"""MAF, the attention module of accumulated features, alone and within CBAM and BAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attngrid.models.attention.bam import BAM
from attngrid.models.attention.cbam import SpatialGate
from attngrid.models.attention.mlp import mlp
from attngrid.models.attention.statistics import PER_CHANNEL, check_names, squeeze

AVG_STD = ("avg", "std")


class DeformedBottleneck(nn.Module):
    """Deformed bottleneck recalibration: one MLP k·C → C/r → C for k statistics of each channel."""

    def __init__(self, channels: int, *, reduction: int, statistics: Sequence[str]) -> None:
        super().__init__()
        self.names = check_names(statistics)
        self.mlp = mlp(len(self.names) * channels, channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        logits_NC: Tensor = self.mlp(torch.cat(squeeze(x, self.names, PER_CHANNEL), 1))
        return logits_NC


class MAF(nn.Module):
    """``x ⊙ σ(DBR([p₁;…;p_k]))``, a channel gate."""

    def __init__(
        self, channels: int, *, reduction: int = 16, statistics: Sequence[str] = AVG_STD
    ) -> None:
        super().__init__()
        self.dbr = DeformedBottleneck(channels, reduction=reduction, statistics=statistics)

    def forward(self, x: Tensor) -> Tensor:
        gate_NC: Tensor = self.dbr(x).sigmoid()
        return x * gate_NC[:, :, None, None].to(x.dtype)


class MAFInCBAM(nn.Sequential):
    """MAF_C: MAF, then CBAM's spatial gate over the same statistics."""

    def __init__(
        self, channels: int, *, reduction: int = 16, statistics: Sequence[str] = AVG_STD
    ) -> None:
        maf = MAF(channels, reduction=reduction, statistics=statistics)
        super().__init__(maf, SpatialGate(statistics))


class MAFInBAM(BAM):
    """MAF_B: BAM, with MAF's logits as its channel branch."""

    def __init__(
        self, channels: int, *, reduction: int = 16, statistics: Sequence[str] = AVG_STD
    ) -> None:
        dbr = DeformedBottleneck(channels, reduction=reduction, statistics=statistics)
        super().__init__(channels, reduction=reduction, channel_branch=dbr)
