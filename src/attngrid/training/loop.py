"""The training loop of one cell."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from attngrid.core.errors import ConfigError, DivergedError
from attngrid.core.hardware import lacks_bfloat16, processor_name, processors
from attngrid.data.images import Split
from attngrid.data.sharding import Share
from attngrid.models.create import create_model
from attngrid.records.record import headline
from attngrid.study.cell import Cell
from attngrid.study.compute import Compute
from attngrid.study.options import Precision
from attngrid.study.recipe import Recipe
from attngrid.training.batches import make_batches
from attngrid.training.checkpoint import Checkpoints, TrainState
from attngrid.training.distributed import ALONE, Processes
from attngrid.training.micro_batches import MicroBatch, MicroBatches
from attngrid.training.optimization import (
    average_weights,
    main_class,
    make_optimizer,
    training_loss,
)
from attngrid.training.performance import (
    attention_modules,
    callable_network,
    memory_format,
    resolve,
)

# Called after each epoch with its line of the curve and the seconds of training so far.
Progress = Callable[[dict[str, Any], float], None]


def train_step(
    network: Callable[[Tensor], Tensor],
    micro_batches: Iterable[MicroBatch],
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    *,
    epoch_progress: float,
    images: int,
    precision: Precision = "float32",
    processes: int = 1,
) -> tuple[list[Tensor], Tensor]:
    """Take one step of the optimizer.

    The gradient is that of the mean loss over the images of all micro-batches and processes.

    Args:
        network: maps images N×3×H×W to logits N×classes, in training mode.
        micro_batches: normalised images, and their N labels or N×classes shares.
        optimizer: updates the network's parameters.
        recipe: gives the learning rate schedule, the loss and the limit of the gradient's norm.
        epoch_progress: epochs since the start of the training, 1.5 in the middle of the second one.
        images: the number of images of the step, in all processes.
        precision: the precision of the forward pass.
        processes: their number; DistributedDataParallel averages the gradients over them.

    Returns:
        The loss of each micro-batch, summed over its images, and the number of images that were
        classified correctly; a mixed image counts as its ``main_class``. Both stay on the device:
        reading them would stall a GPU.
    """
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(epoch_progress)
    optimizer.zero_grad()
    losses, correct = [], []
    for images_NCHW, labels_N in micro_batches:
        with autocast(precision, images_NCHW.device):
            logits = network(images_NCHW)
        loss = training_loss(logits.float(), labels_N, recipe)
        weight = processes * len(labels_N) / images
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach() * len(labels_N))
        correct.append((logits.argmax(1) == main_class(labels_N)).sum())
    if recipe.clip_grad_norm is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        clip_grad_norm_(parameters, recipe.clip_grad_norm)
    optimizer.step()
    return losses, torch.stack(correct).sum()


def train(
    cell: Cell,
    device: torch.device,
    folder: Path,
    *,
    compute: Compute | None = None,
    processes: Processes = ALONE,
    checkpoints: Checkpoints | None = None,
    progress: Progress = lambda line, seconds: None,
    download: bool = False,
) -> tuple[dict[str, Any], dict[str, Any], nn.Module]:
    """Train a cell from its seed or from its checkpoint, and test it after every epoch.

    The test results only go into the curve; no decision uses them.

    Args:
        cell: the cell to train.
        device: the device of this process.
        folder: the folder of the datasets.
        compute: the study's section of this name; by default that of a study without one.
        processes: the processes that train the cell together.
        checkpoints: where an interrupted training is saved, to continue bit-identically.
        progress: called after every epoch.
        download: whether to download a missing dataset.

    Returns:
        The ``metrics`` block of the record, with errors in percent of the test images; the fields
        of the loop in the ``run`` block; and the trained model, with the averaged weights if the
        recipe has ``ema``.

    Raises:
        DivergedError: an infinite or NaN loss, with its epoch and step.
        DataError: missing images.
        InterruptedTrainingError: a signal ended the training after a last checkpoint.
        RuntimeError: another process ended; ``is_peer_failure`` recognises it.
    """
    # Data, model and optimizer, seeded by the cell
    recipe, compute = cell.recipe, compute or Compute()
    micro_steps, sync_bn = compute.gradient_accumulation_steps, compute.sync_bn
    fill = compute.performance.fill_uninitialized_memory
    make_deterministic(cell.seed, cell.threads, strict=compute.deterministic, fill_memory=fill)
    generator = torch.Generator().manual_seed(cell.seed)  # for order and augmentation
    batches, test_batches = make_batches(
        cell,
        folder,
        device,
        generator=generator,
        download=download,
        workers=min(compute.workers, max(1, processors() // processes.local_count)),
        share=Share(processes.rank, processes.count, micro_steps, joint=sync_bn),
    )
    images_per_epoch = sum(map(len, batches.places))
    model = create_model(**cell.model_arguments())
    performance = resolve(
        compute.performance,
        device,
        recipe.batch_size * cell.input_size**2,
        steps=recipe.epochs * len(batches) if any(attention_modules(model)) else 0,
        micro_batches=processes.count * micro_steps,
        sync_bn=sync_bn,
    )
    if sync_bn and processes.count > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    model.to(device=device, memory_format=memory_format(performance))  # type: ignore[call-overload]
    average = None if recipe.ema is None else average_weights(model, recipe.ema)
    micro_batches = MicroBatches(model, processes, micro_steps)
    full_size = recipe.batch_size // (processes.count * micro_steps)
    network = callable_network(micro_batches.network, performance, full_size)
    tested = network if average is None else callable_network(average.module, performance)
    optimizer = make_optimizer(model, recipe, fused=performance.fused_optimizer)
    if processes.rank:
        seed_all((cell.seed + processes.rank * 0x9E3779B1) % 2**32)  # each rank draws other dropout

    # The checkpoint, if there is one
    state = TrainState(generator.get_state(), torch.zeros((), dtype=torch.int64, device=device))
    if checkpoints is not None and (saved := checkpoints.load()) is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        if average is not None:
            average.load_state_dict(saved["average"])
        state = TrainState.restore(saved["train_state"], device)
        generator.set_state(state.generator)

    def save_if_due() -> None:
        if checkpoints is not None and checkpoints.due():
            shared = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            if average is not None:
                shared["average"] = average.state_dict()
            checkpoints.save(shared, {"train_state": state.state_dict()})

    last_call = time.perf_counter()

    def elapsed() -> float:
        """Seconds since the previous call."""
        nonlocal last_call
        previous, last_call = last_call, time.perf_counter()
        return last_call - previous

    cpu_s_before = time.process_time()
    while state.epoch <= recipe.epochs:
        model.train()
        state.generator = generator.get_state()
        for images, step_batches in micro_batches.steps(batches, state.step):
            losses, correct = train_step(
                network,
                step_batches,
                optimizer,
                recipe,
                epoch_progress=state.epoch - 1 + state.step / len(batches),
                images=images,
                precision=cell.precision,
                processes=processes.count,
            )
            if average is not None:
                average.update_parameters(model)
            state.losses += losses
            state.correct += correct
            state.step += 1
            state.training_s += elapsed()
            save_if_due()

        loss_sums = processes.all_reduce_sum(torch.stack(state.losses)).cpu()
        correct = processes.all_reduce_sum(state.correct.clone())
        state.training_s += elapsed()
        if not (finite := loss_sums.isfinite()).all():
            first = int((~finite).nonzero()[0])
            raise DivergedError(state.epoch, first // micro_steps + 1, float(loss_sums[first]))

        model.eval()
        with autocast(cell.precision, device):
            test = evaluate(tested, test_batches, save_if_due, processes)
        if not math.isfinite(test["test_loss"]):
            raise DivergedError(state.epoch, len(batches), test["test_loss"])
        last_step = state.epoch - 1 + (state.step - 1) / len(batches)
        line = {
            "epoch": state.epoch,
            "learning_rate": recipe.learning_rate_at(last_step),
            "train_loss": float(loss_sums.double().sum()) / images_per_epoch,
            "train_top1_error": percent_wrong(correct, images_per_epoch),
            **test,
        }
        state.testing_s += elapsed()
        state.end_epoch(line)
        progress(line, state.training_s + state.testing_s)

    metrics = {
        **headline(state.curve),
        "train_images": batches.count,
        "test_images": test_batches.count,
        "params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "curve": state.curve,
    }
    run = {
        "wall_s": state.training_s + state.testing_s,
        "training_s": state.training_s,
        "loop_cpu_s": time.process_time() - cpu_s_before,
        "images_per_s": recipe.epochs * images_per_epoch / state.training_s,
        "resumed": state.resumed,
        "processes": processes.count,
        **compute.model_dump(
            include={"deterministic", "gradient_accumulation_steps", "sync_bn", "workers"}
        ),
        "performance": performance.model_dump(),
        # the weights that a pretrained backbone began with
        **({"pretrained": model.attngrid_weights} if hasattr(model, "attngrid_weights") else {}),
        # of each channel, in [0, 255]
        "normalisation": {"mean": batches.mean_C.tolist(), "std": batches.std_C.tolist()},
    }
    return metrics, run, model if average is None else average.module


@torch.no_grad()
def evaluate(
    network: Callable[[Tensor], Tensor],
    batches: Split | Sequence[tuple[Tensor, Tensor]],
    after_batch: Callable[[], None] = lambda: None,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Loss, top-1 and top-5 error in percent, over the batches of all processes.

    The network, in evaluation mode, maps normalised images to logits. Every process calls
    ``after_batch`` the same number of times.
    """
    found, seen = [], 0
    for images_NCHW, labels_N in batches:
        logits = network(images_NCHW).float()
        loss = cross_entropy(logits, labels_N, reduction="sum")
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels_N[:, None]
        found.append((loss, ranked[:, 0].sum(), ranked.sum()))
        seen += len(labels_N)
        after_batch()
    if len(found) * processes.count < len(batches):
        after_batch()  # other processes have one more batch
    columns = zip(*found, strict=True)
    sums = [float(torch.stack(column).double().sum()) for column in columns] or [0.0] * 3
    totals = processes.all_reduce_sum(torch.tensor([*sums, seen], dtype=torch.float64))
    loss, top1, top5, all_images = totals.tolist()
    return {
        "test_loss": loss / all_images,
        "test_top1_error": percent_wrong(top1, all_images),
        "test_top5_error": percent_wrong(top5, all_images),
    }


