"""MobileNetV1 (Howard et al., 2017), V2 (Sandler et al., CVPR 2018), V3 (Howard et al., ICCV 2019).

The defaults are the networks of the MAF and SRAP authors; options give the originals.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn

from attngrid.models.attention.cbam import SpatialGate
from attngrid.models.attention.mlp import make_divisible
from attngrid.models.backbones.layers import Activation, Stem, conv_bn, initialise, relu
from attngrid.models.placement import Sites
from attngrid.models.registry import Initialisation

relu6: Activation = partial(nn.ReLU6, inplace=True)
hard_swish: Activation = partial(nn.Hardswish, inplace=True)


class Block(NamedTuple):
    """A row of the papers' tables, at width 1; ``attention``: has a module (V3: SE) by default."""

    expanded: int | None  # channels of the depthwise convolution; None: 6 times the input's
    outputs: int
    attention: bool = True


class Stage(NamedTuple):
    """Blocks with the same depthwise kernel and activation; the first block has the stride."""

    kernel: int
    activation: Activation
    blocks: list[Block]


class Design(NamedTuple):
    """A network: ``head`` has the channels of the 1×1 convolutions before the classifier."""

    first: int
    activation: Activation
    stages: list[Stage]
    head: tuple[int, ...]


_V2 = ([24] * 2, [32] * 3, [64] * 4 + [96] * 3, [160] * 3 + [320])
_LARGE_80 = [Block(expanded, 80, False) for expanded in (240, 200, 184, 184)]
_SMALL_40 = [Block(96, 40), Block(240, 40), Block(240, 40)]
DESIGNS = {
    "v1": Design(
        32,
        relu,
        [
            Stage(3, relu, [Block(32, 64)]),
            Stage(3, relu, [Block(64, 128), Block(128, 128)]),
            Stage(3, relu, [Block(128, 256), Block(256, 256)]),
            Stage(3, relu, [Block(256, 512), *[Block(512, 512)] * 5]),
            Stage(3, relu, [Block(512, 1024), Block(1024, 1024)]),
        ],
        (),
    ),
    "v2": Design(
        32,
        relu6,
        [
            Stage(3, relu6, [Block(32, 16)]),
            *(Stage(3, relu6, [Block(None, w) for w in stage]) for stage in _V2),
        ],
        (1280,),
    ),
    "v3_large": Design(
        16,
        hard_swish,
        [
            Stage(3, relu, [Block(16, 16, False)]),
            Stage(3, relu, [Block(64, 24, False), Block(72, 24, False)]),
            Stage(5, relu, [Block(72, 40), Block(120, 40), Block(120, 40)]),
            Stage(3, hard_swish, [*_LARGE_80, Block(480, 112), Block(672, 112)]),
            Stage(5, hard_swish, [Block(672, 160), Block(960, 160), Block(960, 160)]),
        ],
        (960, 1280),
    ),
    "v3_small": Design(
        16,
        hard_swish,
        [
            Stage(3, relu, [Block(16, 16)]),
            Stage(3, relu, [Block(72, 24, False), Block(88, 24, False)]),
            Stage(5, hard_swish, [*_SMALL_40, Block(120, 48), Block(144, 48)]),
            Stage(5, hard_swish, [Block(288, 96), Block(576, 96), Block(576, 96)]),
        ],
        (576, 1024),
    ),
}


