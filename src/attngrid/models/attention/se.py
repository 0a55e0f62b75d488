"""Squeeze-and-excitation (Hu et al., CVPR 2018), which CSM calls CAM (its eqs. 3 and 4)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import hardsigmoid

from attngrid.models.attention.mlp import make_divisible, mlp
from attngrid.models.attention.statistics import PER_CHANNEL, squeeze


class SqueezeExcitation(nn.Module):
    """``x ⊙ σ(W2 ReLU(W1 avg(x)))``; both layers have a bias, as in CBAM's Table 4."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = mlp(channels, channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        (avg_NC,) = squeeze(x, ["avg"], PER_CHANNEL)
        gate_NC: Tensor = self.mlp(avg_NC).sigmoid()
        return x * gate_NC[:, :, None, None].to(x.dtype)


class SqueezeExcitationV3(nn.Module):
    """MobileNetV3's SE (Howard et al., ICCV 2019): hidden width C/4, hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = make_divisible(channels / 4)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        (avg_NC,) = squeeze(x, ["avg"], PER_CHANNEL)
        gate_NC = hardsigmoid(self.mlp(avg_NC))
        return x * gate_NC[:, :, None, None].to(x.dtype)
