"""MobileNetV3 (Howard et al., ICCV 2019), with attention in the blocks that have its SE."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import nn

from attngrid.models.attention.mlp import make_divisible
from attngrid.models.backbones.mobilenet import (
    MobileNet,
    conv_bn,
    hard_swish,
    inverted_residual,
    relu,
)
from attngrid.models.placement import Sites


class Block(NamedTuple):
    """A block of MobileNetV3: its widths, and whether it has attention."""

    expanded: int
    outputs: int
    attention: bool = False


# Tables 1 and 2, by stage; the first block of a stage strides
LARGE = (
    (Block(16, 16),),
    (Block(64, 24), Block(72, 24)),
    (Block(72, 40, True), Block(120, 40, True), Block(120, 40, True)),
    (
        *(Block(240, 80), Block(200, 80), Block(184, 80), Block(184, 80)),
        *(Block(480, 112, True), Block(672, 112, True)),
    ),
    (Block(672, 160, True), Block(960, 160, True), Block(960, 160, True)),
)
SMALL = (
    (Block(16, 16, True),),
    (Block(72, 24), Block(88, 24)),
    (
        *(Block(96, 40, True), Block(240, 40, True), Block(240, 40, True)),
        *(Block(120, 48, True), Block(144, 48, True)),
    ),
    (Block(288, 96, True), Block(576, 96, True), Block(576, 96, True)),
)
KERNELS = {"large": (3, 3, 5, 3, 5), "small": (3, 3, 5, 5)}
RELU_STAGES = {"large": 3, "small": 2}  # the later stages have hard-swish


class MobileNetV3(MobileNet):
    """Inverted residuals with listed widths.

    Args:
        sites: makes the attention modules.
        size: ``large`` or ``small``.
        width: scales all widths, rounded to multiples of 8.
        **options: of ``MobileNet``: num_classes, stem, input_bn, conv_head.
    """

    def __init__(
        self,
        sites: Sites,
        *,
        size: Literal["large", "small"],
        width: float = 1.0,
        **options: Any,
    ) -> None:
        plan = LARGE if size == "large" else SMALL

        def block(entry: Block, inputs: int, stride: int, stage: int) -> tuple[nn.Module, int]:
            expanded = make_divisible(entry.expanded * width)
            outputs = make_divisible(entry.outputs * width)
            made = inverted_residual(
                sites,
                (inputs, expanded, outputs),
                KERNELS[size][stage - 1],
                stride,
                relu if stage <= RELU_STAGES[size] else hard_swish,
                (stage, len(plan)),
                expand=expanded != inputs,
                listed=entry.attention,
            )
            return made, outputs

        def head(channels: int) -> tuple[list[nn.Module], int]:
            last = make_divisible((960 if size == "large" else 576) * width)
            features = make_divisible((1280 if size == "large" else 1024) * width)
            layers = conv_bn(channels, last, activation=hard_swish)
            layers += [nn.AdaptiveAvgPool2d(1), nn.Conv2d(last, features, 1, bias=False)]
            return [*layers, hard_swish()], features

        super().__init__(
            sites,
            make_divisible(16 * width),
            hard_swish,
            plan,
            block,
            head,
            **options,
        )
