"""Squeeze-and-excitation (Hu et al., CVPR 2018), which CSM calls CAM (its eqs. 3 and 4)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import hardsigmoid

from attngrid.models.attention.bottleneck import Perceptron, bottleneck, make_divisible
from attngrid.models.attention.gates import multiplied
from attngrid.models.attention.statistics import CHANNEL, squeeze


class SqueezeExcitation(nn.Module):
    """``x ⊙ σ(W2 ReLU(W1 avg(x)))``, both layers with bias.

    CBAM's Table 4 comes out to the last printed digit only with the biases counted.

    Args:
        channels: C of the N×C×H×W input.
        reduction: r; the hidden width is max(1, C // r).
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.mlp = bottleneck(channels, channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        x, (mean_NC,) = squeeze(x, ("avg",), CHANNEL)
        gate_NC: Tensor = self.mlp(mean_NC).sigmoid()
        return multiplied(x, gate_NC[:, :, None, None])


class SqueezeExcitationV3(nn.Module):
    """MobileNetV3's own SE (Howard et al., ICCV 2019): hidden width C/4, hard sigmoid.

    Args:
        channels: C of the N×C×H×W input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = make_divisible(channels / 4)
        self.mlp = Perceptron(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        x, (mean_NC,) = squeeze(x, ("avg",), CHANNEL)
        gate_NC = hardsigmoid(self.mlp(mean_NC))
        return multiplied(x, gate_NC[:, :, None, None])
