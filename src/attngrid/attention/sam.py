"""CSM's spatial attention: full self-attention over the positions of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from attngrid.errors import ConfigError


class SpatialSelfAttention(nn.Module):
    """``out_j = Σᵢ s_ij Dᵢ`` with ``s_ij = exp(Bᵢ·Cⱼ) / Σᵢ exp(Bᵢ·Cⱼ)`` (CSM, eqs. 2 and 5).

    B, C and D are 1×1 convolutions of x with bias. In attention terms C is the query, B the
    key, D the value and the scale 1: the paper divides by no √d. The N×N map of N = H·W
    positions is left to PyTorch's fused attention, which does not hold it in memory.

    Args:
        channels: C of the N×C×H×W input.
        key_reduction: B and C have max(1, channels // key_reduction) channels. The paper's
            text says 1; DANet, which it resembles, has 8.
        residual: return ``x + γ·out`` with γ learned from 0, as DANet does; the paper's text
            replaces x by ``out``.
    """

    def __init__(self, channels: int, *, key_reduction: int = 1, residual: bool = False) -> None:
        super().__init__()
        if key_reduction < 1:
            raise ConfigError(f"key_reduction must be at least 1, found {key_reduction}")
        width = max(1, channels // key_reduction)
        self.query = nn.Conv2d(channels, width, kernel_size=1)
        self.key = nn.Conv2d(channels, width, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1)) if residual else None

    def initialise(self) -> None:
        # The paper is silent. PyTorch's default, which DANet keeps, because the products have no
        # 1/√d: with the backbone's Kaiming-normal weights the softmax is one-hot from the start,
        # and the first gradient of a ResNet-18 in the thousands of times larger.
        for conv in (self.query, self.key, self.value):
            conv.reset_parameters()
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        # one head of N = H·W tokens: the fused kernels want four dimensions
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2).unsqueeze(1)
            for conv in (self.query, self.key, self.value)
        )
        out_N1LC = scaled_dot_product_attention(query, key, value, scale=1.0)
        out = out_N1LC.squeeze(1).transpose(1, 2).reshape(x.shape)
        return out if self.gamma is None else x + self.gamma * out

    @torch.no_grad()
    def spatial_map(self, x: Tensor) -> Tensor:
        """N×C×H×W to the attention each position receives, N×1×H×W: the mean over j of s_ij.

        The queries j come some at a time, so that the N×N map of H·W positions is never held.
        Over the positions i the result sums to 1.
        """
        query_NCL, key_NCL = self.query(x).flatten(2), self.key(x).flatten(2)
        received_NL = torch.zeros_like(key_NCL[:, 0])
        for some_NCQ in query_NCL.split(256, dim=2):
            received_NL += (some_NCQ.transpose(1, 2) @ key_NCL).softmax(2).sum(1)
        return (received_NL / received_NL.shape[1]).reshape(len(x), 1, *x.shape[2:])
