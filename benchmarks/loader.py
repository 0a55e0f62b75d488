"""Reading of image files, compared with torchvision's: images per second and core.

    python benchmarks/loader.py [--json FILE] [--rounds 5] [--images 1000]

It writes synthetic JPEGs of ImageNet's sizes to a temporary folder and reads epochs of them with
the transforms of a training on ImageNet: a random crop resized to 224×224, a flip, normalisation.
It compares ``attngrid.data.stream.Stream`` with a DataLoader of torchvision's ImageFolder and its
transforms (first and second version). Each has as many reading processes as there are cores.
Nothing is trained.

The sides take turns. The output is medians, with quartiles in brackets. "images/s and core" divides
by the processor time of all processes, with their start, so other jobs on the machine hardly change
it. The images per second of the whole machine, by the clock, are printed next to it.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from sides import headline, machine_info, quartiles, report
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from attngrid.core.hardware import processors
from attngrid.data.loading import load_files
from attngrid.data.stream import Stream
from attngrid.study.recipe import shipped_recipes

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
USUAL = {
    "v1": v1.Compose(
        [
            v1.RandomResizedCrop(224),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(MEAN, STD),
        ]
    ),
    "v2": v2.Compose(
        [
            v2.RandomResizedCrop(224),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    ),
}


def picture(random: np.random.Generator) -> Image.Image:
    """Noise of several scales, about 500×375 or 375×500 as in ImageNet; some 100 kB as a JPEG."""
    width, height = (int(random.normal(size, size / 20)) for size in (500, 375))
    if random.random() < 0.25:
        width, height = height, width
    pixels = random.normal(128, 8, (height, width, 3)).astype(np.float32)
    for cells, contrast in ((4, 50.0), (16, 30.0), (64, 16.0), (256, 25.0)):
        coarse = random.normal(0, contrast, (cells, cells, 3)).clip(-127, 127) + 128
        image = Image.fromarray(coarse.astype(np.uint8)).resize((width, height))
        pixels += np.asarray(image, np.float32) - 128
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_pictures(root: Path, images: int) -> list[int]:
    """Write an image folder of two classes; return the sizes of its training files in bytes."""
    random = np.random.default_rng(0)
    for split, count in (("train", images), ("val", 2)):
        for number in range(count):
            file = root / split / f"class{number % 2}" / f"{number:05}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(random).save(file, quality=90)
    return [file.stat().st_size for file in (root / "train").rglob("*.jpg")]


def processor_s() -> float:
    """Processor time of this process and of its child processes that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def images_per_s(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Images per second over a whole epoch: of processor time, and by the clock."""
    before, start = processor_s(), time.perf_counter()
    seen = sum(len(labels_N) for _, labels_N in batches)
    elapsed = time.perf_counter() - start
    return seen / (processor_s() - before), seen / elapsed


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = machine_info(
        workers=processors(),
        images=options.images,
        batch=BATCH,
        rounds=options.rounds,
        torchvision=str(torchvision.__version__),
        pillow=PIL.__version__,
    )
    rates: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "pictures"
        run["median_bytes"] = statistics.median(write_pictures(root, options.images))
        files, _ = load_files(f"imagefolder:{root}:2", Path(folder))
        sides: dict[str, Iterable[tuple[Tensor, Tensor]]] = {
            "ours": Stream(
                files,
                BATCH,
                shipped_recipes()["imagenet_100ep"].train_transforms,
                torch.device("cpu"),
                workers=processors(),
                generator=torch.Generator().manual_seed(0),
            )
        }
        for name, transform in USUAL.items():
            usual: Any = ImageFolder(root / "train", transform)
            sides[name] = DataLoader(usual, BATCH, shuffle=True, num_workers=processors())
        for number in range(1 + options.rounds):
            for side, batches in sides.items():
                rate = images_per_s(batches)
                if number:  # the first round fills the file cache
                    rates.setdefault(side, []).append(rate)
    of_core, of_all = (
        {side: quartiles([rate[which] for rate in found]) for side, found in rates.items()}
        for which in (0, 1)
    )
    ratios = {
        name: quartiles([a / b for (a, _), (b, _) in zip(rates["ours"], rates[name], strict=True)])
        for name in USUAL
    }

    print(headline(run))
    for side, (low, median, high) in of_core.items():
        q = ratios.get(side)
        ratio = f"  ours is {q[1]:.2f} times as fast ({q[0]:.2f}-{q[2]:.2f})" if q else ""
        print(
            f"{side:>5}: {median:6.1f} images/s and core ({low:.1f}-{high:.1f}), "
            f"{of_all[side][1]:6.1f} of the machine{ratio}"
        )
    report(options.json, run, images_per_s_and_core=of_core, images_per_s=of_all, ratio=ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
