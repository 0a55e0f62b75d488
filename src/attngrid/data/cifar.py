"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 32×32."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from attngrid.core.errors import DataError
from attngrid.data.images import Images
from attngrid.data.prepare import fetch, sizes_and_times, unfinished_folder, verify_md5
from attngrid.data.registry import find_dataset

# Torchvision's classes know the URLs and the checksums.
READERS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


def prepare(name: str, folder: Path, *, download: bool, thorough: bool) -> dict[str, Any]:
    """Unpack the archive if files are missing, and check each file's MD5 against torchvision's.

    Raises:
        DataError: missing or damaged files.
    """
    reader = READERS[name]
    listed = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    files = {f"{reader.base_folder}/{file}": md5 for file, md5 in listed}
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        file = folder / reader.filename
        archive = fetch(file, reader.url, reader.tgz_md5, download=download)
        with unfinished_folder(name, folder) as unpacked:
            shutil.unpack_archive(archive, unpacked, filter="data")
            for file in missing:
                os.renames(unpacked / file, folder / file)
    return {
        "source": reader.url,
        "images": {"train": 50_000, "test": 10_000},
        "checksums": {file: verify_md5(folder / file, md5) for file, md5 in files.items()},
        "watched": sizes_and_times(folder, files),
    }


def cifar10(folder: Path) -> tuple[Images, Images]:
    """The training and the test split of CIFAR-10."""
    return _read("cifar10", folder, train=True), _read("cifar10", folder, train=False)


def cifar100(folder: Path) -> tuple[Images, Images]:
    """The training and the test split of CIFAR-100, with its 100 fine labels."""
    return _read("cifar100", folder, train=True), _read("cifar100", folder, train=False)


def class_names(name: str, folder: Path) -> list[str]:
    """The names of the classes, in the order of the labels."""
    classes: list[str] = READERS[name](str(folder), train=False).classes
    return classes


def _read(name: str, folder: Path, *, train: bool) -> Images:
    try:
        split = READERS[name](str(folder), train=train)  # checks each MD5 before it unpickles
    except RuntimeError as error:
        raise DataError(f"{find_dataset(name).label} in {folder}: {error}") from error
    pixels_NCHW = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
    return Images(pixels_NCHW, torch.tensor(split.targets, dtype=torch.int64))
