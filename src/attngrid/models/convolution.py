"""Convolutions whose gradients take the form that measured best."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from attngrid.core.hardware import has_amx
from attngrid.models.forms import Switch, is_eager_on_cpu

# PyTorch's own gradients within: the same, but for rounding.
native_convolutions = Switch()
# Where a product of matrices makes the gradient of the weights faster than oneDNN 3.12 does, 1.2
# to 6 times on AMX: its tiles take 16 of a map's columns at once, and such maps have fewer.
FEW_COLUMNS, MANY_CHANNELS = 14, 128


class Conv2d(nn.Conv2d):
    """PyTorch's without a bias; on the CPU its gradients are taken differently.

    Where the channels lie side by side and are fewer than it takes at once, oneDNN 3.12 writes
    past its workspace in the gradient of a strided 1×1 convolution (oneDNN issue 6035): such a
    one picks its pixels first. Under bfloat16 a depthwise convolution that oneDNN has no kernel
    for, strided or not of 3×3, would take 5 to 20 times as long as in float32, and one to a single
    channel twice as long: their gradients are computed in float32. That of other weights is a
    product of matrices where this is faster.
    """

    ONEDNN_BLOCK = 16

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        *,
        groups: int = 1,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding = self.kernel_size, self.stride, self.padding
        if x.is_cpu and self.in_channels < self.ONEDNN_BLOCK and kernel == (1, 1) != stride:
            rows, columns = stride
            return conv2d(x[:, :, ::rows, ::columns], self.weight)
        if self._has_better_gradient(x):
            x, weight = x.to(torch.bfloat16), self.weight.to(torch.bfloat16)
            out: Tensor = _Convolution.apply(x, weight, stride, padding, self.groups)
            return out
        return super().forward(x)

    def _has_better_gradient(self, x: Tensor) -> bool:
        if not (is_eager_on_cpu(x) and _is_trained_in_bfloat16(x)) or native_convolutions.on:
            return False
        if self.out_channels == 1:
            return True
        if self.groups > 1:
            depthwise = self.groups == self.in_channels == self.out_channels
            return depthwise and (self.stride != (1, 1) or self.kernel_size != (3, 3))
        few = x.shape[-1] <= FEW_COLUMNS * self.stride[1]
        return has_amx() and few and self.in_channels >= MANY_CHANNELS


def _is_trained_in_bfloat16(x: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and x.dtype in (torch.float32, torch.bfloat16)
    )


class _Convolution(torch.autograd.Function):
    """A convolution of bfloat16 tensors, depthwise, to one channel, or of one group."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.groups = stride, padding, groups
        return conv2d(x, weight, None, stride, padding, groups=groups)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, *_ = ctx.needs_input_grad
        if ctx.groups > 1 or len(weight) == 1:
            grads = _gradients(ctx, grad.float(), x.float(), weight.float(), (of_x, of_weight))
            grad_x, grad_weight = (None if g is None else g.to(x.dtype) for g in grads)
        else:
            grad_x, _ = _gradients(ctx, grad, x, weight, (of_x, False))
            grad_weight = _weight_gradient(ctx, grad, x, weight) if of_weight else None
        return grad_x, grad_weight, None, None, None


def _gradients(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """PyTorch's, of the map and of the weights."""
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        bias_sizes=None,
        stride=ctx.stride,
        padding=ctx.padding,
        dilation=(1, 1),
        transposed=False,
        output_padding=(0, 0),
        groups=ctx.groups,
        output_mask=(*wanted, False),
    )
    return grad_x, grad_weight


def _weight_gradient(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Of one group's weights: what each output position had before it, times its gradient."""
    out_channels, in_channels, *kernel = weight.shape
    (rows, columns), x_NHWC = ctx.padding, x.permute(0, 2, 3, 1)
    windows = pad(x_NHWC, (0, 0, columns, columns, rows, rows))
    for dimension, (size, step) in enumerate(zip(kernel, ctx.stride, strict=True), 1):
        windows = windows.unfold(dimension, size, step)
    windows_PK = windows.permute(0, 1, 2, 4, 5, 3).flatten(0, 2).flatten(1)
    grad_PO = grad.permute(0, 2, 3, 1).flatten(0, 2)
    grad_OK = grad_PO.t() @ windows_PK
    return grad_OK.view(out_channels, *kernel, in_channels).permute(0, 3, 1, 2)
