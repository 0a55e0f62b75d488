"""Layers and weight initialisation that the backbones share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import conv2d

from attngrid.core.errors import ConfigError

Stem = Literal["imagenet", "cifar"]
Activation = Callable[[], nn.Module]
relu: Activation = partial(nn.ReLU, inplace=True)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that avoids a memory error of oneDNN, PyTorch's convolution library on CPUs.

    The weight gradient of a strided 1×1 convolution writes out of bounds in channels-last
    format with fewer than 16 channels: https://github.com/uxlfoundation/oneDNN/issues/6035,
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
    *,
    kept: Collection[nn.Module],
) -> None:
    """Initialise convolutions and classifier with functions of ``nn.init``, all biases with 0.

    Attention modules that have a method ``initialise`` then initialise themselves. The modules in
    ``kept`` keep PyTorch's default, but for the classifier's weight.
    """
    if next(model.parameters()).is_meta:  # a meta model has no values
        return
    found = [module for module in model.modules() if all(module is not one for one in kept)]
    for module in found:
        if isinstance(module, nn.Conv2d):
            convolution_weight(module.weight)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            classifier_weight(module.weight)
    for module in found:
        if callable(method := getattr(module, "initialise", None)):
            method()