class InvertedResidual(nn.Module):
    """[Expand], depthwise, [attention], project, [attention], plus x if ``residual``.

    Without expansion and ``linear`` this is V1's depthwise-separable block.
    """

    def __init__(
        self,
        sites: Sites,
        stage: Stage,
        channels: tuple[int, int, int],
        stride: int,
        place: tuple[int, int],
        *,
        listed: bool,
        expand: bool,
        linear: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        (inputs, expanded, outputs), act = channels, stage.activation
        layers = conv_bn(inputs, expanded, activation=act) if expand else []
        layers += conv_bn(expanded, expanded, stage.kernel, stride, groups=expanded, activation=act)
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
        sites: builds the attention modules.
        version: a key of ``DESIGNS``.
        num_classes: outputs of the classifier.
        stem: ``imagenet`` has stride 2 in the first convolution and in the last four stages;
            ``cifar`` has stride 1 in the first convolution and in the first of these stages.
        width: factor on all widths, which are rounded to multiples of 8.
        input_bn, conv_head: a BatchNorm on the image; a 1×1 convolution as classifier. Not in the
            originals.
        residual: V1 adds a block's input to its output if their shapes agree. Not in the original.
        expand_first: V2's and V3's first block expands, too. Not in the originals.
        head_attention: V3-small has attention on its final convolution, too. Howard et al. have it
            in their table, torchvision has not.
        initialisation: ``family``, ``authors`` or ``pytorch``, see ``_initialise``.
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
        head_attention: bool = True,
        initialisation: Initialisation = "family",
    ) -> None:
        super().__init__()
        design = DESIGNS[version]
        stride, count = 2 if stem == "imagenet" else 1, len(design.stages)
        inputs = make_divisible(design.first * width)
        first = conv_bn(3, inputs, 3, stride, activation=design.activation)
        self.stem = nn.Sequential(*([nn.BatchNorm2d(3)] if input_bn else []), *first)
        stages = []
        strides = [1, stride, 2, 2, 2][-count:]
        for number, (stage, stride) in enumerate(zip(design.stages, strides, strict=True), 1):
            layers: list[nn.Module] = []
            for index, block in enumerate(stage.blocks):
                wide = block.expanded
                expanded = 6 * inputs if wide is None else make_divisible(wide * width)
                outputs = make_divisible(block.outputs * width)
                unit = InvertedResidual(
                    sites,
                    stage,
                    (inputs, expanded, outputs),
                    stride if index == 0 else 1,
                    (number, count),
                    listed=block.attention,
                    expand=expanded != inputs or (version != "v1" and expand_first),
                    linear=version != "v1",
                    residual=residual,
                )
                layers.append(unit)
                inputs = outputs
            stages.append(nn.Sequential(*layers, sites.after_stage(inputs, number, count)))
        self.stages = nn.Sequential(*stages)
        # At widths below 1, V2's last convolution keeps its 1280 channels, as in the original.
        scale = max(1.0, width) if version == "v2" else width
        widths = [make_divisible(channels * scale) for channels in design.head]
        head = conv_bn(inputs, widths[0], activation=design.activation) if widths else []
        if version == "v3_small" and head_attention:
            head.append(sites.head(widths[0], count))
        head.append(nn.AdaptiveAvgPool2d(1))
        if len(widths) == 2:
            head += [nn.Conv2d(widths[0], widths[1], 1, bias=False), design.activation()]
        self.head, features = nn.Sequential(*head), [inputs, *widths][-1]
        self.classifier = (
            nn.Sequential(nn.Conv2d(features, num_classes, kernel_size=1), nn.Flatten())
            if conv_head
            else nn.Sequential(nn.Flatten(), nn.Linear(features, num_classes))
        )
        self._initialise(initialisation)

    def _initialise(self, initialisation: Initialisation) -> None:
        """Draw the weights.

        ``authors`` leaves linear layers, the classifier's bias and CBAM's spatial gate at PyTorch's
        default, as the MAF authors' code does; ``pytorch`` leaves all.
        """
        kept: list[nn.Module] = []
        if initialisation == "authors":
            kept = [m for m in self.modules() if isinstance(m, nn.Linear | SpatialGate)]
            kept += self.classifier.modules()
        if initialisation != "pytorch":
            weights = (nn.init.kaiming_uniform_, nn.init.xavier_normal_)
            initialise(self, self.classifier, *weights, kept=kept)

    def forward(self, x: Tensor) -> Tensor:
        """Images N×3×H×W to logits N×num_classes."""
        logits: Tensor = self.classifier(self.head(self.stages(self.stem(x))))
        return logits
