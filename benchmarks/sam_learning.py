"""Why a network with SAM alone hardly learns: its attention and its gradients, and what changes it.

    python benchmarks/sam_learning.py --data FOLDER [--epochs 2] [--seeds 0 1] [--threads 1]
    python benchmarks/sam_learning.py --draw        # the figure again, from the rows

It trains ResNet-18 of quarter width on CIFAR-100 at 16×16, with the recipe of `config/laptop.yaml`
shortened to a few epochs, once as CSM's text defines SAM, and once with each change of `CHANGES`
alone. At some steps it looks at 64 test images: the entropy of each attention map (1: every
position attends to all others equally; 0: to one only), how much of a feature map's variance lies
between positions before and after the module, and the gradients' norms. The rows are added to
`results/sam_learning.csv` (remove it to begin anew), and the figure is
`figures/sam_learning.{pdf,png}`. These short trainings show what happens in this reduced setting,
and nothing about the papers' accuracy.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from attngrid.data.images import Batches, channel_statistics
from attngrid.data.loading import load
from attngrid.models.attention.sam import SpatialSelfAttention, attend
from attngrid.models.create import create_model
from attngrid.render.figures import save
from attngrid.study.schema import load_study
from attngrid.training.loop import train_step

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "results/sam_learning.csv"
FIELDS = ("change", "seed", "step", "site", "measure", "value")
BATCH, LOOKS = 128, 8  # images of a step; looks at the network in a training


class SAM(SpatialSelfAttention):
    """SAM as CSM's text defines it, with its initial weights."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.initialise()


class Scaled(SAM):
    """The scores divided by √d, as in a transformer."""

    def forward(self, x: Tensor) -> Tensor:
        c, b, d = (
            conv(x).flatten(2).transpose(1, 2) for conv in (self.query, self.key, self.value)
        )
        return attend(c / math.sqrt(c.shape[2]), b, d).transpose(1, 2).reshape(x.shape)


class SmallKeys(SAM):
    """The initial keys and queries a tenth as large."""

    def initialise(self) -> None:
        super().initialise()
        for conv in (self.query, self.key):
            conv.weight.data *= 0.1


class LargeKeys(SAM):
    """The initial keys and queries twice as large."""

    def initialise(self) -> None:
        super().initialise()
        for conv in (self.query, self.key):
            conv.weight.data *= 2


class Added(SAM):
    """The output added to the input: ``x + out``."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class AddedFromZero(SpatialSelfAttention):
    """DANet's sum, ``x + γ·out`` with γ learned from 0."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, residual=True)
        self.initialise()


# name: module, options of the model, largest learning rate
CHANGES: dict[str, tuple[Any, dict[str, Any], float]] = {
    "no attention": ("none", {}, 0.2),
    "SAM": (SAM, {}, 0.2),
    "scores / √d": (Scaled, {}, 0.2),
    "keys × 0.1": (SmallKeys, {}, 0.2),
    "keys × 2": (LargeKeys, {}, 0.2),
    "learning rate 0.02": (SAM, {}, 0.02),
    "stage ends": (SAM, {"placement": "stage_end"}, 0.2),
    "x + out": (Added, {}, 0.2),
    "x + γ·out": (AddedFromZero, {}, 0.2),
}


