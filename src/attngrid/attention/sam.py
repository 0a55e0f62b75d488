"""CSM's spatial attention: full self-attention over the positions of a feature map.

The product has three forms, and ``attend`` takes the one that measured best for its shape
(``benchmarks/spatial_attention.py``; the figures are in docs/models.md). Fused is PyTorch's own
operator, which holds no N×N map. Explicit is the product as it is written, a few images at a
time. By rows is the explicit product of a few rows of the map at a time, which the backward pass
computes again: for what the fused operator has no kernel for on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import custom_op
from torch.nn.functional import pad, scaled_dot_product_attention

from attngrid.errors import ConfigError

# Up to this N speed comes first and the map may be kept for the backward pass; then memory does.
MAP_KEPT_UP_TO = 1024
# With fewer channels a position the passes over the map outweigh the products.
NARROW = 1 / 10
# Entries of the map computed at once, 2 MB in float32: pieces stay near the processor and reuse
# memory, where a larger tensor is page by page the system's, given back and asked for anew.
PIECE = 2**19


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax(query·keyᵀ)·value`` with one head and the scale 1.

    On the CPU: explicit up to N = 1,024, but fused where d = C ≤ N/10; beyond, fused where d = C,
    else by rows. On a GPU, where the forms are not measured yet: fused.

    Args:
        query: B×N×d.
        key: B×N×d.
        value: B×N×C.

    Returns:
        B×N×C in the dtype of ``value``. Scores and softmax are float32 where that is narrower.
    """
    positions, channels = value.shape[1:]
    kept = positions <= MAP_KEPT_UP_TO
    equal, narrow = key.shape[2] == channels, channels <= NARROW * positions
    if query.device.type != "cpu" or (equal and (narrow or not kept)):
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
    images = max(1, PIECE // int(key.shape[1]) ** 2)
    # a compiler lays its memory out itself, and would unroll the pieces
    if len(query) <= images or torch.compiler.is_compiling():
        return _product(query, key, value)
    pieces = zip(*(torch.split(tensor, images) for tensor in (query, key, value)), strict=True)
    return torch.cat([_product(*piece) for piece in pieces])


def _product(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    # without a 1/√d the products are large: autocast's bfloat16 would leave them 8 bits
    with torch.autocast("cpu", enabled=False):
        scores = torch.bmm(query.to(wide), key.to(wide).transpose(1, 2))
        return torch.bmm(scores.softmax(-1).to(value.dtype), value)


# An operator of its own, so that a compiler need not unroll the loop over the pieces.
@custom_op("attngrid::attend_by_rows", mutates_args=())
def _by_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``_product`` by rows of the map, image by image; its gradient computes them again."""
    out = value.new_empty(value.shape)
    for image, rows in _pieces(query):
        out[image, rows] = _product(query[image, rows], key[image], value[image])
    return out


@custom_op("attngrid::attend_by_rows_backward", mutates_args=())
def _by_rows_backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = query.dtype
    wide = torch.promote_types(dtype, torch.float32)
    query, key, value, out, grad_out = (t.to(wide) for t in (query, key, value, out, grad_out))
    grads = [t.new_zeros(t.shape) for t in (query, key, value)]
    # a softmax's gradient is map ⊙ (grad_map − Σᵢ map ⊙ grad_map), and the sum is this
    sums = (out * grad_out).sum(-1, keepdim=True)
    with torch.autocast("cpu", enabled=False):
        for image, rows in _pieces(query):
            q, k, v, grad = query[image, rows], key[image], value[image], grad_out[image, rows]
            grad_q, grad_k, grad_v = (t[image] for t in grads)
            map_ = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
            grad_v.baddbmm_(map_.transpose(1, 2), grad)
            grad_scores = torch.bmm(grad, v.transpose(1, 2))
            grad_scores.sub_(sums[image, rows]).mul_(map_)
            grad_q[:, rows] = torch.bmm(grad_scores, k)
            grad_k.baddbmm_(grad_scores.transpose(1, 2), q)
    grad_query, grad_key, grad_value = (t.to(dtype) for t in grads)
    return grad_query, grad_key, grad_value


@_by_rows.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return value.new_empty(value.shape)


@_by_rows_backward.register_fake
def _(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors[:3])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


_by_rows.register_autograd(
    lambda ctx, grad_out: _by_rows_backward(*ctx.saved_tensors, grad_out), setup_context=_save
)


def _pieces(query: Tensor) -> Iterator[tuple[slice, slice]]:
    """One image and as many rows of its map as make a piece."""
    images, positions, _ = query.shape
    rows = max(1, PIECE // positions)
    for image in range(images):
        for row in range(0, positions, rows):
            yield slice(image, image + 1), slice(row, row + rows)


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
