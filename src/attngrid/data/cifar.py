"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 32×32, by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attngrid.core.errors import DataError
from attngrid.data.prepare import (
    Archive,
    Found,
    checked,
    extract,
    fetch,
    move_into_place,
    scratch,
    stats,
)
from attngrid.data.registry import find_dataset


def prepare(name: str, folder: Path, *, download: bool, thorough: bool) -> Found:
    """Unpack the archive where files are missing, and check the MD5 of each, as torchvision has it.

    Raises:
        DataError: files missing or damaged.
    """
    reader = _torchvision(name)
    listed = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    files = {f"{reader.base_folder}/{file}": md5 for file, md5 in listed}
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        archive = fetch(
            Archive(reader.filename, reader.url, reader.tgz_md5), folder, download=download
        )
        with scratch(name, folder) as unpacked:
            extract(archive, unpacked)
            for file in missing:
                if not (unpacked / file).is_file():
                    raise DataError(f"{archive} has no {file}")
                move_into_place(unpacked / file, folder / file)
    checksums = {file: checked(folder / file, md5) for file, md5 in files.items()}
    return Found(
        source=reader.url,
        images={"train": 50_000, "test": 10_000},
        classes=find_dataset(name).num_classes,
        watched=stats(folder, files),
        checksums=checksums,
    )


def cifar10(folder: Path) -> Any:
    """CIFAR-10's two splits."""
    return _read("cifar10", folder)


def cifar100(folder: Path) -> Any:
    """CIFAR-100's two splits, with the 100 fine labels."""
    return _read("cifar100", folder)


def _torchvision(name: str) -> Any:
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _read(name: str, folder: Path) -> Any:
    from attngrid.data.images import Images

    try:
        # unpickled only where its MD5 is the official one, which torchvision looks at first
        splits = [_torchvision(name)(str(folder), train=train) for train in (True, False)]
    except RuntimeError as error:
        raise DataError(f"{find_dataset(name).label} in {folder}: {error}") from error
    return tuple(
        Images(
            torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(split.targets, dtype=torch.int64),
        )
        for split in splits
    )
