"""Training one cell, top to bottom."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attngrid.core.errors import DivergedError
from attngrid.core.hardware import lacks_bfloat16, processor_name
from attngrid.data.registry import find_dataset
from attngrid.data.sharding import Share
from attngrid.models.create import create_model
from attngrid.study.cell import Cell
from attngrid.study.options import Precision
from attngrid.study.recipe import Recipe
from attngrid.training.batches import Split, make_batches
from attngrid.training.checkpoint import Checkpoints
from attngrid.training.compile import CompiledModules, parts_of_attention
from attngrid.training.distributed import ALONE, Processes
from attngrid.training.fast import ALL, Fast
from attngrid.training.parts import Parts
from attngrid.training.sgd import SGD

# Called after each epoch with its line of the curve and the seconds since the start.
Progress = Callable[[dict[str, Any], float], None]
# Called once with the trained model.
Finished = Callable[[nn.Module], None]


@dataclass
class Position:
    """Where a training is, beside its model and its optimizer.

    Attributes:
        generator: the state of the order's and augmentation's generator as the epoch began.
        correct: hits of the epoch's batches so far, of this process's images.
        epoch: from 1.
        step: the epoch's next, from 0.
        losses: of the parts of the epoch's batches that this process has taken so far, each summed
            over its images.
        seen: images of the epoch so far.
        images_seen: of the epochs before.
        curve: their lines.
        training_s, testing_s: seconds so far.
        resumed: how often the training went on from a checkpoint.
    """

    generator: Tensor
    correct: Tensor
    epoch: int = 1
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    seen: int = 0
    images_seen: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    training_s: float = 0.0
    testing_s: float = 0.0
    resumed: int = 0
    uncompiled: bool = False  # the compiler failed

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Note the epoch's line and begin the next one."""
        self.curve.append(line)
        self.images_seen += self.seen
        self.epoch, self.step, self.seen, self.losses = self.epoch + 1, 0, 0, []
        self.correct = torch.zeros_like(self.correct)

    def state(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        losses = torch.stack(self.losses) if self.losses else torch.zeros(0)
        return {**vars(self), "losses": losses.cpu(), "correct": self.correct.cpu()}

    @classmethod
    def restored(
        cls, saved: dict[str, Any], processes: Processes, device: torch.device
    ) -> Position:
        """From what ``Checkpoints.load`` returns."""
        were = [process["position"] for process in saved["processes"]]
        alike = len(were) == processes.count
        state = were[processes.rank] if alike else were[0]
        losses, correct = state["losses"], state["correct"]
        if not alike:  # what all had so far is the first one's
            losses, correct = (sum(was[name] for was in were) for name in ("losses", "correct"))
        if not alike and processes.rank:
            losses, correct = torch.zeros_like(losses), torch.zeros_like(correct)
        changes = {"losses": list(losses.to(device)), "correct": correct.to(device)}
        return cls(**{**state, **changes, "resumed": state["resumed"] + 1})


def choose_device(device: str) -> torch.device:
    """``auto`` is CUDA if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def seed_all(seed: int) -> None:
    """Every generator; a module of the user's own may draw from any."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def make_deterministic(seed: int, threads: int, *, strict: bool, unfilled: bool = True) -> None:
    """Same seed, same machine, same versions: the same bits.

    With ``strict`` an operator without a deterministic form on the device is an error. Only
    warning about it is no half-way house: fused attention then takes its other form on a GPU.
    It may also fill all memory with NaN as it is allocated, unless that is to stay ``unfilled``:
    who reads what was not written is betrayed then, at the price of a pass over every map.
    Otherwise cuDNN takes for each convolution what is fastest at its first step.
    """
    # cuBLAS reads this when it starts; without it, deterministic mode refuses to multiply
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    seed_all(seed)
    # what torch.use_deterministic_algorithms does for eager code, without starting the compiler
    torch.set_deterministic_debug_mode("error" if strict else "default")
    torch.utils.deterministic.fill_uninitialized_memory = not unfilled  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not strict
    # float32 means float32, whatever a GPU offers in its place
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def make_optimizer(model: nn.Module, recipe: Recipe, *, fused: bool = False) -> SGD:
    """The recipe's SGD; the learning rate is set at every step."""
    return SGD(
        model.parameters(),
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 where the precision says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def too_slow(precision: Precision, device: torch.device) -> str | None:
    """What to say of bfloat16 on a device that has no instructions for it; None otherwise."""
    if precision != "bfloat16":
        return None
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
    else:
        has, name = not lacks_bfloat16(), processor_name()
    if has:
        return None
    return (
        f"precision: found bfloat16, for which {name} has no instructions; "
        "float32 takes a fraction of the time here"
    )


def train(
    cell: Cell,
    device: torch.device,
    folder: Path,
    *,
    progress: Progress,
    finished: Finished | None = None,
    checkpoints: Checkpoints | None = None,
    download: bool = False,
    deterministic: bool = True,
    workers: int = 0,
    fast: Fast = ALL,
    processes: Processes = ALONE,
    gradient_accumulation_steps: int = 1,
    sync_bn: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train a cell, from its seed or from its checkpoint, and test it after every epoch.

    The tests make its curve; nothing is chosen by them. A trial is tested on its validation part.

    Args:
        cell: what to train, and how.
        device: where.
        folder: holds the datasets.
        progress: told of every epoch.
        finished: given the model after its last epoch.
        checkpoints: where a training that was killed goes on from, to the same bits.
        download: fetch a dataset that is missing.
        deterministic: refuse operators that are not.
        workers: processes that read image files ahead.
        fast: what makes it faster.
        processes: that train the cell together, this one among them.
        gradient_accumulation_steps: parts of a batch that each of them takes, one after the other.
        sync_bn: such a part is normalised across the processes.

    Returns:
        The ``metrics`` block of the record, errors in percent of the held-out images, and
        the seconds and images per second that the ``run`` block reports.

    Raises:
        DivergedError: an infinite or undefined training loss, with its epoch and step.
        DataError: images that are not where they should be.
        InterruptedTrainingError: a signal, after a last checkpoint.
        RecordError: a checkpoint of another cell.
        RuntimeError: another process is gone; ``processes.is_loss`` tells it from others.
    """
    recipe = cell.recipe
    make_deterministic(cell.seed, cell.threads, strict=deterministic, unfilled=fast.unfilled)
    generator = torch.Generator().manual_seed(cell.seed)  # order and augmentation
    batches, test_batches = make_batches(
        cell,
        folder,
        device,
        generator=generator,
        download=download,
        workers=workers,
        share=Share(processes.rank, processes.count, gradient_accumulation_steps, joint=sync_bn),
    )
    model = create_model(**cell.model_arguments())
    pixels = recipe.batch_size * find_dataset(cell.dataset).input_size ** 2
    in_all = processes.count * gradient_accumulation_steps
    steps = recipe.epochs * len(batches) if any(True for _ in parts_of_attention(model)) else 0
    fast = fast.resolved(device, pixels, steps=steps, parts=in_all, sync_bn=sync_bn)
    if sync_bn and processes.count > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    model.to(device=device, memory_format=fast.layout)  # type: ignore[call-overload]
    in_parts = Parts(model, processes, gradient_accumulation_steps)
    network = fast.called(in_parts.module, recipe.batch_size // in_all)
    modules = None
    if fast.compile == "attention":
        modules = CompiledModules(model, recipe.batch_size // in_all)
    optimizer = make_optimizer(model, recipe, fused=fast.fused_sgd)
    if processes.rank:
        seed_all((cell.seed + processes.rank * 0x9E3779B1) % 2**32)  # dropout of its own

    at = Position(generator.get_state(), torch.zeros((), dtype=torch.int64, device=device))
    if checkpoints is not None and (saved := checkpoints.load()) is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        at = Position.restored(saved, processes, device)
        generator.set_state(at.generator)
        if modules is not None:
            modules.failed = at.uncompiled

    def checkpoint() -> None:
        if checkpoints is not None and checkpoints.due():
            at.uncompiled = modules is not None and modules.failed
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoints.save({**state, "position": at.state()})

    last = time.perf_counter()

    def lap() -> float:
        """Seconds since the last one."""
        nonlocal last
        before, last = last, time.perf_counter()
        return last - before

    cpu_s_before = time.process_time()
    while at.epoch <= recipe.epochs:
        model.train()
        at.generator = generator.get_state()
        for size, parts in in_parts.steps(batches, at.step):
            moment = at.epoch - 1 + at.step / len(batches)
            optimizer.learning_rate = recipe.learning_rate_at(moment)
            optimizer.zero_grad()
            for images, labels in parts:
                with autocast(cell.precision, device):
                    logits = network(images)
                loss = cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
                # the processes' gradients are averaged
                weight = processes.count * len(labels) / size
                (weight * loss).backward()  # type: ignore[no-untyped-call]
                # read once an epoch: asking for a value every step would stall a GPU
                at.losses.append(loss.detach() * len(labels))
                at.correct += (logits.argmax(1) == labels).sum()
            optimizer.step()
            at.seen += size
            at.step += 1
            at.training_s += lap()
            checkpoint()
        loss_sums = processes.total(torch.stack(at.losses)).cpu()
        correct = processes.total(at.correct.clone())
        at.training_s += lap()
        if not (finite := loss_sums.isfinite()).all():
            first = int((~finite).nonzero()[0])
            raise DivergedError(
                at.epoch, first // gradient_accumulation_steps + 1, float(loss_sums[first])
            )

        with autocast(cell.precision, device):
            model.eval()
            test = evaluate(network, test_batches, checkpoint, processes)
        if not math.isfinite(test["test_loss"]):
            raise DivergedError(at.epoch, len(batches), test["test_loss"])
        line = {
            "epoch": at.epoch,
            # of the last step, which a training that goes on here has not taken itself
            "learning_rate": recipe.learning_rate_at(at.epoch - 1 + (at.step - 1) / len(batches)),
            "train_loss": float(loss_sums.double().sum()) / at.seen,
            "train_top1_error": percent_wrong(correct, at.seen),
            **test,
        }
        at.testing_s += lap()
        at.end_epoch(line)
        progress(line, at.training_s + at.testing_s)

    best = min(at.curve, key=lambda line: line["test_top1_error"])
    metrics = {
        "top1_error": at.curve[-1]["test_top1_error"],
        "top5_error": at.curve[-1]["test_top5_error"],
        "best_epoch": best["epoch"],
        "best_top1_error": best["test_top1_error"],
        "best_top5_error": best["test_top5_error"],
        "train_images": batches.count,
        "test_images": test_batches.count,
        "params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "curve": at.curve,
    }
    if modules is not None:
        modules.release()
        if modules.failed:
            fast = fast.model_copy(update={"compile": False})
    if finished is not None:
        finished(model)
    return metrics, {
        "wall_s": at.training_s + at.testing_s,
        "training_s": at.training_s,
        "loop_cpu_s": time.process_time() - cpu_s_before,
        "images_per_s": at.images_seen / at.training_s,
        "resumed": at.resumed,
        "fast": fast.model_dump(),
    }


@torch.no_grad()
def evaluate(
    network: Callable[[Tensor], Tensor],
    batches: Split | Sequence[tuple[Tensor, Tensor]],
    between: Callable[[], None] = lambda: None,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Loss, and top-1 and top-5 error in percent, over all images of ``batches``.

    Args:
        network: images to logits, in evaluation mode.
        batches: normalised images and labels; of several processes each gives its own.
        between: called after each batch, in all processes equally often.
        processes: whose images are counted, each once.
    """
    losses, hits_1, hits_5, seen = [], [], [], 0
    for images, labels in batches:
        logits = network(images).float()
        losses.append(cross_entropy(logits, labels, reduction="sum"))
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        hits_1.append(ranked[:, 0].sum())
        hits_5.append(ranked.sum())
        seen += len(labels)
        between()
    if len(losses) * processes.count < len(batches):
        between()  # others have a batch more
    sums = [
        float(torch.stack(one).double().sum()) if one else 0 for one in (losses, hits_1, hits_5)
    ]
    totals = processes.total(torch.tensor([*sums, seen], dtype=torch.float64))
    loss, top1, top5, images = totals.tolist()
    return {
        "test_loss": loss / images,
        "test_top1_error": percent_wrong(top1, images),
        "test_top5_error": percent_wrong(top5, images),
    }


def percent_wrong(correct: Tensor | float, seen: float) -> float:
    """Error in percent from a count of hits."""
    return 100.0 * (seen - int(correct)) / seen