def main() -> None:
    """Train each change with each seed, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draw", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not given.draw:
        for seed in given.seeds:
            for change in given.changes:
                rows = list(training(change, seed, given.epochs, given.data))
                new = not ROWS.exists()
                with ROWS.open("a", newline="") as stream:
                    writer = csv.writer(stream, lineterminator="\n")
                    writer.writerows([FIELDS] * new)
                    writer.writerows((change, seed, *row, f"{v:.5g}") for *row, v in rows)
                print(change, seed, rows[-1], flush=True)
    draw()


def training(change: str, seed: int, epochs: int, data: Path) -> Iterator[tuple[Any, ...]]:
    """Train a network; yield rows of step, site, measure, value."""
    module, options, rate = CHANGES[change]
    recipe = load_study(ROOT / "config/laptop.yaml").recipes["laptop_15ep"]
    recipe = recipe.model_copy(update={"epochs": epochs, "learning_rate": rate})
    train, test = load("cifar100", data, download=False, classes=None, sizes=(16, 16))
    statistics = channel_statistics(train)
    generator = torch.Generator().manual_seed(seed)
    batches = Batches(train, BATCH, *statistics, recipe.train_transforms, generator)
    tests = Batches(test, 250, *statistics)
    torch.manual_seed(seed)
    model = create_model(
        "resnet18", module, num_classes=100, stem="cifar", width=0.25, **options
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    sample = next(iter(tests))[0][:64]
    steps, step = epochs * len(batches), 0
    window: list[float] = []  # the losses since the last look
    for _ in range(epochs):
        for images, labels in batches:
            if step in {round(part * (steps - 1) / LOOKS) for part in range(LOOKS + 1)}:
                yield from ((step, *row) for row in look(model, sample))
                if window:
                    yield step, "", "loss", sum(window) / len(window)
                    window = []
            (loss,), _ = train_step(
                model,
                [(images.contiguous(memory_format=torch.channels_last), labels)],
                optimizer,
                recipe,
                epoch_progress=step / len(batches),
                images=len(labels),
            )
            window.append(loss.item() / len(labels))
            if step % 20 == 0:
                yield from ((step, *row) for row in gradients(model))
            step += 1
    model.eval()
    with torch.no_grad():
        wrong = sum(int((model(x).argmax(1) != y).sum()) for x, y in tests)
    yield step, "", "top1_error", 100 * wrong / len(test)


def modules(model: nn.Module) -> list[SpatialSelfAttention]:
    """The attention modules of a network, from the image to the classes."""
    return [m for m in model.modules() if isinstance(m, SpatialSelfAttention)]


@torch.no_grad()
def look(model: nn.Module, images: Tensor) -> Iterator[tuple[int, str, float]]:
    """The attention of each module on some images, with the statistics of training."""
    seen: list[tuple[Any, Tensor, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, x, out: seen.append((module, x[0], out)))
        for module in modules(model)
    ]
    # BatchNorm with the images' own statistics, as in training, but without keeping them
    running = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model(images)
    model.load_state_dict(running)
    for hook in hooks:
        hook.remove()
    for site, (module, x, out) in enumerate(seen, 1):
        q, k = (conv(x).flatten(2).transpose(1, 2) for conv in (module.query, module.key))
        if isinstance(module, Scaled):
            q = q / math.sqrt(q.shape[2])
        s = (q @ k.transpose(1, 2)).softmax(2)
        entropy = -(s * s.clamp_min(1e-30).log()).sum(2).mean() / math.log(s.shape[2])
        yield site, "entropy", entropy.item()
        yield site, "spatial_share_before", spatial_share(x)
        yield site, "spatial_share_after", spatial_share(out)


def spatial_share(x_NCHW: Tensor) -> float:
    """The share of the variance over images and positions that lies between positions."""
    x_NCL = x_NCHW.flatten(2)
    whole = x_NCL.transpose(0, 1).flatten(1).var(1, correction=0)
    return (x_NCL.var(2, correction=0).mean(0).sum() / whole.sum()).item()


def gradients(model: nn.Module) -> Iterator[tuple[int, str, float]]:
    """The norms of the gradients: of queries and keys, of values, and of the whole network."""
    parts: dict[str, Callable[[SpatialSelfAttention], tuple[nn.Module, ...]]] = {
        "gradient_keys": lambda m: (m.query, m.key),
        "gradient_values": lambda m: (m.value,),
    }
    for site, module in enumerate(modules(model), 1):
        for measure, convs in parts.items():
            grads = [p.grad for conv in convs(module) for p in conv.parameters()]
            yield site, measure, norm(grads)
    yield 0, "gradient", norm([p.grad for p in model.parameters()])


def norm(gradients: list[Tensor | None]) -> float:
    """The norm of several gradients as one vector."""
    squares = (float(g.square().sum()) for g in gradients if g is not None)
    return math.sqrt(sum(squares))


def draw() -> None:
    """Draw the figure from the rows."""
    frame = pd.read_csv(ROWS, keep_default_na=False)
    frame["value"] = frame["value"].astype(float)

    def figure() -> Figure:
        drawn, axes = plt.subplots(1, 3, figsize=(7, 2.8), width_ratios=(1, 1, 1.2))
        for change in ("SAM", "x + out", "keys × 0.1", "scores / √d", "x + γ·out"):
            one = frame[frame["change"] == change]
            for axis, measure in zip(axes, ("entropy", "gradient_keys"), strict=False):
                rows = one[one["measure"] == measure]
                axis.plot(rows.groupby("step")["value"].mean(), label=change)
        axes[0].set(xlabel="step", ylabel="entropy / log N, mean of 8 modules", ylim=(0, 1))
        axes[1].set(xlabel="step", ylabel="gradient's norm of queries and keys", yscale="log")
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=5)
        ends = frame[frame["measure"] == "top1_error"].groupby("change", sort=False)["value"]
        means = ends.mean()[::-1]
        axes[2].barh(range(len(means)), means, color="#bbbbbb", height=0.7)
        for place, change in enumerate(means.index):
            values = ends.get_group(change)
            axes[2].plot(values, [place] * len(values), "o", ms=3, color="#000000")
        axes[2].set_yticks(range(len(means)), means.index)
        axes[2].axvline(99, color="#777777", ls=":", lw=1)
        axes[2].set(xlabel="top-1 error in %; dotted: guessing", xlim=(70, 100))
        axes[2].grid(False, axis="y")
        return drawn

    save(figure, [ROOT / f"figures/sam_learning.{kind}" for kind in ("pdf", "png")])


if __name__ == "__main__":
    main()
