"""MobileNetV1, V2 and V3 with an attention module in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from attngrid.models.attention.bottleneck import make_divisible
from attngrid.models.convolution import Conv2d
from attngrid.models.placement import Sites, initialise_attention

Activation = Callable[[], nn.Module]
Stem = Literal["imagenet", "cifar"]


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def _relu6() -> nn.Module:
    return nn.ReLU6(inplace=True)


def _hard_swish() -> nn.Module:
    return nn.Hardswish(inplace=True)


def _conv(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    depthwise: bool = False,
    activation: Activation | None = None,
) -> list[nn.Module]:
    groups = inputs if depthwise else 1
    layers: list[nn.Module] = [
        Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups),
        nn.BatchNorm2d(outputs),
    ]
    return [*layers, activation()] if activation else layers


class Unit(nn.Module):
    """``attention(layers(x))``, plus x where the shapes allow and the network wants it."""

    def __init__(self, layers: Sequence[nn.Module], attention: nn.Module, residual: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.attention = attention
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(self.layers(x))
        return x + out if self.residual else out


class MobileNet(nn.Module):
    """What the three have in common: image in, stages, pool, head, classifier.

    Args:
        stem: the first convolution and what belongs to it.
        stages: as they follow.
        head: from the last stage's output to the classifier's input, with the pooling in it.
        features: channels of the classifier's input.
        num_classes: outputs.
        input_bn: a BatchNorm on the image in place of dataset normalisation, as the MAF and
            SRAP authors have it.
        conv_head: a 1×1 convolution for the classifier, as the same authors have it.
    """

    def __init__(
        self,
        stem: Sequence[nn.Module],
        stages: Sequence[nn.Module],
        head: Sequence[nn.Module],
        features: int,
        *,
        num_classes: int,
        input_bn: bool,
        conv_head: bool,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*([nn.BatchNorm2d(3)] if input_bn else []), *stem)
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(*head)
        self.classifier = (
            nn.Sequential(nn.Conv2d(features, num_classes, kernel_size=1), nn.Flatten())
            if conv_head
            else nn.Sequential(nn.Flatten(), nn.Linear(features, num_classes))
        )
        if not next(self.parameters()).is_meta:  # only counted: it has no numbers
            self._initialise()

    def _initialise(self) -> None:
        """Kaiming-uniform convolutions, Xavier-normal classifier, biases 0, as the authors."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.classifier:
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(module.weight)
        initialise_attention(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images N×3×H×W to logits N×num_classes."""
        logits: Tensor = self.classifier(self.head(self.stages(self.stem(x))))
        return logits


def _strides(stages: int, stem: Stem) -> list[int]:
    """1, 2, 2, …; at CIFAR's size the second stage does not stride either, nor does the stem."""
    return [1, 2 if stem == "imagenet" else 1, *[2] * (stages - 2)]


class MobileNetV1(MobileNet):
    """MobileNetV1 (Howard et al., 2017) with the MAF and SRAP authors' residual skips.

    Args:
        sites: makes the attention modules where they sit.
        num_classes, input_bn, conv_head: of ``MobileNet``.
        stem: ``imagenet`` strides in the first convolution, ``cifar`` does not.
        width: scales all widths, rounded to multiples of 8.
        residual: add a unit's input wherever the shapes allow; False is the 2017 original.
    """

    def __init__(
        self,
        sites: Sites,
        *,
        num_classes: int = 1000,
        stem: Stem = "imagenet",
        width: float = 1.0,
        residual: bool = True,
        input_bn: bool = True,
        conv_head: bool = True,
    ) -> None:
        plan = [[64], [128] * 2, [256] * 2, [512] * 6, [1024] * 2]
        inputs = make_divisible(32 * width)
        first = _conv(3, inputs, 3, 2 if stem == "imagenet" else 1, activation=_relu)
        stages = []
        strides = _strides(len(plan), stem)
        for stage, (widths, first_stride) in enumerate(zip(plan, strides, strict=True), 1):
            units: list[nn.Module] = []
            for index, nominal in enumerate(widths):
                stride = first_stride if index == 0 else 1
                outputs = make_divisible(nominal * width)
                layers = [
                    *_conv(inputs, inputs, 3, stride, depthwise=True, activation=_relu),
                    sites.expanded(inputs, stage, len(plan)),
                    *_conv(inputs, outputs, activation=_relu),
                ]
                skip = residual and stride == 1 and inputs == outputs
                units.append(Unit(layers, sites.block(outputs, stage, len(plan)), skip))
                inputs = outputs
            units.append(sites.after_stage(inputs, stage, len(plan)))
            stages.append(nn.Sequential(*units))
        super().__init__(
            first,
            stages,
            [nn.AdaptiveAvgPool2d(1)],
            inputs,
            num_classes=num_classes,
            input_bn=input_bn,
            conv_head=conv_head,
        )


def _inverted(
    sites: Sites,
    inputs: int,
    expanded: int,
    outputs: int,
    kernel: int,
    stride: int,
    activation: Activation,
    place: tuple[int, int],
    *,
    expand: bool,
    listed: bool = True,
) -> Unit:
    """An inverted residual: expand, depthwise, [attention], project, [attention], sum."""
    layers = [
        *(_conv(inputs, expanded, activation=activation) if expand else []),
        *_conv(expanded, expanded, kernel, stride, depthwise=True, activation=activation),
        sites.expanded(expanded, *place, listed=listed),
        *_conv(expanded, outputs),
    ]
    attention = sites.block(outputs, *place, listed=listed)
    return Unit(layers, attention, residual=stride == 1 and inputs == outputs)


class MobileNetV2(MobileNet):
    """MobileNetV2 (Sandler et al., CVPR 2018).

    Args:
        sites, num_classes, stem, width, input_bn, conv_head: as ``MobileNetV1``'s. The last
            convolution keeps its 1280 channels at widths below 1, as the original does.
        expand_first: the first block has its expanding 1×1 too, at ratio 1, as the MAF and
            SRAP authors have it; False is the original.
    """

    def __init__(
        self,
        sites: Sites,
        *,
        num_classes: int = 1000,
        stem: Stem = "imagenet",
        width: float = 1.0,
        expand_first: bool = True,
        input_bn: bool = True,
        conv_head: bool = True,
    ) -> None:
        plan = [[16], [24] * 2, [32] * 3, [64] * 4 + [96] * 3, [160] * 3 + [320]]
        inputs = make_divisible(32 * width)
        first = _conv(3, inputs, 3, 2 if stem == "imagenet" else 1, activation=_relu6)
        stages = []
        strides = _strides(len(plan), stem)
        for stage, (widths, first_stride) in enumerate(zip(plan, strides, strict=True), 1):
            units: list[nn.Module] = []
            for index, nominal in enumerate(widths):
                ratio = 1 if stage == 1 else 6
                outputs = make_divisible(nominal * width)
                units.append(
                    _inverted(
                        sites,
                        inputs,
                        ratio * inputs,
                        outputs,
                        3,
                        first_stride if index == 0 else 1,
                        _relu6,
                        (stage, len(plan)),
                        expand=expand_first or ratio > 1,
                    )
                )
                inputs = outputs
            units.append(sites.after_stage(inputs, stage, len(plan)))
            stages.append(nn.Sequential(*units))
        features = make_divisible(1280 * max(1.0, width))
        super().__init__(
            first,
            stages,
            [*_conv(inputs, features, activation=_relu6), nn.AdaptiveAvgPool2d(1)],
            features,
            num_classes=num_classes,
            input_bn=input_bn,
            conv_head=conv_head,
        )


@dataclass(frozen=True)
class V3Block:
    """A block of MobileNetV3: its widths, and whether the network lists attention for it."""

    expanded: int
    outputs: int
    attention: bool = False


@dataclass(frozen=True)
class V3Stage:
    """A stage of MobileNetV3; its first block strides."""

    kernel: int
    activation: Activation
    blocks: tuple[V3Block, ...]


def _v3_blocks(*blocks: tuple[int, int], attention: int = 0) -> tuple[V3Block, ...]:
    """Blocks of (expanded, outputs), the last ``attention`` of them with attention."""
    without = len(blocks) - attention
    return tuple(V3Block(*widths, attention=i >= without) for i, widths in enumerate(blocks))


# Howard et al., ICCV 2019, Tables 1 and 2
V3_LARGE = (
    V3Stage(3, _relu, _v3_blocks((16, 16))),
    V3Stage(3, _relu, _v3_blocks((64, 24), (72, 24))),
    V3Stage(5, _relu, _v3_blocks((72, 40), (120, 40), (120, 40), attention=3)),
    V3Stage(
        3,
        _hard_swish,
        _v3_blocks((240, 80), (200, 80), (184, 80), (184, 80), (480, 112), (672, 112), attention=2),
    ),
    V3Stage(5, _hard_swish, _v3_blocks((672, 160), (960, 160), (960, 160), attention=3)),
)
V3_SMALL = (
    V3Stage(3, _relu, _v3_blocks((16, 16), attention=1)),
    V3Stage(3, _relu, _v3_blocks((72, 24), (88, 24))),
    V3Stage(
        5,
        _hard_swish,
        _v3_blocks((96, 40), (240, 40), (240, 40), (120, 48), (144, 48), attention=5),
    ),
    V3Stage(5, _hard_swish, _v3_blocks((288, 96), (576, 96), (576, 96), attention=3)),
)


class MobileNetV3(MobileNet):
    """MobileNetV3 (Howard et al., ICCV 2019), with attention where the network lists its SE.

    Args:
        sites, num_classes, stem, width, input_bn, conv_head: as ``MobileNetV1``'s.
        size: ``large`` or ``small``.
    """

    def __init__(
        self,
        sites: Sites,
        *,
        size: Literal["large", "small"],
        num_classes: int = 1000,
        stem: Stem = "imagenet",
        width: float = 1.0,
        input_bn: bool = True,
        conv_head: bool = True,
    ) -> None:
        plan = V3_LARGE if size == "large" else V3_SMALL
        inputs = make_divisible(16 * width)
        first = _conv(3, inputs, 3, 2 if stem == "imagenet" else 1, activation=_hard_swish)
        # the small one strides in its first stage, too
        strides = _strides(5, stem)[5 - len(plan) :]
        stages = []
        for number, (stage, first_stride) in enumerate(zip(plan, strides, strict=True), 1):
            units: list[nn.Module] = []
            for index, block in enumerate(stage.blocks):
                expanded = make_divisible(block.expanded * width)
                outputs = make_divisible(block.outputs * width)
                units.append(
                    _inverted(
                        sites,
                        inputs,
                        expanded,
                        outputs,
                        stage.kernel,
                        first_stride if index == 0 else 1,
                        stage.activation,
                        (number, len(plan)),
                        expand=expanded != inputs,
                        listed=block.attention,
                    )
                )
                inputs = outputs
            units.append(sites.after_stage(inputs, number, len(plan)))
            stages.append(nn.Sequential(*units))
        last = make_divisible((960 if size == "large" else 576) * width)
        features = make_divisible((1280 if size == "large" else 1024) * width)
        head = [
            *_conv(inputs, last, activation=_hard_swish),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(last, features, kernel_size=1, bias=False),
            _hard_swish(),
        ]
        super().__init__(
            first,
            stages,
            head,
            features,
            num_classes=num_classes,
            input_bn=input_bn,
            conv_head=conv_head,
        )
