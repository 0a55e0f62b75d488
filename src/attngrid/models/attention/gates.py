"""Maps times gates, per channel and per position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attngrid.models.forms import by_images, has_fast_form


def multiplied(x_NCHW: Tensor, gate: Tensor) -> Tensor:
    """``x ⊙ gate``, of a gate per channel, N×C×1×1, or per position, N×1×H×W."""
    gate = gate.to(x_NCHW.dtype)
    if not has_fast_form(x_NCHW):
        return x_NCHW * gate
    out: Tensor = _Multiplied.apply(x_NCHW, gate)
    return out


class _Multiplied(torch.autograd.Function):
    """The same on the CPU, where the products whose sums are the gate's gradient make no map.

    They are written where the map's gradient will be, a few images at a time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, gate = ctx.saved_tensors
        over = tuple(d for d in range(1, 4) if gate.shape[d] == 1)

        def grads(out: Tensor, grad: Tensor, x: Tensor, gate: Tensor) -> tuple[Tensor]:
            of_gate = torch.mul(grad, x, out=out).sum(over, keepdim=True)
            torch.mul(grad, gate, out=out)
            return (of_gate,)

        out = torch.empty_like(x)
        (grad_gate,) = by_images(grads, out, grad, x, gate)
        return out, grad_gate
