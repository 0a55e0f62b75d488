"""Transforms of images in memory, compared with torchvision's: at least 5 times as fast.

    python benchmarks/pipeline.py [--json FILE] [--threads 2] [--rounds 5]

It makes epochs of training batches of CIFAR's size from random pixels, with random crop, flip and
normalisation. It compares ``attngrid.data.images.Batches`` with torchvision's transforms of PIL
images in a DataLoader, which has as many worker processes as there are cores. Nothing is trained.
The sides take turns. The output is medians, with quartiles in brackets. The exit code is 1 if the
bound is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torchvision
from peers.feed import MEAN, STD, Pictures, usual_transform
from sides import headline, machine_info, quartiles, report
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from attngrid.core.hardware import processors
from attngrid.data.images import Batches, Images, channel_statistics
from attngrid.data.transforms import Flip, RandomCrop

BOUND = 5.0  # our images per second divided by torchvision's
BATCH = 128
USUAL = {
    "v1": usual_transform(32),
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


def images_per_s(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Images per second over an epoch without its first batch, which waits for the workers."""
    iterator = iter(batches)
    next(iterator)
    start, seen = time.perf_counter(), 0
    for _, labels_N in iterator:
        seen += len(labels_N)
    return seen / (time.perf_counter() - start)


def main() -> int:
    """Measure, print, compare with the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--threads", type=int, default=processors())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=50_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = machine_info(
        threads=options.threads,
        images=options.images,
        batch=BATCH,
        rounds=options.rounds,
        torchvision=str(torchvision.__version__),
    )

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
    found = {side: quartiles(values) for side, values in rates.items()}
    ratios = {
        name: quartiles([a / b for a, b in zip(rates["ours"], rates[name], strict=True)])
        for name in USUAL
    }

    print(headline(run))
    for side, (low, median, high) in found.items():
        q = ratios.get(side)
        ratio = f"  ours is {q[1]:.1f} times as fast ({q[0]:.1f}-{q[2]:.1f})" if q else ""
        print(f"{side:>5}: {median:9,.0f} images/s ({low:,.0f}-{high:,.0f}){ratio}")
    report(options.json, run, images_per_s=found, ratio=ratios)
    return int(min(median for _, median, _ in ratios.values()) < BOUND)


if __name__ == "__main__":
    sys.exit(main())
