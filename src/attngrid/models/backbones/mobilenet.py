"""What MobileNetV1, V2 and V3 share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

from torch import Tensor, nn

from attngrid.models.placement import Sites, initialise_attention

Stem = Literal["imagenet", "cifar"]
Activation = Callable[[], nn.Module]
relu: Activation = partial(nn.ReLU, inplace=True)
relu6: Activation = partial(nn.ReLU6, inplace=True)
hard_swish: Activation = partial(nn.Hardswish, inplace=True)

Plan = TypeVar("Plan")
# Makes a block from its entry in the plan, its input channels, its stride and its stage (from 1);
# returns the block and its output channels.
MakeBlock = Callable[[Plan, int, int, int], tuple[nn.Module, int]]


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
    padding = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    return [*layers, activation()] if activation else layers


class Unit(nn.Module):
    """``attention(layers(x))``, plus x if ``residual``."""

    def __init__(self, layers: Sequence[nn.Module], attention: nn.Module, residual: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.attention = attention
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(self.layers(x))
        return x + out if self.residual else out


def inverted_residual(
    sites: Sites,
    widths: tuple[int, int, int],
    kernel: int,
    stride: int,
    activation: Activation,
    place: tuple[int, int],
    *,
    expand: bool = True,
    listed: bool = True,
) -> Unit:
    """Expand, depthwise, [attention], project, [attention], sum (Sandler et al., CVPR 2018).

    Args:
        sites: makes the attention modules.
        widths: channels of the input, expanded, and of the output.
        kernel: of the depthwise convolution.
        stride: of the same.
        activation: after the first two convolutions.
        place: the stage, from 1, and the number of stages.
        expand: have the expanding convolution.
        listed: the network itself has attention in this block.
    """
    inputs, expanded, outputs = widths
    layers = conv_bn(inputs, expanded, activation=activation) if expand else []
    layers += conv_bn(expanded, expanded, kernel, stride, groups=expanded, activation=activation)
    layers.append(sites.expanded(expanded, *place, listed=listed))
    layers += conv_bn(expanded, outputs)
    attention = sites.block(outputs, *place, listed=listed)
    return Unit(layers, attention, residual=stride == 1 and inputs == outputs)


class MobileNet(nn.Module):
    """Stem, stages, head and classifier.

    Args:
        sites: makes the attention modules.
        first_width: channels of the first convolution, 3×3, with ``activation``.
        plan: an entry for each block of each stage, from which ``make_block`` makes it.
        make_head: from the last stage's channels to the layers up to the classifier, with the
            pooling, and the channels of the classifier's input.
        num_classes: outputs.
        stem: ``imagenet`` strides in the first convolution and, of five stages, in all but the
            first; ``cifar`` neither in the first convolution nor in the second stage.
        input_bn: a BatchNorm on the image, as the MAF and SRAP authors have it.
        conv_head: a 1×1 convolution as classifier, as the same authors have it.
    """

    def __init__(
        self,
        sites: Sites,
        first_width: int,
        activation: Activation,
        plan: Sequence[Sequence[Plan]],
        make_block: MakeBlock[Plan],
        make_head: Callable[[int], tuple[list[nn.Module], int]],
        *,
        num_classes: int = 1000,
        stem: Stem = "imagenet",
        input_bn: bool = True,
        conv_head: bool = True,
    ) -> None:
        super().__init__()
        stride = 2 if stem == "imagenet" else 1
        strides = [1, stride, 2, 2, 2][-len(plan) :]
        first = conv_bn(3, first_width, 3, stride, activation=activation)
        self.stem = nn.Sequential(*([nn.BatchNorm2d(3)] if input_bn else []), *first)
        stages, channels = [], first_width
        for number, (blocks, first_stride) in enumerate(zip(plan, strides, strict=True), 1):
            layers = []
            for index, entry in enumerate(blocks):
                stride = first_stride if index == 0 else 1
                block, channels = make_block(entry, channels, stride, number)
                layers.append(block)
            layers.append(sites.after_stage(channels, number, len(plan)))
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        head, features = make_head(channels)
        self.head = nn.Sequential(*head)
        self.classifier = (
            nn.Sequential(nn.Conv2d(features, num_classes, kernel_size=1), nn.Flatten())
            if conv_head
            else nn.Sequential(nn.Flatten(), nn.Linear(features, num_classes))
        )
        if not next(self.parameters()).is_meta:
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
