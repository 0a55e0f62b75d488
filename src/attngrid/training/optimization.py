"""The optimizer, the loss and the averaged weights of a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    one_hot,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attngrid.core.errors import ConfigError
from attngrid.study.recipe import TIMM, Recipe


def make_optimizer(
    model: nn.Module, recipe: Recipe, *, fused: bool = False
) -> torch.optim.Optimizer:
    """The recipe's optimizer; ``train_step`` sets its learning rate.

    Without ``weight_decay_1d``, parameters of one dimension or none, such as biases and the weights
    of BatchNorm, have no weight decay. ``fused`` has no effect on timm's optimizers.

    Raises:
        ConfigError: an optimizer that timm does not know, or wrong options.
    """
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if not recipe.weight_decay_1d:
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
    try:
        make: Any
        options: dict[str, Any] = {"fused": fused}
        if recipe.optimizer == "sgd":
            make = torch.optim.SGD
            options |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
        elif recipe.optimizer == "adamw":
            make = torch.optim.AdamW
        else:
            from timm.optim import get_optimizer_class  # type: ignore[attr-defined]

            make, options = get_optimizer_class(recipe.optimizer.removeprefix(TIMM)), {}
        settings = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
        optimizer: torch.optim.Optimizer = make(
            groups, **settings, **options, **recipe.optimizer_options
        )
    except Exception as error:  # wrong names and options raise several types
        raise ConfigError(f"optimizer: {recipe.optimizer}: {error}") from None
    if recipe.optimizer == "sgd" and recipe.momentum:
        # Momentum that starts at 0 gives the same first step. PyTorch's fused SGD fails if some
        # parameters get their first gradient later than others.
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def training_loss(logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """The mean loss over the images of a micro-batch.

    With label smoothing s the target of each of K classes is (1 - s) · share + s / K. The binary
    cross-entropy is the mean over classes, too.

    Args:
        logits: N×classes.
        labels: N classes; or N×classes shares, of mixed images.
        recipe: gives the loss and the label smoothing.
    """
    smoothing = recipe.label_smoothing
    if recipe.loss == "cross_entropy":
        return cross_entropy(logits, labels, label_smoothing=smoothing)
    classes = logits.shape[1]
    targets = one_hot(labels, classes) if labels.ndim == 1 else labels
    smoothed = (1 - smoothing) * targets.to(logits.dtype) + smoothing / classes
    return binary_cross_entropy_with_logits(logits, smoothed)


def main_class(labels: Tensor) -> Tensor:
    """The class of each image; for a mixed image that of the larger share."""
    return labels if labels.ndim == 1 else labels.argmax(1)


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a network's weights and buffers, in evaluation mode.

    After each step, average ← decay · average + (1 - decay) · weights; the first step copies the
    weights.
    """
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=update, use_buffers=True).eval()


def try_recipe(recipe: Recipe, where: str) -> None:
    """Take a step with a recipe's optimizer on two weights.

    Raises:
        ConfigError: it does not work; the message begins with ``where``.
    """
    model = nn.Linear(2, 2)
    try:
        optimizer = make_optimizer(model, recipe)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None
    except Exception as error:  # timm has optimizers that need second derivatives, for example
        raise ConfigError(
            f"{where}optimizer: {recipe.optimizer}: its step fails: {type(error).__name__}: {error}"
        ) from None
