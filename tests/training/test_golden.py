"""Golden losses: four networks against a plain PyTorch transcription of a training.

A change of the loop, the optimizer, the schedule or the precision that changes a loss is seen. The
expected losses are computed on the same machine in float64, and the tolerance is the rounding error
that float32 makes there. So the test holds on every processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attngrid.core.validation import validate
from attngrid.data.images import channel_statistics, load
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
RATE, BATCH, MOMENTUM, DECAY, SMOOTHING = 2e-4, 75, 0.9, 5e-4, 0.1  # four steps an epoch
# Relative rounding errors. MARGIN times the measured one is allowed, at least the smallest: ReLU
# amplifies a rounding error of 1e-7 up to 1e-3 within four steps. A measured error above the
# largest would make the comparison meaningless.
MARGIN, SMALLEST, LARGEST = 20, 3e-3, 3e-2


def cell_of(tiny: dict[str, Any], backbone: str, attention: str, seed: int) -> Cell:
    tiny["grid"][0] |= {"backbones": [backbone], "attentions": [attention], "seeds": [seed]}
    tiny["grid"][0]["options"] = {"width": 0.125, "classes": 2}
    tiny["recipes"]["tiny"] = {
        "epochs": 1,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "momentum": MOMENTUM,
        "weight_decay": DECAY,
        "label_smoothing": SMOOTHING,
        "schedule": {"kind": "one_cycle", "warmup": 0.2},
    }
    (cell,) = validate(Study, tiny, "t").cells
    return cell


def loss_of(cell: Cell) -> float:
    metrics, _ = loop.train(cell, torch.device("cpu"), Path("data"), progress=lambda *_: None)
    return float(metrics["curve"][0]["train_loss"])


def transcription(cell: Cell, dtype: torch.dtype, nudge: float = 0.0, rate: float = RATE) -> float:
    """The mean loss of an epoch, as a textbook computes it."""
    torch.manual_seed(cell.seed)
    train, _ = load("digits", Path("data"), download=False, classes=2)
    mean_C, std_C = channel_statistics(train)
    x = (train.pixels_NCHW.to(dtype) - mean_C[:, None, None]) / std_C[:, None, None]
    x, y = x * (1 + nudge), train.labels_N
    model = create_model(**cell.model_arguments()).to(dtype).train()
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(cell.seed))
    batches = order.split(BATCH)
    total = 0.0
    for step, batch in enumerate(batches):
        log_p = model(x[batch]).log_softmax(1)
        nll = -log_p[torch.arange(len(batch)), y[batch]]
        loss = ((1 - SMOOTHING) * nll - SMOOTHING * log_p.mean(1)).mean()
        gradients = torch.autograd.grad(loss, parameters)
        done = step / len(batches)
        factor = done / 0.2 if done < 0.2 else (1 - done) / 0.8
        with torch.no_grad():
            for p, v, g in zip(parameters, velocity, gradients, strict=True):
                v.mul_(MOMENTUM).add_(g + DECAY * p)
                p.sub_(rate * factor * v)
        total += loss.item() * len(batch)
    return total / len(x)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("backbone", "attention"), NETWORKS)
def test_golden_losses(tiny: dict[str, Any], backbone: str, attention: str, seed: int) -> None:
    cell = cell_of(tiny, backbone, attention, seed)
    found, exact = loss_of(cell), transcription(cell, torch.float64)
    rounded = [transcription(cell, torch.float32, nudge) for nudge in (0.0, 1e-7, -1e-7)]
    tolerance = max(SMALLEST, MARGIN * max(abs(loss / exact - 1) for loss in rounded))
    assert tolerance < LARGEST
    assert found == pytest.approx(exact, rel=tolerance)


def test_a_wrong_learning_rate_is_seen(tiny: dict[str, Any]) -> None:
    cell = cell_of(tiny, "resnet18", "none", 0)
    wrong = transcription(cell, torch.float64, rate=5 * RATE)
    assert loss_of(cell) != pytest.approx(wrong, rel=SMALLEST)
