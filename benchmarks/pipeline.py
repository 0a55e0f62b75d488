"""Images in memory against the usual way to feed a network: at least 5 times the images a second.

    python benchmarks/pipeline.py [--json FILE] [--threads 2] [--rounds 5]

makes epochs of training batches of CIFAR's size, random crop, flip and normalisation, of random
pixels: by ``attngrid.data.images.Batches``, and by a data set of PIL images with torchvision's
transforms, read by as many processes of a DataLoader as there are cores. Nothing is trained. The
rounds are interleaved; printed are medians, and quartiles in brackets. It ends non-zero where the
bound is not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from attngrid.data.images import Batches, Images, channel_statistics
from attngrid.files import write_atomically
from attngrid.training.batches import processors
from attngrid.training.recipe import Flip, RandomCrop
from attngrid.training.record import processor_name

BOUND = 5.0  # times the usual way's images a second
BATCH = 128
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
USUAL = {
    "v1": v1.Compose(
        [
            v1.RandomCrop(32, padding=4),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(MEAN, STD),
        ]
    ),
    "v2": v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    ),
}


class Pictures(Dataset[tuple[Any, int]]):
    """As torchvision's CIFAR100: an array in memory, a PIL image of each item, transforms on it."""

    def __init__(self, pixels_NHWC: Any, labels: list[int], transform: Callable[[Any], Any]):
        self.pixels_NHWC, self.labels, self.transform = pixels_NHWC, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels_NHWC[index])), self.labels[index]


def images_per_s(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Over a whole epoch, the start of its processes left out: the first batch is not counted."""
    iterator = iter(batches)
    next(iterator)
    start, seen = time.perf_counter(), 0
    for _, labels_N in iterator:
        seen += len(labels_N)
    return seen / (time.perf_counter() - start)


def main() -> int:
    """Measure, print, compare with the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, default=processors())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=50_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]  # before this program is a part of it

    rng = np.random.default_rng(0)
    pixels_NHWC = rng.integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    labels_N = rng.integers(0, 100, options.images)
    images = Images(
        torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels_N)
    )
    crop, flip = RandomCrop(kind="random_crop", padding=4), Flip(kind="flip")
    sides: dict[str, Iterable[tuple[Tensor, Tensor]]] = {
        "ours": Batches(
            images,
            BATCH,
            *channel_statistics(images),
            (crop, flip),
            torch.Generator().manual_seed(0),
        )
    }
    for name, transform in USUAL.items():
        sides[name] = DataLoader(
            Pictures(pixels_NHWC, labels_N.tolist(), transform),
            BATCH,
            shuffle=True,
            num_workers=processors(),
        )
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, batches in sides.items():
            rates[side].append(images_per_s(batches))
    quartiles = {side: statistics.quantiles(found, n=4) for side, found in rates.items()}
    ratios = {name: quartiles["ours"][1] / quartiles[name][1] for name in USUAL}

    print(
        f"{processor_name()}, {processors()} cores, {options.threads} threads, load {load:.1f} "
        f"before, torch {torch.__version__}; {options.images} images, {options.rounds} rounds"
    )
    for side, (low, median, high) in quartiles.items():
        ratio = f"  ours is {ratios[side]:.1f} times that" if side in ratios else ""
        print(f"{side:>5}: {median:9,.0f} images/s ({low:,.0f}-{high:,.0f}){ratio}")
    if options.json:
        versions = {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        }
        run = {
            "device_name": processor_name(),
            "cores": processors(),
            "threads": options.threads,
            "workers": processors(),
            "load_before": load,
            "images": options.images,
            "batch": BATCH,
            "rounds": options.rounds,
            "versions": versions,
        }
        content = {"run": run, "images_per_s": quartiles, "ratio": ratios}
        write_atomically(options.json, json.dumps(content, indent=1) + "\n")
    return int(min(ratios.values()) < BOUND)


if __name__ == "__main__":
    sys.exit(main())
