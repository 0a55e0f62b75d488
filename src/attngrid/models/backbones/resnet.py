"""ResNet, WideResNet and ResNeXt with an attention module in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from attngrid.core.errors import ConfigError
from attngrid.models.onednn import Conv2d
from attngrid.models.placement import Sites, initialise_attention

StrideOn = Literal["1x1", "3x3"]


def _conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Block(nn.Module):
    """``ReLU(shortcut(x) + attention(residual(x)))``: attention on the last BatchNorm's output."""

    def __init__(self, residual: nn.Sequential, attention: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.residual = residual
        self.attention = attention
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.attention(self.residual(x)) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """The ResNet family (He et al., CVPR 2016; ResNeXt: Xie et al., CVPR 2017).

    Args:
        sites: makes the attention modules where they sit.
        block: two 3×3 convolutions (``basic``) or 1×1, 3×3, 1×1 (``bottleneck``).
        depths: blocks in each of the four stages.
        num_classes: outputs of the classifier.
        stem: ``imagenet`` is a 7×7/2 convolution and a 3×3/2 max pool, ``cifar`` a 3×3/1
            convolution and no pool.
        width: scales the stages' widths, int(64·width) and so on; the stem keeps 64.
        widen: the same, as part of the backbone's name (WideResNet).
        groups, group_width: of the 3×3 convolution (ResNeXt).
        stride_on: which convolution of a bottleneck strides. The original ResNet's first 1×1
            is what gives the 3.858 GFLOPs of CBAM's Table 4; the 3×3 gives 4.089.
    """

    def __init__(
        self,
        sites: Sites,
        *,
        block: Literal["basic", "bottleneck"],
        depths: Sequence[int],
        num_classes: int = 1000,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        width: float = 1.0,
        widen: float = 1.0,
        groups: int = 1,
        group_width: int = 64,
        stride_on: StrideOn = "1x1",
    ) -> None:
        super().__init__()
        expansion = 1 if block == "basic" else 4

        def residual(inputs: int, planes: int, stride: int) -> nn.Sequential:
            relu = nn.ReLU(inplace=True)
            if block == "basic":
                first, second = _conv_bn(inputs, planes, 3, stride), _conv_bn(planes, planes, 3)
                return nn.Sequential(*first, relu, *second)
            inner = int(planes * group_width / 64) * groups
            if inner < 1:
                raise ConfigError(f"width {width} leaves no channels in a group of {groups}")
            strides = (stride, 1) if stride_on == "1x1" else (1, stride)
            return nn.Sequential(
                *_conv_bn(inputs, inner, 1, strides[0]),
                relu,
                *_conv_bn(inner, inner, 3, strides[1], groups),
                relu,
                *_conv_bn(inner, planes * expansion, 1),
            )

        def stage(number: int, inputs: int, planes: int, depth: int) -> nn.Sequential:
            outputs = planes * expansion
            layers: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if number > 1 and index == 0 else 1
                shortcut: nn.Module = nn.Identity()
                if stride != 1 or inputs != outputs:
                    shortcut = nn.Sequential(*_conv_bn(inputs, outputs, 1, stride))
                attention = sites.any_block(outputs, number, len(depths))
                layers.append(Block(residual(inputs, planes, stride), attention, shortcut))
                inputs = outputs
            layers.append(sites.after_stage(outputs, number, len(depths)))
            return nn.Sequential(*layers)

        if stem == "imagenet":
            layers = [*_conv_bn(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]
        else:
            layers = [*_conv_bn(3, 64, 3), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*layers)
        stages, inputs = [], 64
        for number, depth in enumerate(depths, 1):
            planes = int(32 * 2**number * widen * width)
            if planes < 1:
                raise ConfigError(f"width {width} leaves no channels in stage {number}")
            stages.append(stage(number, inputs, planes, depth))
            inputs = planes * expansion
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, num_classes)
        if not next(self.parameters()).is_meta:  # only counted: it has no numbers
            self._initialise()

    def _initialise(self) -> None:
        """Kaiming-normal convolutions (fan-out) and classifier, all biases 0, as CBAM's authors."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.kaiming_normal_(self.classifier.weight)
        initialise_attention(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images N×3×H×W to logits N×num_classes."""
        features_NCHW = self.stages(self.stem(x))
        logits: Tensor = self.classifier(features_NCHW.mean((2, 3)))
        return logits
