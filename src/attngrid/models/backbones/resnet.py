"""ResNet, WideResNet and ResNeXt with attention modules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from attngrid.models.backbones.layers import Stem, conv_bn, initialise, relu
from attngrid.models.placement import Sites
from attngrid.models.registry import Initialisation


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
        sites: builds the attention modules.
        block: two 3×3 convolutions (``basic``) or 1×1, 3×3, 1×1 (``bottleneck``).
        depths: blocks in each of the four stages.
        num_classes: outputs of the classifier.
        stem: ``imagenet`` is a 7×7/2 convolution and a 3×3/2 max pool, ``cifar`` a 3×3/1
            convolution and no pool.
        width: factor on the widths of the stages, int(64·width) and so on; the stem keeps 64.
        widen: a second such factor, which is part of the backbone's name (WideResNet).
        groups, group_width: number and width of the groups in the 3×3 convolution (ResNeXt).
        stride_on: the convolution of a bottleneck that has the stride. The first 1×1, as in the
            original ResNet, gives the 3.858 GFLOPs of CBAM's Table 4; the 3×3 gives 4.089.
        initialisation: ``authors`` leaves the shortcuts' convolutions at PyTorch's default, as the
            CBAM authors' code does; ``pytorch`` leaves all.
    """

    def __init__(
        self,
        sites: Sites,
        *,
        block: Literal["basic", "bottleneck"],
        depths: Sequence[int],
        num_classes: int = 1000,
        stem: Stem = "imagenet",
        width: float = 1.0,
        widen: float = 1.0,
        groups: int = 1,
        group_width: int = 64,
        stride_on: Literal["1x1", "3x3"] = "1x1",
        initialisation: Initialisation = "family",
    ) -> None:
        super().__init__()
        expansion = 1 if block == "basic" else 4

        def residual(inputs: int, planes: int, stride: int) -> list[nn.Module]:
            if block == "basic":
                return [
                    *conv_bn(inputs, planes, 3, stride, activation=relu),
                    *conv_bn(planes, planes, 3),
                ]
            inner = int(planes * group_width / 64) * groups
            first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
            return [
                *conv_bn(inputs, inner, 1, first, activation=relu),
                *conv_bn(inner, inner, 3, second, groups=groups, activation=relu),
                *conv_bn(inner, planes * expansion),
            ]

        layers = conv_bn(3, 64, *((7, 2) if stem == "imagenet" else (3, 1)), activation=relu)
        if stem == "imagenet":
            layers.append(nn.MaxPool2d(3, 2, padding=1))
        self.stem = nn.Sequential(*layers)
        stages, inputs = [], 64
        for stage, depth in enumerate(depths, 1):
            planes = int(32 * 2**stage * widen * width)
            outputs = planes * expansion
            layers = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                same = stride == 1 and inputs == outputs
                shortcut = [] if same else conv_bn(inputs, outputs, 1, stride)
                attention = sites.any_block(outputs, stage, len(depths))
                branch = nn.Sequential(*residual(inputs, planes, stride))
                layers.append(Block(branch, attention, nn.Sequential(*shortcut)))
                inputs = outputs
            layers.append(sites.after_stage(outputs, stage, len(depths)))
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, num_classes)
        kept: list[nn.Module] = []
        if initialisation == "authors":
            blocks = [m for m in self.modules() if isinstance(m, Block)]
            kept = [layer for block in blocks for layer in block.shortcut.modules()]
        if initialisation != "pytorch":
            fan_out = partial(nn.init.kaiming_normal_, mode="fan_out")
            initialise(self, self.classifier, fan_out, nn.init.kaiming_normal_, kept=kept)

    def forward(self, x: Tensor) -> Tensor:
        """Images N×3×H×W to logits N×num_classes."""
        features_NCHW = self.stages(self.stem(x))
        logits: Tensor = self.classifier(features_NCHW.mean((2, 3)))
        return logits
