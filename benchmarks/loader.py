"""Images in files against the usual way to read them: images a second and core.

    python benchmarks/loader.py [--json FILE] [--rounds 5] [--images 1000]

writes JPEGs of ImageNet's sizes, of made-up content, to a temporary folder, and reads epochs of
them as ImageNet is trained on: a random crop resized to 224×224, a flip, normalisation. By
``attngrid.data.stream.Stream``, and by torchvision's ImageFolder of PIL images and its transforms
(first and second version) in a DataLoader, each with as many reading processes as there are cores.
Nothing is trained. The rounds are interleaved, and an epoch's time has the start of its processes
in it; printed are medians, and quartiles in brackets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from attngrid.data import folders
from attngrid.data.stream import Stream
from attngrid.files import write_atomically
from attngrid.training.batches import processors
from attngrid.training.recipe import shipped_recipes
from attngrid.training.record import processor_name

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
    """About 500×375, as ImageNet's are, or upright, and some 100 kB; noise of every scale."""
    width, height = (int(random.normal(size, size / 20)) for size in (500, 375))
    if random.random() < 0.25:
        width, height = height, width
    pixels = np.full((height, width, 3), 128.0)
    for cells, contrast in ((4, 50.0), (16, 30.0), (64, 16.0), (256, 25.0)):
        coarse = random.normal(0, contrast, (cells, cells, 3)).clip(-127, 127) + 128
        image = Image.fromarray(coarse.astype(np.uint8)).resize((width, height))
        pixels += np.asarray(image) - 128.0
    pixels += random.normal(0, 8, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_pictures(root: Path, images: int) -> list[int]:
    """An image folder of two classes; the sizes of its training files in bytes."""
    random = np.random.default_rng(0)
    for split, count in (("train", images), ("val", 2)):
        for number in range(count):
            file = root / split / f"class{number % 2}" / f"{number:05}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(random).save(file, quality=90)
    return [file.stat().st_size for file in (root / "train").rglob("*.jpg")]


def images_per_s(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Over a whole epoch."""
    start = time.perf_counter()
    seen = sum(len(labels_N) for _, labels_N in batches)
    return seen / (time.perf_counter() - start)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    cores = processors()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]  # before this program is a part of it
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "pictures"
        sizes = write_pictures(root, options.images)
        index, _ = folders.load(f"imagefolder:{root}:2", Path(folder))
        sides: dict[str, Iterable[tuple[Tensor, Tensor]]] = {
            "ours": Stream(
                index,
                BATCH,
                shipped_recipes()["imagenet_100ep"].train_transforms,
                torch.device("cpu"),
                workers=cores,
                generator=torch.Generator().manual_seed(0),
            )
        }
        for name, transform in USUAL.items():
            usual: Any = ImageFolder(root / "train", transform)
            sides[name] = DataLoader(usual, BATCH, shuffle=True, num_workers=cores)
        for batches in sides.values():  # so that every file is in the system's memory
            images_per_s(batches)
        for _ in range(options.rounds):
            for side, batches in sides.items():
                rates.setdefault(side, []).append(images_per_s(batches) / cores)
    quartiles = {side: statistics.quantiles(found, n=4) for side, found in rates.items()}
    ratios = {name: quartiles["ours"][1] / quartiles[name][1] for name in USUAL}

    print(
        f"{processor_name()}, {cores} cores, load {load:.1f} before, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}; {options.images} JPEGs of "
        f"{statistics.median(sizes) / 1e3:.0f} kB (median), {options.rounds} rounds"
    )
    for side, (low, median, high) in quartiles.items():
        ratio = f"  ours is {ratios[side]:.2f} times that" if side in ratios else ""
        print(f"{side:>5}: {median:6.1f} images/s and core ({low:.1f}-{high:.1f}){ratio}")
    if options.json:
        versions = {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "pillow": PIL.__version__,
        }
        run = {
            "device_name": processor_name(),
            "cores": cores,
            "workers": cores,
            "load_before": load,
            "images": options.images,
            "median_bytes": statistics.median(sizes),
            "batch": BATCH,
            "rounds": options.rounds,
            "versions": versions,
        }
        content = {"run": run, "images_per_s_and_core": quartiles, "ratio": ratios}
        write_atomically(options.json, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
