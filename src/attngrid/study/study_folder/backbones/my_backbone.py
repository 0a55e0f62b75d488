"""An example of a backbone: three stages of one residual block each."""

import torch
from torch import nn

from attngrid.models.placement import Sites


class MyBackbone(nn.Module):
    """Maps N×3×H×W images to N×num_classes logits.

    Args:
        sites: builds the attention module, or the identity, for each place.
        num_classes: outputs of the classifier.
        stem: ``imagenet`` for large images, ``cifar`` for small ones.
        width: factor on the widths.
    """

    def __init__(self, sites: Sites, *, num_classes: int, stem: str, width: float) -> None:
        super().__init__()
        inputs = 3
        layers: list[nn.Module] = []
        for stage in (1, 2, 3):
            outputs = max(1, int(32 * 2**stage * width))
            stride = 1 if stem == "cifar" and stage == 1 else 2
            attention = sites.any_block(outputs, stage, stages=3)
            layers += [
                *_convolution(inputs, outputs, stride),
                nn.ReLU(inplace=True),
                Residual(nn.Sequential(*_convolution(outputs, outputs), attention)),
                sites.after_stage(outputs, stage, stages=3),
            ]
            inputs = outputs
        self.stages = nn.Sequential(*layers)  # the attention maps use its output
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.stages(x).mean((2, 3)))
        return logits


class Residual(nn.Module):
    """``ReLU(x + branch(x))``; the attention module is the last layer of the branch."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.branch(x))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]
