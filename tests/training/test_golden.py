"""Golden losses: the training compared with a plain reference implementation of the recipe.

``train_step`` is compared in float64. The arguments that ``train`` passes to it are compared in
float32. Performance options are compared with each other in ``test_performance.py``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

import attngrid
from attngrid.core.validation import validate
from attngrid.data.loading import load
from attngrid.models.create import create_model
from attngrid.study.recipe import Recipe
from attngrid.study.schema import Study
from attngrid.training import loop

NETWORKS = [  # backbone, attention, seed
    ("resnet18", "none", 0),
    ("resnet18", "cbam", 1),
    ("mobilenet_v2", "se", 0),
    ("mobilenet_v3_small", "csm", 1),
]
STEPS, BATCH, CLASSES = 5, 16, 5
RATE, MOMENTUM, DECAY, SMOOTHING, WARMUP = 0.01, 0.9, 5e-4, 0.1, 0.3
RECIPE = Recipe.model_validate(
    {
        "epochs": 1,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "momentum": MOMENTUM,
        "weight_decay": DECAY,
        "label_smoothing": SMOOTHING,
        "schedule": {"kind": "one_cycle", "warmup": WARMUP},
    }
)
# Float64 rounds by 1e-16. A few steps through BatchNorm and ReLU amplify that.
TOLERANCE = 1e-9


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``Tensor.float`` keep float64, because losses and attention modules call it."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def schedule(done: float) -> float:
    """The factor of the learning rate after a fraction of the training."""
    return done / WARMUP if done < WARMUP else (1 - done) / (1 - WARMUP)


def make_batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(BATCH, 3, 8, 8, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def make_network(backbone: str, attention: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = attngrid.create_model(
        backbone, attention, stem="cifar", num_classes=CLASSES, width=0.125
    )
    return model.double().train()


@cache
def losses_of_train_step(backbone: str, attention: str, seed: int) -> list[float]:
    model = make_network(backbone, attention, seed)
    optimizer = loop.make_optimizer(model, RECIPE)
    losses = []
    for step, batch in enumerate(make_batches(seed)):
        (loss,), _ = loop.train_step(
            model, [batch], optimizer, RECIPE, epoch_progress=step / STEPS, images=BATCH
        )
        losses.append(float(loss) / BATCH)
    return losses


def reference_losses(
    backbone: str,
    attention: str,
    seed: int,
    *,
    rate: float = RATE,
    momentum: float = MOMENTUM,
    decay: float = DECAY,
    smoothing: float = SMOOTHING,
    loss_scale: float = 1.0,
    scheduled: bool = True,
    nesterov: bool = False,
) -> list[float]:
    """The loss of each step, by the textbook formulas."""
    model = make_network(backbone, attention, seed)
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    losses = []
    for step, (x, y) in enumerate(make_batches(seed)):
        log_p = model(x).log_softmax(1)
        nll = -log_p[torch.arange(BATCH), y]
        loss = ((1 - smoothing) * nll - smoothing * log_p.mean(1)).mean()
        gradients = torch.autograd.grad(loss_scale * loss, parameters)
        factor = schedule(step / STEPS) if scheduled else 1.0
        with torch.no_grad():
            for p, v, g in zip(parameters, velocity, gradients, strict=True):
                g = g + decay * p
                v.mul_(momentum).add_(g)
                p.sub_(rate * factor * (g + momentum * v if nesterov else v))
        losses.append(loss.item())
    return losses


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("backbone", "attention", "seed"), NETWORKS)
def test_every_step_has_the_loss_of_the_reference_implementation(
    backbone: str, attention: str, seed: int
) -> None:
    found = losses_of_train_step(backbone, attention, seed)
    assert found == pytest.approx(reference_losses(backbone, attention, seed), rel=TOLERANCE)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "error",
    [
        {"rate": 1.1 * RATE},
        {"momentum": 0.89},
        {"decay": 0.0},
        {"smoothing": 0.09},
        {"loss_scale": 0.1},
        {"scheduled": False},
        {"nesterov": True},
    ],
    ids=lambda error: next(iter(error)),
)
def test_an_error_in_the_step_changes_the_losses(error: dict[str, Any]) -> None:
    found = losses_of_train_step("resnet18", "none", 0)
    wrong = reference_losses("resnet18", "none", 0, **error)
    relative = max(abs(a / b - 1) for a, b in zip(found, wrong, strict=True))
    assert relative > 1e-6


@pytest.mark.usefixtures("float64")
def test_micro_batches_have_the_gradient_of_their_whole_batch() -> None:
    """The micro-batches differ in size; the model has no BatchNorm."""
    ((x, y), *_) = make_batches(0)
    gradients = []
    for sizes in ([BATCH], [10, 6]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, CLASSES))
        model.double()
        micro_batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
        optimizer = loop.make_optimizer(model, RECIPE)
        losses, _ = loop.train_step(
            model, micro_batches, optimizer, RECIPE, epoch_progress=0.0, images=BATCH
        )
        gradients.append([torch.stack(losses).sum(), *(p.grad for p in model.parameters())])
    for whole, accumulated in zip(*gradients, strict=True):
        torch.testing.assert_close(accumulated, whole, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_loop_passes_the_inputs_of_the_recipe_to_each_step(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, order, crops, flips, normalisation and learning rates of two epochs."""
    seed, epochs, batch, padding = 1, 2, 100, 2
    tiny["grid"][0] |= {
        "attentions": ["se"],
        "seeds": [seed],
        "options": {"width": 0.0625, "classes": 2},
    }
    tiny["recipes"]["tiny"] = RECIPE.model_dump(mode="json", exclude_defaults=True) | {
        "epochs": epochs,
        "batch_size": batch,
        "train_transforms": [{"kind": "random_crop", "padding": padding}, {"kind": "flip"}],
    }
    (cell,) = validate(Study, tiny, "t").cells
    calls: list[dict[str, Any]] = []
    train_step = loop.train_step

    def spy(
        network: Any, micro_batches: Any, optimizer: Any, recipe: Recipe, **options: Any
    ) -> Any:
        micro_batches, (group,) = list(micro_batches), optimizer.param_groups
        weights = [p.detach().clone() for p in group["params"]]
        losses, correct = train_step(network, micro_batches, optimizer, recipe, **options)
        calls.append(
            {
                "micro_batches": micro_batches,
                "weights": weights,
                "group": {k: v for k, v in group.items() if k != "params"},
                "options": options,
                "loss": sum(map(float, losses)),
                "correct": int(correct),
            }
        )
        return losses, correct

    monkeypatch.setattr(loop, "train_step", spy)
    metrics, *_ = loop.train(cell, torch.device("cpu"), Path("data"))

    train, _ = load("digits", Path("data"), download=False, classes=2)
    pixels = train.pixels_NCHW.numpy()
    mean = torch.tensor(pixels.mean((0, 2, 3)), dtype=torch.float32)[:, None, None]
    std = torch.tensor(pixels.std((0, 2, 3)), dtype=torch.float32)[:, None, None]
    padded = pad(train.pixels_NCHW, (padding,) * 4)
    generator = torch.Generator().manual_seed(seed)
    count, side = len(train), train.pixels_NCHW.shape[-1]
    steps = -(-count // batch)
    assert count % batch > 1  # the last batch is a smaller one
    assert len(calls) == epochs * steps
    torch.manual_seed(seed)
    model = create_model(**cell.model_arguments())
    for found, expected in zip(calls[0]["weights"], model.parameters(), strict=True):
        assert torch.equal(found, expected)

    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator)
        flipped = torch.randint(2, (count, 1), generator=generator)
        down = torch.randint(2 * padding + 1, (count, 1), generator=generator)
        right = torch.randint(2 * padding + 1, (count, 1), generator=generator)
        epoch_calls = calls[epoch * steps : (epoch + 1) * steps]
        for step, call in enumerate(epoch_calls):
            places = range(step * batch, min(count, (step + 1) * batch))
            cropped = []
            for place in places:
                top, left = int(down[place]), int(right[place])
                crop = padded[order[place], :, top : top + side, left : left + side]
                cropped.append(crop.flip(-1) if flipped[place] else crop)
            ((images, labels),) = call["micro_batches"]
            # The statistics are sums of some 50,000 pixels, in float64; then three operations.
            torch.testing.assert_close(
                images, (torch.stack(cropped).float() - mean) / std, rtol=1e-6, atol=1e-6
            )
            assert torch.equal(labels, train.labels_N[order[places.start : places.stop]])
            progress = epoch + step / steps
            assert call["options"] == {
                "epoch_progress": pytest.approx(progress, rel=1e-12),
                "images": len(places),
                "precision": "float32",
                "processes": 1,
            }
            group = call["group"]
            assert group["lr"] == pytest.approx(RATE * schedule(progress / epochs), rel=1e-12)
            assert (group["momentum"], group["weight_decay"]) == (MOMENTUM, DECAY)
            assert not group["nesterov"]
            assert group["dampening"] == 0
        line = metrics["curve"][epoch]
        loss = sum(call["loss"] for call in epoch_calls) / count
        assert line["train_loss"] == pytest.approx(loss, rel=1e-12)
        correct = sum(call["correct"] for call in epoch_calls)
        assert line["train_top1_error"] == pytest.approx(100 * (1 - correct / count), rel=1e-12)
