"""SRAP, selected residual attentive patterns (earlier named MRAP)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attngrid.core.errors import ConfigError
from attngrid.models.attention.bottleneck import bottleneck
from attngrid.models.attention.statistics import (
    POSITION,
    known,
    normalised_conv,
    squeeze,
    squeeze_both,
)
from attngrid.models.convolution import Conv2d
from attngrid.models.forms import by_images, has_fast_form


class SRAP(nn.Module):
    """``x ⊙ (1 + σ(w_c ⊙ w_s))`` from k statistics p₁…p_k, per channel and per position.

    ``w_c = ReLU(W2 ReLU(W1 ·) + σ(p₁ ⊙ … ⊙ p_k))``, where · interleaves the nᵢ largest values
    of each pᵢ over channels; where a list ends the others go on.
    ``w_s = BN(conv7×7([p₁;…;p_k])) + σ(p₁ ⊙ … ⊙ p_k)`` over positions.

    Args:
        channels: C of the N×C×H×W input.
        reduction: r; the hidden width is max(1, C // r).
        statistics: names of ``attention.statistics``, two or three.
        rates: the share of the C selected values that each statistic has; left out, equal.
    """

    interleaved: Tensor

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        statistics: Sequence[str] = ("avg", "std"),
        rates: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.statistics = known(statistics)
        count = len(self.statistics)
        rates = [1 / count] * count if rates is None else list(rates)
        if len(rates) != count or min(rates) < 0 or not math.isclose(sum(rates), 1):
            raise ConfigError(f"rates must be {count} shares that sum to 1, found {rates}")
        sizes = [int(rate * channels) for rate in rates[:-1]]
        self.sizes = [*sizes, channels - sum(sizes)]
        # of the first of each list, the second of each, …: all but what is past a shorter one's end
        places = [rank < size for rank in range(max(self.sizes)) for size in self.sizes]
        kept = [place for place, inside in enumerate(places) if inside]
        # on the device, where a list would have to be brought at each step
        self.register_buffer("interleaved", torch.tensor(kept), persistent=False)
        self.mlp = bottleneck(channels, channels, reduction)
        self.conv = Conv2d(count, 1, kernel_size=7, padding=3)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def initialise(self) -> None:
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def spatial_map(self, x: Tensor) -> Tensor:
        """N×C×H×W to w_s, N×1×H×W."""
        return self._spatial(squeeze(x, self.statistics, POSITION)[1])

    def _spatial(self, position: list[Tensor]) -> Tensor:
        # products one by one: the gradient of torch.prod looks for zeros, and a GPU waits
        residual_N1HW = math.prod(position[1:], start=position[0]).sigmoid()
        return normalised_conv(self.conv, self.bn, position) + residual_N1HW

    def forward(self, x: Tensor) -> Tensor:
        x, channel, position = squeeze_both(x, self.statistics)
        # of all statistics at once, which a CPU shares out among its threads
        largest_NKR = largest(torch.stack(channel, 1), max(self.sizes))
        selected_NC = largest_NKR.transpose(1, 2).flatten(1)
        if len(self.interleaved) < selected_NC.shape[1]:
            selected_NC = selected_NC[:, self.interleaved]
        residual_NC = math.prod(channel[1:], start=channel[0]).sigmoid()
        weights_NC: Tensor = (self.mlp(selected_NC) + residual_NC).relu()
        return _gated(x, weights_NC[:, :, None, None], self._spatial(position))


def largest(rows: Tensor, count: int) -> Tensor:
    """The largest of each row ...×C, in their order: ...×count."""
    if rows.is_cuda:
        out: Tensor = Largest.apply(rows, count)
        return out
    return rows.topk(count, -1).values


class Largest(torch.autograd.Function):
    """The same, with a gradient that is gathered by rank.

    topk's is scattered, for which a GPU that is to be deterministic sorts all places each time.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int) -> Tensor:
        values, places = rows.sort(-1, descending=True)
        ctx.save_for_backward(places)
        return values[..., :count].contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        past = places.shape[-1] - grad.shape[-1]
        return pad(grad, (0, past)).gather(-1, places.argsort(-1)), None


def _gated(x: Tensor, channel_NC11: Tensor, position_N1HW: Tensor) -> Tensor:
    """``x ⊙ (1 + σ(w_c ⊙ w_s))``."""
    if has_fast_form(x):
        out: Tensor = _Gated.apply(x, channel_NC11, position_N1HW)
        return out
    gate = (channel_NC11 * position_N1HW).sigmoid()
    return x * (1 + gate).to(x.dtype)


def _product(x: Tensor, channel_NC11: Tensor, position_N1HW: Tensor) -> Tensor:
    """``w_c ⊙ w_s``, laid out in memory as x is: what meets in another order is slow."""
    product = torch.empty_like(x, dtype=channel_NC11.dtype)
    return torch.mul(channel_NC11, position_N1HW, out=product)


class _Gated(torch.autograd.Function):
    """The same on the CPU, where the gate, as large as the map, is made anew and not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, channel_NC11: Tensor, position_N1HW: Tensor) -> Tensor:
        def gated(out: Tensor, x: Tensor, channel_NC11: Tensor, position_N1HW: Tensor) -> tuple[()]:
            gate = _product(x, channel_NC11, position_N1HW).sigmoid_().to(x.dtype)
            torch.addcmul(x, x, gate, out=out)
            return ()

        ctx.save_for_backward(x, channel_NC11, position_N1HW)
        out = torch.empty_like(x)
        by_images(gated, out, x, channel_NC11, position_N1HW)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        def grads(
            out: Tensor, grad: Tensor, x: Tensor, channel_NC11: Tensor, position_N1HW: Tensor
        ) -> tuple[Tensor, ...]:
            gate = _product(x, channel_NC11, position_N1HW).sigmoid_()
            grad_product = torch.ops.aten.sigmoid_backward((grad * x).to(gate.dtype), gate)
            torch.addcmul(grad, grad, gate.to(x.dtype), out=out)
            # as products of matrices, which read the map once and write none; autocast, where
            # somebody calls this under it, would round them
            rows_NPC = grad_product.permute(0, 2, 3, 1).flatten(1, 2)
            with torch.autocast("cpu", enabled=False):
                grad_channel = position_N1HW.flatten(2) @ rows_NPC
                grad_position = rows_NPC @ channel_NC11.flatten(2)
            return grad_channel.view_as(channel_NC11), grad_position.view_as(position_N1HW)

        x = ctx.saved_tensors[0]
        grad_x = torch.empty_like(x)
        return grad_x, *by_images(grads, grad_x, grad, *ctx.saved_tensors)
