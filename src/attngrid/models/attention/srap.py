"""SRAP, selected residual attentive patterns (earlier named MRAP)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attngrid.core.errors import ConfigError
from attngrid.models.attention.mlp import mlp
from attngrid.models.attention.statistics import PER_CHANNEL, PER_POSITION, check_names, squeeze


class SRAP(nn.Module):
    """``x ⊙ (1 + σ(w_c ⊙ w_s))`` from statistics p₁…p_k, per channel and per position.

    ``w_c = ReLU(MLP(selected) + σ(p₁ ⊙ … ⊙ p_k))`` over channels; ``selected`` has the nᵢ
    largest values of each pᵢ: first of each, second of each, …, up to the shortest list's length,
    then the rest of each list. ``w_s = BN(conv7×7([p₁;…;p_k])) + σ(p₁ ⊙ … ⊙ p_k)`` over positions.

    Args:
        statistics: names of ``attention.statistics``, two or three.
        rates: nᵢ = int(rateᵢ · C), the last nᵢ is the remainder; default: equal rates.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        statistics: Sequence[str] = ("avg", "std"),
        rates: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.names = check_names(statistics)
        count = len(self.names)
        rates = [1 / count] * count if rates is None else list(rates)
        if len(rates) != count or min(rates) < 0 or not math.isclose(sum(rates), 1):
            raise ConfigError(f"rates must be {count} shares that sum to 1, found {rates}")
        sizes = [int(rate * channels) for rate in rates[:-1]]
        self.sizes = [*sizes, channels - sum(sizes)]
        self.mlp = mlp(channels, channels, reduction)
        self.conv = nn.Conv2d(count, 1, kernel_size=7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def initialise(self) -> None:
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def select(self, p_NC: Sequence[Tensor]) -> Tensor:
        """The largest values of each statistic, interleaved, N×C."""
        lists = [p.topk(size, 1).values for p, size in zip(p_NC, self.sizes, strict=True)]
        shortest = min(self.sizes)
        interleaved = torch.stack([values[:, :shortest] for values in lists], 2).flatten(1)
        return torch.cat([interleaved, *(values[:, shortest:] for values in lists)], 1)

    def spatial_map(self, x: Tensor) -> Tensor:
        """w_s, N×1×H×W."""
        p_N1HW = squeeze(x, self.names, PER_POSITION)
        logits_N1HW: Tensor = self.bn(self.conv(torch.cat(p_N1HW, 1)))
        return logits_N1HW + math.prod(p_N1HW[1:], start=p_N1HW[0]).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        p_NC = squeeze(x, self.names, PER_CHANNEL)
        residual_NC = math.prod(p_NC[1:], start=p_NC[0]).sigmoid()
        w_c: Tensor = (self.mlp(self.select(p_NC)) + residual_NC).relu()
        gate = (w_c[:, :, None, None] * self.spatial_map(x)).sigmoid()
        return x * (1 + gate).to(x.dtype)