def percent_wrong(correct: Tensor | float, seen: float) -> float:
    """The error in percent, from the number of correctly classified images."""
    return 100.0 * (seen - int(correct)) / seen


def choose_device(device: str) -> torch.device:
    """The torch device of ``auto``, ``cpu`` or ``cuda``; ``auto`` prefers CUDA.

    Raises:
        ConfigError: ``cuda``, and torch finds no GPU.
    """
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise ConfigError(
            f"device: found 'cuda'; torch {torch.__version__} finds no GPU here; use auto or cpu, "
            "or a machine with a GPU, its driver, and torch for CUDA"
        )
    return torch.device("cpu" if device == "cpu" or not found else "cuda")


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor with its vector instructions."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def seed_all(seed: int) -> None:
    """Seed every generator that a user's module may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def make_deterministic(seed: int, threads: int, *, strict: bool, fill_memory: bool = False) -> None:
    """Make results depend only on the seed, the machine and the versions.

    If strict, an operator without a deterministic implementation is an error, and ``fill_memory``
    fills new memory with NaN. Otherwise cuDNN benchmarks its kernels in the first step.
    """
    # cuBLAS reads this variable when it starts; deterministic matrix products need it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    if limit.isdigit() and int(limit) < threads:  # OpenMP would wait for the others for ever
        raise ConfigError(f"compute.threads: found {threads}; OMP_THREAD_LIMIT is {limit}")
    torch.set_num_threads(threads)
    seed_all(seed)
    torch.use_deterministic_algorithms(strict)
    torch.utils.deterministic.fill_uninitialized_memory = fill_memory  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not strict
    # No TF32: float32 keeps its full precision on every GPU.
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """A context that runs operators in bfloat16 if that is the precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def too_slow(precision: Precision, device: torch.device) -> str | None:
    """A warning if the device has no instructions for bfloat16; None otherwise."""
    if device.type == "cuda":
        lacks = not torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        lacks = lacks_bfloat16()
    if precision != "bfloat16" or not lacks:
        return None
    return (
        f"precision: found bfloat16, for which {device_name(device)} has no instructions; "
        "float32 takes a fraction of the time here"
    )
