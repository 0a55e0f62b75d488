"""SAM, CSM's spatial attention: self-attention over all positions of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from attngrid.models.attention.mlp import reduced


def attend(q_BNd: Tensor, k_BNd: Tensor, v_BNC: Tensor) -> Tensor:
    """``softmax(q·kᵀ)·v`` without a scale, B×N×C; the softmax is at least float32."""
    n, c = v_BNC.shape[1:]
    # Faster here: results/benchmarks/spatial_attention*.json. Above N = 1024 no N×N map is stored.
    explicit = v_BNC.is_cpu and n <= min(1024, max(512, 7 * c))
    # fvcore traces the module, and counts only explicit products.
    if explicit or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        with torch.autocast(v_BNC.device.type, enabled=False):
            dtype = torch.promote_types(q_BNd.dtype, torch.float32)
            s_BNN = (q_BNd.to(dtype) @ k_BNd.to(dtype).transpose(1, 2)).softmax(2)
            return s_BNN.to(v_BNC.dtype) @ v_BNC
    # Zeros change no score. The CPU kernel needs d = C; the GPU kernel needs a multiple of 8.
    d = q_BNd.shape[2]
    zeros = {"cpu": c - d, "cuda": -d % 8}.get(v_BNC.device.type, 0)
    padded = (pad(q_BNd, (0, zeros)), pad(k_BNd, (0, zeros)), v_BNC)
    q, k, v = (tensor.contiguous().unsqueeze(1) for tensor in padded)
    return scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1)


class SpatialSelfAttention(nn.Module):
    """``out_j = Σᵢ s_ij Dᵢ``, ``s_ij = exp(Bᵢ·Cⱼ) / Σᵢ exp(Bᵢ·Cⱼ)`` (CSM, eqs. 2 and 5).

    B, C and D are 1×1 convolutions of x with bias: C is the query, B the key, D the value.

    Args:
        key_reduction: B and C have max(1, channels // key_reduction) channels. The paper's
            text has 1; DANet has 8.
        residual: return ``x + γ·out`` with γ learned from 0, as DANet does; the paper's text
            replaces x by ``out``.
    """

    def __init__(self, channels: int, *, key_reduction: int = 1, residual: bool = False) -> None:
        super().__init__()
        width = reduced(channels, key_reduction, "key_reduction")
        self.query = nn.Conv2d(channels, width, kernel_size=1)
        self.key = nn.Conv2d(channels, width, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1)) if residual else None

    def initialise(self) -> None:
        # The paper gives none; this is PyTorch's default with biases 0. With the backbone's
        # Kaiming-normal weights and no 1/√d the softmax would be one-hot from the start.
        for conv in (self.query, self.key, self.value):
            conv.reset_parameters()
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        c, b, d = (
            conv(x).flatten(2).transpose(1, 2) for conv in (self.query, self.key, self.value)
        )
        out = attend(c, b, d).transpose(1, 2).reshape(x.shape)
        return out if self.gamma is None else x + (self.gamma * out).to(x.dtype)

    @torch.no_grad()
    def spatial_map(self, x: Tensor) -> Tensor:
        """The attention that each position i receives: the mean of s_ij over j, N×1×H×W."""
        query_NCL, key_NCL = self.query(x).flatten(2), self.key(x).flatten(2)
        received_NL = torch.zeros_like(key_NCL[:, 0])
        for chunk_NCQ in query_NCL.split(256, dim=2):  # the whole N×N map would fill the memory
            received_NL += (chunk_NCQ.transpose(1, 2) @ key_NCL).softmax(2).sum(1)
        return (received_NL / received_NL.shape[1]).reshape(len(x), 1, *x.shape[2:])
