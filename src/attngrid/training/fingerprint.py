"""What a cell's model and recipe compute, in a few numbers that a refactoring keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from attngrid.data.registry import find_dataset
from attngrid.models.registry import find_attention
from attngrid.study.cell import Cell

STEPS = 3
IMAGES = 8
# Images have at most so many pixels a side, by the stem: a network that strides to 2×2 positions
# still does all that it does, and the models of a study are through in a minute or two.
SIDES = {"imagenet": 64, "cifar": 16}
# Of the learning rate that so few images would bear. Deep networks at their start are chaotic: a
# larger step turns the last bit of a float32 into percents of the next loss.
STEP = 0.001
# Relative, of the first loss and of those after a step; more where the network is so chaotic that
# nudging the images by 1e-6 moves a loss by more than a twentieth of it.
TOLERANCE = (1e-4, 1e-3, 1e-3)
NUDGES, NUDGE, MARGIN = 2, 1e-6, 20
# The sources of this package that decide the losses.
SOURCES = (
    *("attention", "backbones", "training"),
    *("convolution.py", "counter.py", "forms.py", "model.py"),
)


@cache
def code_digest() -> str:
    """SHA-256 of the sources that decide what is computed: of the same, nothing is to compare."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for source in SOURCES:
        for file in sorted([*(package / source).rglob("*.py"), package / source]):
            if file.is_file():
                name = file.relative_to(package).as_posix()
                digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def fingerprint(cell: Cell) -> dict[str, Any]:
    """As a record carries it: the code, its losses, and how much they may differ."""
    losses = losses_of(cell)
    spread_S, widest = [], 0.0
    nudged = [losses_of(cell, nudge) for nudge in range(1, NUDGES + 1)]
    for step, loss in enumerate(losses):
        # what a step has spread does not come together again
        moved = [abs(run[step] - loss) / abs(loss) for run in nudged if step < len(run)]
        widest = max([widest, *moved])
        spread_S.append(max(TOLERANCE[step], MARGIN * widest))
    return {"code": code_digest(), "losses": losses, "tolerance": spread_S}


def losses_of(cell: Cell, nudge: int = 0) -> list[float]:
    """The losses of ``STEPS`` float32 steps of a cell's model and recipe on the CPU.

    Seed and images are fixed, and the images are noise: the cell's own seed, its dataset's pixels
    and what is done to them have no part. The learning rates are the recipe's at evenly spaced
    moments, made small. Parameters that start at 0 are drawn, so that what they hide is seen.
    Losses end before one that is infinite or undefined.

    Args:
        cell: whose model and recipe it is.
        nudge: 0, or the number of a change of the images by ``NUDGE``.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from attngrid.models.create import create_model
    from attngrid.training.checkpoint import kept_random_states
    from attngrid.training.loop import make_optimizer, seed_all

    recipe, threads = cell.recipe, torch.get_num_threads()
    with kept_random_states():
        torch.set_num_threads(1)
        seed_all(0)
        model = create_model(**cell.model_arguments()).train()
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        images_NCHW = torch.randn(IMAGES, 3, side(cell), side(cell))
        if nudge:
            own = torch.Generator().manual_seed(nudge)  # dropout draws what it does without
            images_NCHW *= 1 + NUDGE * torch.randn(images_NCHW.shape, generator=own)
        labels_N = torch.arange(IMAGES) % cell.num_classes
        optimizer = make_optimizer(model, recipe)
        losses = []
        for step in range(STEPS):
            moment = (step + 0.5) / STEPS * recipe.epochs
            scale = STEP * IMAGES / recipe.batch_size
            optimizer.param_groups[0]["lr"] = scale * recipe.learning_rate_at(moment)
            smoothing = recipe.label_smoothing
            loss = cross_entropy(model(images_NCHW), labels_N, label_smoothing=smoothing)
            if not loss.isfinite():
                break
            losses.append(float(loss.detach()))
            if step == STEPS - 1:
                break  # no loss is computed of what this step would make
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        torch.set_num_threads(threads)
    return losses


def side(cell: Cell) -> int:
    """Pixels a side of a fingerprint's images."""
    dataset = find_dataset(cell.dataset)
    if find_attention(cell.trained_attention).needs_feature_size:
        return dataset.input_size  # its weights are for each position
    return min(dataset.input_size, SIDES[dataset.stem])


def key(cell: Cell) -> str:
    """What cells of one fingerprint share, the model and the recipe, as text."""
    model = cell.model_arguments() | {"sha256": cell.sha256, "side": side(cell)}
    return json.dumps([model, cell.recipe.digested()], sort_keys=True)


def agrees(recorded: Mapping[str, Any], losses: Sequence[float]) -> bool:
    """Whether losses are those of a recorded fingerprint, within its tolerance.

    Where one ends early the losses before that decide.
    """
    compared = list(zip(losses, recorded["losses"], recorded["tolerance"], strict=False))
    return bool(compared) and all(
        abs(found - expected) <= tolerance * abs(expected)
        for found, expected, tolerance in compared
    )
