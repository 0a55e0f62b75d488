"""BAM (Park et al., BMVC 2018): a channel and a spatial branch, fused before one sigmoid."""

from __future__ import annotations

from torch import Tensor, nn

from attngrid.models.attention.mlp import reduced
from attngrid.models.attention.statistics import PER_CHANNEL, squeeze


class ChannelBranch(nn.Module):
    """Mc: Linear C→C/r, BN, ReLU, Linear C/r→C of each channel's mean."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        (avg_NC,) = squeeze(x, ["avg"], PER_CHANNEL)
        logits_NC: Tensor = self.mlp(avg_NC)
        return logits_NC


class BAM(nn.Module):
    """``x ⊙ (1 + σ(Mc + Ms))`` (eqs. 1 and 2), with the branches of the authors' code.

    Args:
        product: take ``Mc ⊙ Ms`` before the sigmoid, as the authors' code does.
        channel_branch: replaces Mc; maps N×C×H×W to N×C.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        product: bool = False,
        channel_branch: nn.Module | None = None,
    ) -> None:
        super().__init__()
        hidden = reduced(channels, reduction)
        self.product = product
        self.channel = channel_branch or ChannelBranch(channels, hidden)
        layers: list[nn.Module] = [nn.Conv2d(channels, hidden, kernel_size=1)]
        for _ in range(2):
            layers += [nn.BatchNorm2d(hidden), nn.ReLU()]
            layers += [nn.Conv2d(hidden, hidden, kernel_size=3, padding=4, dilation=4)]
        layers += [nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, 1, kernel_size=1)]
        self.spatial = nn.Sequential(*layers)

    def spatial_map(self, x: Tensor) -> Tensor:
        """The spatial branch Ms, before the sigmoid, N×1×H×W."""
        logits_N1HW: Tensor = self.spatial(x)
        return logits_N1HW

    def forward(self, x: Tensor) -> Tensor:
        mc_NC11: Tensor = self.channel(x)[:, :, None, None]
        ms_N1HW = self.spatial_map(x)
        fused = mc_NC11 * ms_N1HW if self.product else mc_NC11 + ms_N1HW
        return x * (1 + fused.sigmoid()).to(x.dtype)
