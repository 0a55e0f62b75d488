"""What the backbones share: convolution with BatchNorm, and how the weights start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import conv2d

from attngrid.core.errors import ConfigError

Stem = Literal["imagenet", "cifar"]
Activation = Callable[[], nn.Module]
relu: Activation = partial(nn.ReLU, inplace=True)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` without a memory error of oneDNN, PyTorch's library of convolutions on CPUs.

    The weight gradient of a strided 1×1 convolution writes out of bounds if the channels are
    innermost in memory and fewer than 16: https://github.com/uxlfoundation/oneDNN/issues/6035,
    open in oneDNN 3.12 (torch 2.14). Delete this class once every supported torch has the fix.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cpu and self.in_channels < 16 and self.kernel_size == (1, 1) != self.stride:
            rows, columns = self.stride
            return conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias, groups=self.groups)
        return super().forward(x)


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: Activation | None = None,
) -> list[nn.Module]:
    """Convolution without bias, BatchNorm, and the activation if there is one."""
    if outputs < 1:
        raise ConfigError("width is so small that a convolution has no channels")
    conv = Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    return [*layers, activation()] if activation else layers


def initialise(
    model: nn.Module,
    classifier: nn.Module,
    convolution_weight: Callable[[Tensor], Any],
    classifier_weight: Callable[[Tensor], Any],
) -> None:
    """Start convolutions and classifier by these functions of ``nn.init``, all biases at 0.

    Then come the attention modules that have an ``initialise`` of their own.
    """
    if next(model.parameters()).is_meta:  # it has no numbers and is only counted
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            convolution_weight(module.weight)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            classifier_weight(module.weight)
    for module in model.modules():
        if callable(start := getattr(module, "initialise", None)):
            start()
