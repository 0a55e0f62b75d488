"""Depthwise convolutions whose gradient takes the precision that measured best."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

_NATIVE: ContextVar[bool] = ContextVar("native_gradients", default=False)


@contextmanager
def native_gradients(on: bool = True) -> Iterator[None]:
    """Within, a convolution's gradient has its own precision: the same, but for rounding."""
    token = _NATIVE.set(on)
    try:
        yield
    finally:
        _NATIVE.reset(token)


class DepthwiseConv2d(nn.Conv2d):
    """PyTorch's, but that under bfloat16 on a CPU its gradient is computed in float32.

    So where oneDNN 3.12 has no kernel of its own for bfloat16's: a strided one's gradient, and
    that of weights other than 3×3, take 5 to 20 times as long in bfloat16 as in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        has_kernel = self.stride == (1, 1) and self.kernel_size == (3, 3)
        if has_kernel or not _is_slow_in_bfloat16(x):
            return super().forward(x)
        x, weight = x.to(torch.bfloat16), self.weight.to(torch.bfloat16)
        out: Tensor = _GradientInFloat32.apply(x, weight, self.stride, self.padding)
        return out


def _is_slow_in_bfloat16(x: Tensor) -> bool:
    return (
        x.is_cpu
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and not torch.compiler.is_compiling()
        and not _NATIVE.get()
    )


class _GradientInFloat32(torch.autograd.Function):
    """A depthwise convolution of bfloat16 tensors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            *(tensor.float() for tensor in (grad, x, weight)),
            bias_sizes=None,
            stride=ctx.stride,
            padding=ctx.padding,
            dilation=(1, 1),
            transposed=False,
            output_padding=(0, 0),
            groups=len(weight),
            output_mask=(*ctx.needs_input_grad[:2], False),
        )
        return *(g if g is None else g.to(x.dtype) for g in (grad_x, grad_weight)), None, None
