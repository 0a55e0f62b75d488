"""Optimizers, losses, clipping, averaged weights and input sizes do what their papers say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import attngrid
from attngrid.core.errors import InterruptedTrainingError
from attngrid.core.validation import validate
from attngrid.study.cell import Cell
from attngrid.study.recipe import Recipe
from attngrid.study.schema import Study
from attngrid.training import loop
from attngrid.training.optimization import make_optimizer, training_loss
from attngrid.training.run import run_cell
from data.test_images import write_pictures
from together import Stopping
from training.test_image_files import birds

CPU = torch.device("cpu")
RATE, DECAY = 0.01, 0.1
# Everything at once, on tiny networks and images.
MODERN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 144,
    "optimizer": "timm:lamb",
    "weight_decay": 0.02,
    "weight_decay_1d": False,
    "clip_grad_norm": 1.0,
    "ema": 0.8,
    "loss": "binary_cross_entropy",
    "label_smoothing": 0.1,
    "mixup": 0.2,
    "cutmix": 1.0,
    "schedule": {"kind": "cosine", "warmup_epochs": 1},
    "train_transforms": [
        {"kind": "random_crop", "padding": 1},
        {"kind": "timm_rand_augment", "config": "rand-m6-mstd0.5-inc1"},
        {"kind": "random_erasing"},
    ],
}


def recipe(**keys: Any) -> Recipe:
    required = {"epochs": 9, "batch_size": 8, "learning_rate": RATE, "schedule": {"kind": "step"}}
    return Recipe.model_validate({**required, "weight_decay": DECAY, **keys})


@pytest.fixture
def cell(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """Two epochs of two steps, on digits at 8×8."""
    monkeypatch.chdir(tmp_path)
    options = {"width": 0.0625, "classes": 2, "input_size": 8}
    tiny["grid"][0] |= {"attentions": ["se"], "seeds": [0], "options": options}
    tiny["recipes"]["tiny"] |= MODERN
    (found,) = validate(Study, tiny, "t").trainings.values()
    return found


# The step


def small_network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    return nn.Sequential(*layers).double()


def small_batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))) for _ in range(3)]


def trained(keys: Recipe) -> list[Tensor]:
    model = small_network()
    optimizer = make_optimizer(model, keys)
    for batch in small_batches():
        loop.train_step(model, [batch], optimizer, keys, epoch_progress=0.0, images=8)
    return list(model.parameters())


def by_hand(update: Any) -> list[Tensor]:
    """Call ``update(parameters, gradients, step)`` for each batch, without gradients."""
    model = small_network()
    parameters = list(model.parameters())
    for step, (x, y) in enumerate(small_batches(), 1):
        loss = nn.functional.cross_entropy(model(x).float(), y)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            update(parameters, gradients, step)
    return parameters


@pytest.mark.parametrize("decay_1d", [True, False])
def test_adamw_is_algorithm_2_of_its_paper(decay_1d: bool) -> None:
    """Loshchilov and Hutter (2019): θ ← θ - η (m̂ / (√v̂ + ε) + λ θ)."""
    beta1, beta2, eps = 0.8, 0.95, 1e-6
    moments: dict[int, tuple[Tensor, Tensor]] = {}

    def update(parameters: list[Tensor], gradients: list[Tensor], t: int) -> None:
        for number, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            m, v = moments.get(number, (torch.zeros_like(p), torch.zeros_like(p)))
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
            moments[number] = m, v
            direction = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)
            λ = DECAY if decay_1d or p.ndim > 1 else 0.0
            p -= RATE * (direction + λ * p)

    options = {"betas": [beta1, beta2], "eps": eps}
    keys = recipe(optimizer="adamw", optimizer_options=options, weight_decay_1d=decay_1d)
    for found, expected in zip(trained(keys), by_hand(update), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_sgd_without_decay_of_one_dimensional_parameters() -> None:
    def update(parameters: list[Tensor], gradients: list[Tensor], t: int) -> None:
        for p, g in zip(parameters, gradients, strict=True):
            p -= RATE * (g + (DECAY * p if p.ndim > 1 else 0))

    keys = recipe(momentum=0.0, weight_decay_1d=False)
    for found, expected in zip(trained(keys), by_hand(update), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["lamb", "lion", "lars", "nesterov"])
def test_an_optimizer_of_timm_is_that_of_timms_factory(name: str) -> None:
    model = small_network()
    theirs = create_optimizer_v2(model, name, lr=RATE, weight_decay=DECAY)
    for x, y in small_batches():
        theirs.zero_grad()
        nn.functional.cross_entropy(model(x).float(), y).backward()
        theirs.step()
    keys = recipe(optimizer=f"timm:{name}", weight_decay_1d=False)
    for found, expected in zip(trained(keys), model.parameters(), strict=True):
        # LAMB sums the gradient's norm over the groups, which are in another order
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_gradients_are_clipped_to_their_global_norm() -> None:
    """Pascanu et al. (2013): g ← g · min(1, limit / ‖g‖)."""
    limit = 0.05

    def update(parameters: list[Tensor], gradients: list[Tensor], t: int) -> None:
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        assert norm > limit
        for p, g in zip(parameters, gradients, strict=True):
            p -= RATE * g * limit / norm

    keys = recipe(momentum=0.0, weight_decay=0.0, clip_grad_norm=limit)
    for found, expected in zip(trained(keys), by_hand(update), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# The loss


def test_the_binary_cross_entropy_is_timms() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    shares = torch.rand(6, 5).softmax(1)
    for smoothing in (0.0, 0.1):
        keys = recipe(loss="binary_cross_entropy", label_smoothing=smoothing)
        theirs = BinaryCrossEntropy(smoothing=smoothing)
        torch.testing.assert_close(training_loss(logits, labels, keys), theirs(logits, labels))
        # timm expects mixed labels already smoothed
        smoothed = shares * (1 - smoothing) + smoothing / 5
        torch.testing.assert_close(training_loss(logits, shares, keys), theirs(logits, smoothed))


def test_all_mixed_classes_above_the_threshold_are_present() -> None:
    logits, shares = torch.randn(6, 5), torch.rand(6, 5).softmax(1)
    keys = recipe(loss="binary_cross_entropy", target_threshold=0.2)
    theirs = BinaryCrossEntropy(smoothing=0, target_threshold=0.2)
    torch.testing.assert_close(training_loss(logits, shares, keys), theirs(logits, shares))


def test_the_loss_of_a_mixed_image_is_the_mean_of_both_losses() -> None:
    torch.manual_seed(0)
    logits, one, other = torch.randn(6, 5), torch.arange(6) % 5, torch.arange(6) // 2
    shares = 0.7 * nn.functional.one_hot(one, 5) + 0.3 * nn.functional.one_hot(other, 5)
    keys = recipe(label_smoothing=0.1)
    expected = 0.7 * training_loss(logits, one, keys) + 0.3 * training_loss(logits, other, keys)
    torch.testing.assert_close(training_loss(logits, shares, keys), expected)


def test_a_mixed_image_is_correct_if_its_larger_share_is_found() -> None:
    shares = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.0, 1.0]])
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    keys, optimizer = recipe(), torch.optim.SGD([logits], lr=0.1)
    _, correct = loop.train_step(
        lambda x: logits, [(torch.zeros(3), shares)], optimizer, keys, epoch_progress=0, images=3
    )
    assert int(correct) == 2


# A whole training


@pytest.mark.slow
def test_tests_and_weights_are_those_of_the_moving_average(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """average ← 0.8 · average + 0.2 · weights after each step; the first step copies them."""
    steps: list[dict[str, Tensor]] = []
    update = torch.optim.swa_utils.AveragedModel.update_parameters

    def spy(average: Any, model: nn.Module) -> None:
        steps.append({name: value.clone() for name, value in model.state_dict().items()})
        update(average, model)

    monkeypatch.setattr(torch.optim.swa_utils.AveragedModel, "update_parameters", spy)
    metrics, _, model = loop.train(cell, CPU, Path("data"))
    assert len(steps) == 4
    _, test_batches = loop.make_batches(cell, Path("data"), CPU)
    expected = steps[0]
    for weights in steps[1:]:
        for name, value in weights.items():
            if value.is_floating_point():
                expected[name] = 0.8 * expected[name] + 0.2 * value
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    found = loop.evaluate(model.eval(), test_batches)
    assert found.items() <= metrics["curve"][-1].items()


@pytest.mark.slow
def test_a_training_with_every_key_stopped_at_any_step_ends_with_the_same_bits(cell: Cell) -> None:
    def train(checkpoints: Any = None) -> Any:
        metrics, _, model = loop.train(cell, CPU, Path("data"), checkpoints=checkpoints)
        return metrics, [value.tolist() for value in model.state_dict().values()]

    undisturbed = train()
    for after in (1, 3):  # within the first epoch, and after its test
        with pytest.raises(InterruptedTrainingError):
            train(Stopping(cell, after))
        assert train(Stopping(cell, 0)) == undisturbed
        Stopping(cell, 0).remove()


# The input size


@pytest.mark.slow
def test_a_folder_at_64_by_64_gives_such_images_to_the_network(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training and in tests, with the recipe of ImageNet at 224×224; counts and uses agree."""
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("birds"))
    birds(tiny, workers=0, epochs=1)
    tiny["grid"][0]["options"] |= {"input_size": 64}
    Path("study.yaml").write_text(yaml.safe_dump(tiny))
    study = validate(Study, tiny, "study.yaml")
    (cell,) = study.trainings.values()
    shapes: dict[bool, set[tuple[int, ...]]] = {True: set(), False: set()}

    def create(**arguments: Any) -> nn.Module:
        assert arguments["input_size"] == 64
        model = attngrid.create_model(**arguments)
        model.register_forward_pre_hook(
            lambda module, x: shapes[module.training].add(tuple(x[0].shape[1:]))
        )
        return model

    monkeypatch.setattr(loop, "create_model", create)
    run_cell(study, cell, cell.record)
    assert shapes == {True: {(3, 64, 64)}, False: {(3, 64, 64)}}
    trained = attngrid.load_model(cell.record)
    assert trained.transform(Image.new("RGB", (90, 200))).shape == (1, 3, 64, 64)
