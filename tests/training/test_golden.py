"""Golden losses: four networks against a plain PyTorch transcription, written out here.

A change of the loop, the optimizer, the schedule or the layout that changes a loss is seen. The
expected values are computed on the same machine, so that they hold on every processor.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attngrid.core.validation import validate
from attngrid.data.images import load
from attngrid.models.create import create_model
from attngrid.study.cell import Cell
from attngrid.study.schema import Study
from attngrid.training import loop

NETWORKS = [
    ("resnet18", "none"),
    ("resnet18", "cbam"),
    ("mobilenet_v2", "se"),
    ("mobilenet_v3_small", "csm"),
]
EPOCHS, BATCH, RATE, MOMENTUM, DECAY, SMOOTHING = 2, 96, 0.002, 0.9, 5e-4, 0.1
# The two compute the same sums in another order and another layout. A float32 rounds to 6e-8;
# a step of a network amplifies that some hundred times.
TOLERANCE = 1e-5


def cell_of(tiny: dict[str, Any], backbone: str, attention: str, seed: int) -> Cell:
    tiny["grid"][0] |= {"backbones": [backbone], "attentions": [attention], "seeds": [seed]}
    tiny["grid"][0]["options"] = {"width": 0.25, "classes": 2}
    tiny["recipes"]["tiny"] = {
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "momentum": MOMENTUM,
        "weight_decay": DECAY,
        "label_smoothing": SMOOTHING,
        "schedule": {"kind": "one_cycle", "warmup": 0.2},
    }
    (cell,) = validate(Study, tiny, "t").cells
    return cell


def transcription(cell: Cell) -> list[tuple[float, float]]:
    """Training and test loss of each epoch, in the words of a textbook."""
    torch.manual_seed(cell.seed)
    train, test = load("digits", Path("data"), download=False, classes=2)
    pixels = train.pixels_NCHW.double()
    mean = pixels.mean((0, 2, 3), keepdim=True)
    std = pixels.std((0, 2, 3), keepdim=True, correction=0)

    def normalised(images: Any) -> Tensor:
        return ((images.pixels_NCHW - mean) / std).float()

    train_x, test_x = normalised(train), normalised(test)
    train_y, test_y = train.labels_N.long(), test.labels_N.long()
    model = create_model(**cell.model_arguments())
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    order = torch.Generator().manual_seed(cell.seed)
    steps = math.ceil(len(train_x) / BATCH)
    curve = []
    for epoch in range(EPOCHS):
        model.train()
        total = 0.0
        permutation = torch.randperm(len(train_x), generator=order)
        for step, batch in enumerate(permutation.split(BATCH)):
            done = (epoch + step / steps) / EPOCHS
            rate = RATE * (done / 0.2 if done < 0.2 else (1 - done) / 0.8)
            log_p = model(train_x[batch]).log_softmax(1)
            hit = log_p[torch.arange(len(batch)), train_y[batch]]
            loss = -((1 - SMOOTHING) * hit + SMOOTHING * log_p.mean(1)).mean()
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, v, g in zip(parameters, velocity, gradients, strict=True):
                    v.mul_(MOMENTUM).add_(g + DECAY * p)
                    p.sub_(rate * v)
            total += loss.item() * len(batch)
        model.eval()
        with torch.no_grad():
            test_loss = nn.functional.cross_entropy(model(test_x), test_y)
        curve.append((total / len(train_x), test_loss.item()))
    return curve


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("backbone", "attention"), NETWORKS)
def test_golden_losses(tiny: dict[str, Any], backbone: str, attention: str, seed: int) -> None:
    cell = cell_of(tiny, backbone, attention, seed)
    metrics, _ = loop.train(cell, torch.device("cpu"), Path("data"), progress=lambda *_: None)
    found = [(line["train_loss"], line["test_loss"]) for line in metrics["curve"]]
    expected = transcription(cell)
    print(
        [
            abs(a / b - 1)
            for x, y in zip(found, expected, strict=True)
            for a, b in zip(x, y, strict=True)
        ]
    )
    assert found == [pytest.approx(losses, rel=TOLERANCE) for losses in expected]
