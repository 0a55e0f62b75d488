"""Stanford Dogs (Khosla et al. 2011): 12,000 and 8,580 images of 120 breeds.

The archives are decoded once to arrays of 256×256 pixels. Trainings map them into memory, so
that all trainings on one machine share one copy.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attngrid.data.decoding import open_image, to_rgb
from attngrid.data.images import Images
from attngrid.data.prepare import fetch, sizes_and_times, unfinished_folder
from attngrid.data.registry import find_dataset

SOURCE = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
SIZE = 256
MD5 = {
    "images.tar": "1bb1f2a596ae7057f99d7d75860002ef",
    "lists.tar": "edbb9f16854ec66506b5f09b583e0656",
}


def prepare(name: str, folder: Path, *, download: bool, thorough: bool) -> dict[str, Any]:
    """Decode the images of each split into one array.

    Each image is resized to 256×256, whatever its aspect ratio, bilinearly and antialiased, as
    torchvision resizes a PIL image. ``thorough`` has no effect: every image is decoded anyway.

    Raises:
        DataError: a missing or damaged archive.
    """
    from scipy.io import loadmat

    dataset = find_dataset(name)
    archives = [
        fetch(folder / "stanford-dogs" / file, f"{SOURCE}{file}", md5, download=download)
        for file, md5 in MD5.items()
    ]
    counts = {}
    with unfinished_folder(name, folder) as unpacked:
        for archive in archives:
            shutil.unpack_archive(archive, unpacked, filter="data")
        for split in ("train", "test"):
            listed = loadmat(unpacked / f"{split}_list.mat")
            images = [
                unpacked / "Images" / str(cell.item()) for cell in listed["file_list"].ravel()
            ]
            labels_N = listed["labels"].ravel().astype(np.int64) - 1
            np.save(unpacked / f"{split}_labels.npy", labels_N)
            _decode(images, unpacked / f"{split}_images.npy")
            counts[split] = len(images)
        for array in dataset.files:
            os.renames(unpacked / Path(array).name, folder / array)
    return {
        "source": SOURCE,
        "images": counts,
        "checksums": {f"stanford-dogs/{file}": f"md5:{md5}" for file, md5 in MD5.items()},
        "watched": sizes_and_times(folder, dataset.files),
    }


def dogs(folder: Path) -> tuple[Images, Images]:
    """Both splits, N×3×256×256, mapped into memory; pages are read on first use."""
    # mapped copy-on-write, because torch needs writable arrays
    arrays = [
        torch.from_numpy(np.load(folder / file, mmap_mode="c", allow_pickle=False))
        for file in find_dataset("dogs").files
    ]
    train_NCHW, train_N, test_NCHW, test_N = arrays
    return Images(train_NCHW, train_N.clone()), Images(test_NCHW, test_N.clone())


def _decode(images: list[Path], target: Path) -> None:
    """Decode images in this order into an array file, uint8 N×3×256×256."""
    shape = (len(images), 3, SIZE, SIZE)
    pixels_NCHW = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)

    def decode(number: int) -> None:
        with open_image(images[number]) as image:
            small = to_rgb(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pixels_NCHW[number] = np.asarray(small).transpose(2, 0, 1)

    # threads suffice: PIL releases Python's global lock
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(decode, range(len(images))):
            pass
    pixels_NCHW.flush()
