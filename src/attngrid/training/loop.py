"""Training one cell, top to bottom."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attngrid.cell import Cell
from attngrid.data.images import Batches, channel_statistics, load
from attngrid.errors import DivergedError
from attngrid.model import create_model

# Called after each epoch with its line of the curve and the seconds since the start.
Progress = Callable[[dict[str, Any], float], None]
# Called once with the trained model.
Finished = Callable[[nn.Module], None]


def choose_device(device: str) -> torch.device:
    """``auto`` is CUDA if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def make_deterministic(seed: int, threads: int, *, strict: bool) -> None:
    """Same seed, same machine, same versions: the same bits.

    With ``strict`` an operator without a deterministic form on the device is an error. Only
    warning about it is no half-way house: fused attention then takes its other form on a GPU.
    """
    # cuBLAS reads this when it starts; without it, deterministic mode refuses to multiply
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(strict)
    torch.backends.cudnn.benchmark = False
    # float32 means float32, whatever a GPU offers in its place
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def train(
    cell: Cell,
    device: torch.device,
    folder: Path,
    *,
    progress: Progress,
    finished: Finished | None = None,
    download: bool = False,
    deterministic: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train a cell from its seed and test it after every epoch.

    Args:
        cell: what to train, and how.
        device: where.
        folder: holds the datasets.
        progress: told of every epoch.
        finished: given the model after its last epoch.
        download: fetch a dataset that is missing.
        deterministic: refuse operators that are not.

    Returns:
        The ``metrics`` block of the record, errors in percent of the held-out images, and
        the seconds and images per second that the ``run`` block reports.

    Raises:
        DivergedError: an infinite or undefined training loss, with its epoch and step.
        DataError: images that are not where they should be.
    """
    recipe = cell.recipe
    make_deterministic(cell.seed, cell.threads, strict=deterministic)
    generator = torch.Generator().manual_seed(cell.seed)  # order and augmentation
    classes = cell.options.classes
    train_images, test_images = load(cell.dataset, folder, download=download, classes=classes)
    mean_C, std_C = (statistic.to(device) for statistic in channel_statistics(train_images))
    train_images, test_images = train_images.to(device), test_images.to(device)
    batches = Batches(
        train_images, recipe.batch_size, mean_C, std_C, recipe.train_transforms, generator
    )
    test_batches = Batches(test_images, 500, mean_C, std_C)

    model = create_model(**cell.model_arguments())
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )

    def autocast() -> AbstractContextManager[Any]:
        enabled = cell.precision == "bfloat16"
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)

    curve: list[dict[str, Any]] = []
    start, training_s, images_seen = time.perf_counter(), 0.0, 0
    for epoch in range(1, recipe.epochs + 1):
        epoch_start = time.perf_counter()
        model.train()
        losses, correct, seen = [], torch.zeros((), dtype=torch.int64, device=device), 0
        for step, (images, labels) in enumerate(batches):
            learning_rate = recipe.learning_rate_at(epoch - 1 + step / len(batches))
            optimizer.param_groups[0]["lr"] = learning_rate
            with autocast():
                logits = model(images.contiguous(memory_format=torch.channels_last))
            loss = cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            # read once an epoch: asking for a value every step would stall a GPU
            losses.append(loss.detach() * len(labels))
            correct += (logits.argmax(1) == labels).sum()
            seen += len(labels)
        loss_sums = torch.stack(losses).cpu()
        training_s += time.perf_counter() - epoch_start
        images_seen += seen
        if not (finite := loss_sums.isfinite()).all():
            first = int((~finite).nonzero()[0])
            raise DivergedError(epoch, first + 1, float(loss_sums[first]))

        with autocast():
            test = evaluate(model, test_batches)
        if not math.isfinite(test["test_loss"]):
            raise DivergedError(epoch, len(batches), test["test_loss"])
        curve.append(
            {
                "epoch": epoch,
                "learning_rate": learning_rate,
                "train_loss": float(loss_sums.double().sum()) / seen,
                "train_top1_error": percent_wrong(correct, seen),
                **test,
            }
        )
        progress(curve[-1], time.perf_counter() - start)

    best = min(curve, key=lambda line: line["test_top1_error"])
    metrics = {
        "top1_error": curve[-1]["test_top1_error"],
        "top5_error": curve[-1]["test_top5_error"],
        "best_epoch": best["epoch"],
        "best_top1_error": best["test_top1_error"],
        "best_top5_error": best["test_top5_error"],
        "train_images": len(train_images),
        "test_images": len(test_images),
        "params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "curve": curve,
    }
    speed = {
        "wall_s": time.perf_counter() - start,
        "training_s": training_s,
        "images_per_s": images_seen / training_s,
    }
    if finished is not None:
        finished(model)
    return metrics, speed


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Loss, and top-1 and top-5 error in percent, over all images of ``batches``."""
    model.eval()
    losses, hits_1, hits_5, seen = [], [], [], 0
    for images, labels in batches:
        logits = model(images.contiguous(memory_format=torch.channels_last)).float()
        losses.append(cross_entropy(logits, labels, reduction="sum"))
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        hits_1.append(ranked[:, 0].sum())
        hits_5.append(ranked.sum())
        seen += len(labels)
    return {
        "test_loss": float(torch.stack(losses).double().sum()) / seen,
        "test_top1_error": percent_wrong(torch.stack(hits_1).sum(), seen),
        "test_top5_error": percent_wrong(torch.stack(hits_5).sum(), seen),
    }


def percent_wrong(correct: Tensor, seen: int) -> float:
    """Error in percent from a count of hits."""
    return 100.0 * (seen - int(correct)) / seen
