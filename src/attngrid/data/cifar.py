"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 32×32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attngrid.core.errors import DataError
from attngrid.data.archives import Archive, extract, fetch, verify_md5
from attngrid.data.images import Images
from attngrid.data.prepare import Summary, move_into_place, sizes_and_times, unfinished_folder
from attngrid.data.registry import find_dataset


def prepare(name: str, folder: Path, *, download: bool, thorough: bool) -> Summary:
    """Unpack the archive if files are missing, and check each file's MD5 against torchvision's.

    Raises:
        DataError: missing or damaged files.
    """
    reader = _reader(name)
    listed = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    files = {f"{reader.base_folder}/{file}": md5 for file, md5 in listed}
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        official = Archive(reader.filename, reader.url, reader.tgz_md5)
        archive = fetch(official, folder, download=download)
        with unfinished_folder(name, folder) as unpacked:
            extract(archive, unpacked)
            for file in missing:
                if not (unpacked / file).is_file():
                    raise DataError(f"{archive} has no {file}")
                move_into_place(unpacked / file, folder / file)
    checksums = {file: verify_md5(folder / file, md5) for file, md5 in files.items()}
    return Summary(
        source=reader.url,
        images={"train": 50_000, "test": 10_000},
        classes=find_dataset(name).num_classes,
        watched=sizes_and_times(folder, files),
        checksums=checksums,
    )


def cifar10(folder: Path) -> tuple[Images, Images]:
    """The training and the test split of CIFAR-10."""
    return _read("cifar10", folder)


def cifar100(folder: Path) -> tuple[Images, Images]:
    """The training and the test split of CIFAR-100, with its 100 fine labels."""
    return _read("cifar100", folder)


def _reader(name: str) -> Any:
    """Torchvision's class, which knows the URL and the checksums."""
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _read(name: str, folder: Path) -> tuple[Images, Images]:
    try:
        # torchvision compares the MD5 before it unpickles
        splits = [_reader(name)(str(folder), train=train) for train in (True, False)]
    except RuntimeError as error:
        raise DataError(f"{find_dataset(name).label} in {folder}: {error}") from error
    train, test = (
        Images(
            torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(split.targets, dtype=torch.int64),
        )
        for split in splits
    )
    return train, test
