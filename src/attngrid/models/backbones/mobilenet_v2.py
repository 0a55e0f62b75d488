"""MobileNetV2 (Sandler et al., CVPR 2018)."""

from __future__ import annotations

from typing import Any

from torch import nn

from attngrid.models.attention.mlp import make_divisible
from attngrid.models.backbones.mobilenet import (
    MobileNet,
    conv_bn,
    inverted_residual,
    relu6,
)
from attngrid.models.placement import Sites

WIDTHS = [[16], [24] * 2, [32] * 3, [64] * 4 + [96] * 3, [160] * 3 + [320]]


class MobileNetV2(MobileNet):
    """Inverted residuals, expanded 6 times; 1 time in the first stage.

    Args:
        sites: makes the attention modules.
        width: scales all widths, rounded to multiples of 8; below 1 the last convolution keeps
            its 1280 channels, as in the original.
        expand_first: the first block has its expanding 1×1 convolution too, as the MAF and SRAP
            authors have it; False is the original.
        **options: of ``MobileNet``: num_classes, stem, input_bn, conv_head.
    """

    def __init__(
        self,
        sites: Sites,
        *,
        width: float = 1.0,
        expand_first: bool = True,
        **options: Any,
    ) -> None:
        def block(nominal: int, inputs: int, stride: int, stage: int) -> tuple[nn.Module, int]:
            outputs, ratio = make_divisible(nominal * width), 1 if stage == 1 else 6
            widths, place = (inputs, ratio * inputs, outputs), (stage, len(WIDTHS))
            expand = expand_first or ratio > 1
            made = inverted_residual(sites, widths, 3, stride, relu6, place, expand=expand)
            return made, outputs

        def head(channels: int) -> tuple[list[nn.Module], int]:
            features = make_divisible(1280 * max(1.0, width))
            layers = conv_bn(channels, features, activation=relu6)
            return [*layers, nn.AdaptiveAvgPool2d(1)], features

        super().__init__(
            sites,
            make_divisible(32 * width),
            relu6,
            WIDTHS,
            block,
            head,
            **options,
        )
