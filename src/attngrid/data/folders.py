"""Image folders: ImageNet-1K, and any folder with ``train/<class>/`` and ``val/<class>/``."""

from __future__ import annotations

import os
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import find_classes

from attngrid.core.errors import DataError
from attngrid.data.images import ImageFiles
from attngrid.data.prepare import sizes_and_times
from attngrid.data.registry import find_dataset

# ILSVRC 2012: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, Table 2.
IMAGENET_COUNTS = {"train": 1_281_167, "test": 50_000}
READERS = 16  # threads, which mostly wait for the disk or a file server


def list_files(name: str, folder: Path) -> tuple[ImageFiles, ImageFiles]:
    """The training and the held-out split of ``imagenet`` or an ``imagefolder:PATH``."""
    train, test = (
        ImageFiles(
            np.array([os.fsencode(file) for file, _ in images.samples]),
            torch.tensor(images.targets),
        )
        for images in _list_images(name, folder).values()
    )
    return train, test


def prepare(name: str, folder: Path, *, download: bool, thorough: bool) -> dict[str, Any]:
    """Check every class folder and every file.

    A file is accepted if it begins and ends like a JPEG or PNG, or if it can be decoded. With
    ``thorough`` every image is decoded.

    Raises:
        DataError: wrong classes, a wrong number of images, or unreadable files; the message names
            the first five.
        OSError: the folder does not exist, or a class has no images.
    """
    dataset, splits = find_dataset(name), _list_images(name, folder)
    classes = splits["train"].classes
    if unmatched := set(classes) ^ set(splits["test"].classes):
        raise DataError(
            f"{dataset.label}: both splits need the same classes; one of them lacks "
            f"{_first_few(sorted(unmatched))}"
        )
    if len(classes) != dataset.num_classes:
        raise DataError(
            f"{dataset.label}: found {len(classes)} classes in {splits['train'].root}, expected "
            f"{dataset.num_classes}"
        )
    counts = {split: len(images) for split, images in splits.items()}
    if name == "imagenet" and counts != IMAGENET_COUNTS:
        raise DataError(
            f"ImageNet-1K: found {counts} images, expected {IMAGENET_COUNTS}: an archive was not "
            "unpacked completely, or the folders contain other images"
        )
    files = [file for images in splits.values() for file, _ in images.samples]
    with ThreadPool(READERS) as threads:  # PIL releases Python's global lock
        damages = threads.map(partial(_damage, thorough=thorough), files, chunksize=500)
    damaged = [f"{f} ({damage})" for f, damage in zip(files, damages, strict=True) if damage]
    if damaged:
        raise DataError(
            f"{dataset.label}: {len(damaged)} of {len(files):,} images cannot be read: "
            f"{_first_few(damaged)}. Replace them, or move them out of the folder"
        )
    folders = [Path(i.root, c).absolute() for i in splits.values() for c in (".", *classes)]
    return {
        "source": str(_root(name, folder).absolute()),
        "images": counts,
        "watched": sizes_and_times(folder, map(str, folders)),
    }


def _root(name: str, folder: Path) -> Path:
    root = find_dataset(name).folder
    return folder / name if root is None else Path(root)


def _list_images(name: str, folder: Path) -> dict[str, ImageFolder]:
    """Both splits; the held-out images are in ``val``, or in ``test`` if there is no ``val``."""
    root = _root(name, folder)
    held_out = "test" if (root / "test").is_dir() and not (root / "val").is_dir() else "val"
    return {"train": ImageFolder(str(root / "train")), "test": ImageFolder(str(root / held_out))}


def class_names(name: str, folder: Path) -> list[str]:
    """The class folders in the order of the labels."""
    classes: list[str] = find_classes(str(_root(name, folder) / "train"))[0]
    return classes


def _first_few(items: list[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


def _damage(file: str, *, thorough: bool) -> str:
    """Why an image file is damaged, judged by its first and last bytes if possible; or ""."""
    try:
        with Path(file).open("rb", buffering=0) as stream:
            head = stream.read(8)
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 8))
            tail = stream.read(8)
        # by content, because ImageNet has a PNG file with the suffix .JPEG
        jpeg = head.startswith(b"\xff\xd8\xff") and tail.endswith(b"\xff\xd9")
        png = head == b"\x89PNG\r\n\x1a\n" and tail[:4] == b"IEND"
        if thorough or not (jpeg or png):
            with Image.open(file) as image:
                image.convert("RGB")
    except Exception as error:  # a decoder may raise anything on damaged bytes
        return str(error)
    return ""
