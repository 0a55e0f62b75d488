"""The optimizer, the loss and the averaged weights of a recipe."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    one_hot,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attngrid.core.errors import ConfigError, UnknownNameError
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
            make, options = _of_timm(recipe)
        settings = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
        optimizer: torch.optim.Optimizer = make(
            groups, **settings, **options, **recipe.optimizer_options
        )
    except Exception as error:  # wrong names and options raise several types
        raise ConfigError(f"optimizer: {recipe.optimizer}: {one_line(error)}") from None
    if recipe.optimizer == "sgd" and recipe.momentum:
        # Momentum that starts at 0 gives the same first step. PyTorch's fused SGD fails if some
        # parameters get their first gradient later than others.
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _of_timm(recipe: Recipe) -> tuple[Any, dict[str, Any]]:
    """The class of an optimizer of timm, and its momentum if it has one, as timm's factory does."""
    from timm.optim import (  # type: ignore[attr-defined]
        get_optimizer_class,
        get_optimizer_info,
        list_optimizers,
    )

    name = recipe.optimizer.removeprefix(TIMM)
    known = list(map(str, list_optimizers()))
    if name not in known:
        raise UnknownNameError("name", name, known)
    if get_optimizer_info(name).has_momentum:
        return get_optimizer_class(name), {"momentum": recipe.momentum}
    if recipe.momentum != Recipe.model_fields["momentum"].default:
        raise ValueError(f"momentum: found {recipe.momentum}; it has none")
    return get_optimizer_class(name), {}


def training_loss(logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """The mean loss over the images of a micro-batch.

    With label smoothing s the target of each of K classes is (1 - s) · share + s / K. The binary
    cross-entropy is the mean over classes, too; with a ``target_threshold`` every share above it
    counts as 1, and the others as 0.

    Args:
        logits: N×classes.
        labels: N classes; or N×classes shares, of mixed images.
        recipe: gives the loss, the label smoothing and the threshold.
    """
    smoothing = recipe.label_smoothing
    if recipe.loss == "cross_entropy":
        return cross_entropy(logits, labels, label_smoothing=smoothing)
    classes = logits.shape[1]
    targets = one_hot(labels, classes) if labels.ndim == 1 else labels
    if recipe.target_threshold is not None:
        targets = targets > recipe.target_threshold
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


def try_optimizer(recipe: Recipe) -> None:
    """Take a step with a recipe's optimizer, and another one after restoring it from a checkpoint.

    Raises:
        ConfigError: it cannot be made, a step fails, or the second step gives other bits than
            without the restoring.
    """

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(3, 3)
        nn.init.constant_(model.weight, 0.5)
        nn.init.zeros_(model.bias)
        return model, make_optimizer(model, recipe)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        model(torch.eye(3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    (model, optimizer), (again, restored) = start(), start()
    try:
        step(model, optimizer)
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        again.load_state_dict(weights)
        restored.load_state_dict(state)
        same = torch.equal(step(model, optimizer), step(again, restored))
    except Exception as error:  # timm has optimizers that need second derivatives, for example
        raise ConfigError(f"optimizer: {recipe.optimizer}: fails: {one_line(error)}") from None
    if not same:
        raise ConfigError(
            f"optimizer: {recipe.optimizer}: does not continue from a checkpoint with the same bits"
        )


def one_line(error: Exception) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
