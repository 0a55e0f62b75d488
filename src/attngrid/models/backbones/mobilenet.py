"""MobileNetV1 (Howard et al., 2017), V2 (Sandler et al., CVPR 2018), V3 (Howard et al., ICCV 2019).

By default as the MAF and SRAP authors have them; options give the originals.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

from torch import Tensor, nn

from attngrid.models.attention.mlp import make_divisible
from attngrid.models.backbones.layers import Activation, Stem, conv_bn, initialise, relu
from attngrid.models.placement import Sites

relu6: Activation = partial(nn.ReLU6, inplace=True)
hard_swish: Activation = partial(nn.Hardswish, inplace=True)


class Block(NamedTuple):
    """A block as the papers' tables list it, at width 1.

    Attributes:
        outputs: channels of its output.
        expanded: channels of its depthwise convolution; None: ``ratio`` times its input's.
        attention: the network itself has attention here.
    """

    outputs: int
    expanded: int | None = None
    attention: bool = True
    ratio: int = 1
    kernel: int = 3
    activation: Activation = relu


class Design(NamedTuple):
    """A network: ``head`` has the channels of the 1×1 convolutions before the classifier."""

    first: int
    activation: Activation
    stages: list[list[Block]]
    head: tuple[int, ...] = ()
    linear: bool = True  # no activation after the last convolution of a block


def _v3(kernel: int, activation: Activation, rows: list[tuple[int, int, bool]]) -> list[Block]:
    """A stage of (expanded, outputs, attention)."""
    return [
        Block(outputs, expanded, attention, kernel=kernel, activation=activation)
        for expanded, outputs, attention in rows
    ]


# The first block of a stage strides.
DESIGNS = {
    "v1": Design(
        32,
        relu,
        [[Block(64)], [Block(128)] * 2, [Block(256)] * 2, [Block(512)] * 6, [Block(1024)] * 2],
        linear=False,
    ),
    "v2": Design(
        32,
        relu6,
        [
            [Block(outputs, ratio=1 if outputs == 16 else 6, activation=relu6) for outputs in stage]
            for stage in ([16], [24] * 2, [32] * 3, [64] * 4 + [96] * 3, [160] * 3 + [320])
        ],
        (1280,),
    ),
    "v3_large": Design(
        16,
        hard_swish,
        [
            _v3(3, relu, [(16, 16, False)]),
            _v3(3, relu, [(64, 24, False), (72, 24, False)]),
            _v3(5, relu, [(72, 40, True), (120, 40, True), (120, 40, True)]),
            _v3(3, hard_swish, [(expanded, 80, False) for expanded in (240, 200, 184, 184)])
            + _v3(3, hard_swish, [(480, 112, True), (672, 112, True)]),
            _v3(5, hard_swish, [(672, 160, True), (960, 160, True), (960, 160, True)]),
        ],
        (960, 1280),
    ),
    "v3_small": Design(
        16,
        hard_swish,
        [
            _v3(3, relu, [(16, 16, True)]),
            _v3(3, relu, [(72, 24, False), (88, 24, False)]),
            _v3(5, hard_swish, [(96, 40, True), (240, 40, True), (240, 40, True)])
            + _v3(5, hard_swish, [(120, 48, True), (144, 48, True)]),
            _v3(5, hard_swish, [(288, 96, True), (576, 96, True), (576, 96, True)]),
        ],
        (576, 1024),
    ),
}


class InvertedResidual(nn.Module):
    """[Expand], depthwise, [attention], project, [attention], and x added if ``residual``.

    In V1, which expands nothing, this is the depthwise-separable unit.
    """

    def __init__(
        self,
        sites: Sites,
        block: Block,
        channels: tuple[int, int, int],
        stride: int,
        place: tuple[int, int],
        *,
        expand: bool,
        linear: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        inputs, expanded, outputs = channels
        act, listed = block.activation, block.attention
        layers = conv_bn(inputs, expanded, activation=act) if expand else []
        layers += conv_bn(expanded, expanded, block.kernel, stride, groups=expanded, activation=act)
        layers.append(sites.expanded(expanded, *place, listed=listed))
        layers += conv_bn(expanded, outputs, activation=None if linear else act)
        self.layers = nn.Sequential(*layers)
        self.attention = sites.block(outputs, *place, listed=listed)
        self.residual = residual and stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(self.layers(x))
        return x + out if self.residual else out


class MobileNet(nn.Module):
    """Stem, stages, head and classifier of a version.

    Args:
        sites: makes the attention modules.
        version: of ``DESIGNS``.
        num_classes: outputs.
        stem: ``imagenet`` strides in the first convolution and, of five stages, in all but the
            first; ``cifar`` neither in the first convolution nor in the second stage.
        width: scales all widths, rounded to multiples of 8.
        input_bn: a BatchNorm on the image. Not in the originals.
        conv_head: a 1×1 convolution as classifier. Not in the originals.
        residual: V1 adds a unit's input wherever the shapes allow. Not in the original.
        expand_first: V2's first block has its expanding convolution, too. Not in the original.
    """

    def __init__(
        self,
        sites: Sites,
        *,
        version: Literal["v1", "v2", "v3_large", "v3_small"],
        num_classes: int = 1000,
        stem: Stem = "imagenet",
        width: float = 1.0,
        input_bn: bool = True,
        conv_head: bool = True,
        residual: bool = True,
        expand_first: bool = True,
    ) -> None:
        super().__init__()
        design = DESIGNS[version]
        stride, count = 2 if stem == "imagenet" else 1, len(design.stages)
        inputs = make_divisible(design.first * width)
        first = conv_bn(3, inputs, 3, stride, activation=design.activation)
        self.stem = nn.Sequential(*([nn.BatchNorm2d(3)] if input_bn else []), *first)
        stages = []
        strides = [1, stride, 2, 2, 2][-count:]
        for stage, (blocks, stride) in enumerate(zip(design.stages, strides, strict=True), 1):
            layers: list[nn.Module] = []
            for index, block in enumerate(blocks):
                expanded = block.ratio * inputs
                if block.expanded is not None:
                    expanded = make_divisible(block.expanded * width)
                outputs = make_divisible(block.outputs * width)
                layers.append(
                    InvertedResidual(
                        sites,
                        block,
                        (inputs, expanded, outputs),
                        stride if index == 0 else 1,
                        (stage, count),
                        expand=expanded != inputs or (version == "v2" and expand_first),
                        linear=design.linear,
                        residual=residual,
                    )
                )
                inputs = outputs
            layers.append(sites.after_stage(inputs, stage, count))
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        # Below 1, V2's last convolution keeps its 1280 channels, as in the original.
        scale = max(1.0, width) if version == "v2" else width
        widths = [make_divisible(channels * scale) for channels in design.head]
        self.head, features = _head(inputs, widths, design.activation)
        self.classifier = (
            nn.Sequential(nn.Conv2d(features, num_classes, kernel_size=1), nn.Flatten())
            if conv_head
            else nn.Sequential(nn.Flatten(), nn.Linear(features, num_classes))
        )
        initialise(self, self.classifier, nn.init.kaiming_uniform_, nn.init.xavier_normal_)

    def forward(self, x: Tensor) -> Tensor:
        """Images N×3×H×W to logits N×num_classes."""
        logits: Tensor = self.classifier(self.head(self.stages(self.stem(x))))
        return logits


def _head(channels: int, widths: list[int], activation: Activation) -> tuple[nn.Sequential, int]:
    """A convolution before the pooling, one after it; and the channels of the output."""
    layers: list[nn.Module] = []
    for width in widths[:1]:
        layers += conv_bn(channels, width, activation=activation)
    layers.append(nn.AdaptiveAvgPool2d(1))
    for before, width in pairwise(widths):
        layers += [nn.Conv2d(before, width, 1, bias=False), activation()]
    return nn.Sequential(*layers), [channels, *widths][-1]
