"""CSM's spatial attention: full self-attention over the positions of a feature map.

The product has three forms, and ``attend`` takes the one that measured best for its shape
(``benchmarks/spatial_attention.py``; the figures are in docs/models.md). Fused is PyTorch's own
operator, which holds no N×N map. Explicit is the product as it is written, a few images at a
time. By rows is the explicit product of a few rows of the map at a time, which the backward pass
computes again: for what the fused operator has no kernel for on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, library, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from attngrid.core.errors import ConfigError
from attngrid.models.forms import literal_forms

# Up to this N speed comes first and the map may be kept for the backward pass; then memory does.
MAP_KEPT_UP_TO = 1024
# From this many positions a channel on, the passes over the map outweigh the products.
NARROW = 10
# Entries of the map computed at once, 2 MB in float32: pieces stay near the processor and reuse
# memory, where a larger tensor is page by page the system's, given back and asked for anew.
PIECE = 2**19


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax(query·keyᵀ)·value`` with one head and the scale 1.

    On the CPU: explicit up to N = 1,024, but fused where d = C ≤ N / 10; beyond, fused where d = C,
    else by rows. On a GPU, where the forms are not measured yet: fused.

    Args:
        query: B×N×d.
        key: B×N×d.
        value: B×N×C.

    Returns:
        B×N×C in the dtype of ``value``. Scores and softmax are float32 where that is narrower.
    """
    if literal_forms.on:
        return _product(query, key, value)
    _, positions, channels = value.shape
    kept = positions <= MAP_KEPT_UP_TO
    narrow = channels * NARROW <= positions
    if not value.is_cpu or ((narrow or not kept) and key.shape[2] == channels):
        return _fused(query, key, value)
    if kept:
        return _explicit(query, key, value)
    out: Tensor = _by_rows(query, key, value)
    return out


def _fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    # Where a stride or a width does not suit the fused kernels PyTorch silently holds the map: they
    # want four dimensions, channels side by side, and on a GPU widths that are multiples of 8.
    if query.is_cuda and (missing := -query.shape[2] % 8):
        query, key = pad(query, (0, missing)), pad(key, (0, missing))
    query, key, value = (tensor.contiguous().unsqueeze(1) for tensor in (query, key, value))
    return scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)


def _explicit(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    batch, positions, _ = value.shape
    images = max(1, PIECE // int(positions) ** 2)
    # a compiler lays its memory out itself, and would unroll the pieces
    if batch <= images or torch.compiler.is_compiling():
        return _product(query, key, value)
    pieces = zip(*(torch.split(tensor, images) for tensor in (query, key, value)), strict=True)
    return torch.cat([_product(*piece) for piece in pieces])


def _product(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if value.dtype not in (torch.bfloat16, torch.float16):
        return torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(-1), value)
    # without a 1/√d the products are large, and bfloat16 would leave them 8 bits
    with torch.autocast(value.device.type, enabled=False):
        scores = torch.bmm(query.float(), key.float().transpose(1, 2))
        return torch.bmm(scores.softmax(-1).to(value.dtype), value)


def _pieces(query: Tensor) -> Iterator[tuple[slice, slice]]:
    """One image and as many rows of its map as make a piece."""
    images, positions, _ = query.shape
    rows = max(1, PIECE // positions)
    for image in range(images):
        for row in range(0, positions, rows):
            yield slice(image, image + 1), slice(row, row + rows)


# By rows is an operator of its own, so that a compiler need not unroll its loop.
_NAME = "attngrid::attend_by_rows"
library.define(_NAME, "(Tensor query, Tensor key, Tensor value) -> Tensor")
_by_rows = torch.ops.attngrid.attend_by_rows


@library.impl(_NAME, "cpu")
def _forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out = value.new_empty(value.shape)
    for image, rows in _pieces(query):
        out[image, rows] = _product(query[image, rows], key[image], value[image])
    return out


_NAME_BACKWARD = f"{_NAME}_backward"
library.define(
    _NAME_BACKWARD,
    "(Tensor query, Tensor key, Tensor value, Tensor out, Tensor grad) -> (Tensor, Tensor, Tensor)",
)
_by_rows_backward = torch.ops.attngrid.attend_by_rows_backward


@library.impl(_NAME_BACKWARD, "cpu")
def _backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad: Tensor
) -> tuple[Tensor, ...]:
    dtype = query.dtype
    wide = torch.promote_types(dtype, torch.float32)
    query, key, value, out, grad = (t.to(wide) for t in (query, key, value, out, grad))
    grads = [t.new_zeros(t.shape) for t in (query, key, value)]
    # a softmax's gradient is map ⊙ (grad_map − Σᵢ map ⊙ grad_map), and the sum is this
    sums = (out * grad).sum(-1, keepdim=True)
    with torch.autocast("cpu", enabled=False):
        for image, rows in _pieces(query):
            q, k, v, g = query[image, rows], key[image], value[image], grad[image, rows]
            grad_q, grad_k, grad_v = (t[image] for t in grads)
            map_ = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
            grad_v.baddbmm_(map_.transpose(1, 2), g)
            grad_scores = torch.bmm(g, v.transpose(1, 2)).sub_(sums[image, rows]).mul_(map_)
            grad_q[:, rows] = torch.bmm(grad_scores, k)
            grad_k.baddbmm_(grad_scores.transpose(1, 2), q)
    return tuple(t.to(dtype) for t in grads)


library.register_fake(_NAME, lambda query, key, value: value.new_empty(value.shape))
library.register_fake(
    _NAME_BACKWARD, lambda *inputs: tuple(tensor.new_empty(tensor.shape) for tensor in inputs[:3])
)
library.register_autograd(
    _NAME,
    lambda ctx, grad: _by_rows_backward(*ctx.saved_tensors, grad),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output),
)


class SpatialSelfAttention(nn.Module):
    """``out_j = Σᵢ s_ij Dᵢ`` with ``s_ij = exp(Bᵢ·Cⱼ) / Σᵢ exp(Bᵢ·Cⱼ)`` (CSM, eqs. 2 and 5).

    B, C and D are 1×1 convolutions of x with bias. In attention terms C is the query, B the
    key, D the value and the scale 1: the paper divides by no √d. Beyond N = H·W = 1,024
    positions neither pass holds the N×N map in memory.

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
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2) for conv in (self.query, self.key, self.value)
        )
        out = attend(query, key, value).transpose(1, 2).reshape(x.shape)
        # γ is float32, and what autocast made narrower stays so
        return out if self.gamma is None else x + (self.gamma * out).to(x.dtype)

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
