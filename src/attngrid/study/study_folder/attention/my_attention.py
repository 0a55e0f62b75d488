"""An example of a module: a gate on the standard deviation of each channel."""

import torch
from torch import nn


class MyAttention(nn.Module):
    """``x ⊙ σ(W2 ReLU(W1 std(x)))``.

    Args:
        channels: C of the N×C×H×W input; the output has the same shape.
        reduction: the hidden width is C // reduction. A study's option ``reduction`` replaces it.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        std_NC = x.var((2, 3), correction=0).add(1e-5).sqrt()
        gate_NC: torch.Tensor = self.mlp(std_NC).sigmoid()
        return x * gate_NC[:, :, None, None]
