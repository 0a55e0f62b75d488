"""MobileNetV1 (Howard et al., 2017) with the MAF and SRAP authors' residual sums."""

from __future__ import annotations

from typing import Any

from torch import nn

from attngrid.models.attention.mlp import make_divisible
from attngrid.models.backbones.mobilenet import (
    MobileNet,
    Unit,
    conv_bn,
    relu,
)
from attngrid.models.placement import Sites

WIDTHS = [[64], [128] * 2, [256] * 2, [512] * 6, [1024] * 2]


class MobileNetV1(MobileNet):
    """Depthwise-separable units: depthwise, [SRAP], pointwise, [other attention], sum.

    Args:
        sites: makes the attention modules.
        width: scales all widths, rounded to multiples of 8.
        residual: add a unit's input wherever the shapes allow; False is the 2017 original.
        **options: of ``MobileNet``: num_classes, stem, input_bn, conv_head.
    """

    def __init__(
        self,
        sites: Sites,
        *,
        width: float = 1.0,
        residual: bool = True,
        **options: Any,
    ) -> None:
        def unit(nominal: int, inputs: int, stride: int, stage: int) -> tuple[nn.Module, int]:
            outputs = make_divisible(nominal * width)
            layers = [
                *conv_bn(inputs, inputs, 3, stride, groups=inputs, activation=relu),
                sites.expanded(inputs, stage, len(WIDTHS)),
                *conv_bn(inputs, outputs, activation=relu),
            ]
            attention = sites.block(outputs, stage, len(WIDTHS))
            return Unit(layers, attention, residual and stride == 1 and inputs == outputs), outputs

        super().__init__(
            sites,
            make_divisible(32 * width),
            relu,
            WIDTHS,
            unit,
            lambda channels: ([nn.AdaptiveAvgPool2d(1)], channels),
            **options,
        )
