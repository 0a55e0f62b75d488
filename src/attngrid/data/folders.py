"""Image folders: ImageNet-1K, and any folder with ``train/<class>/`` and ``val/<class>/``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attngrid.core.errors import DataError
from attngrid.data.decoding import open_image, require_8_bits, require_regular, to_rgb
from attngrid.data.images import ImageFiles
from attngrid.data.prepare import sizes_and_times
from attngrid.data.registry import class_folders, find_dataset, is_hidden

# ILSVRC 2012: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, Table 2.
IMAGENET_COUNTS = {"train": 1_281_167, "test": 50_000}
READERS = 16  # threads, which mostly wait for the disk or a file server
# The endings of torchvision's ImageFolder.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass
class Listing:
    """The files of one split.

    Attributes:
        folders: the split's folder, and each folder in which images were looked for.
        files: the images, in the order of torchvision's ImageFolder.
        labels: the label of each image, its class's position in ``classes``.
        nested: the images in subfolders of a class folder.
        ignored: other files, and files outside the class folders.
    """

    root: Path
    classes: list[str]
    folders: list[str]
    files: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def list_files(name: str, folder: Path) -> tuple[ImageFiles, ImageFiles]:
    """The training and the held-out split of ``imagenet`` or an ``imagefolder:PATH``."""
    train, test = (
        ImageFiles(
            np.array([os.fsencode(file) for file in images.files]),
            torch.tensor(images.labels),
        )
        for images in _list_images(name, folder).values()
    )
    return train, test


def prepare(name: str, folder: Path, *, download: bool, thorough: bool) -> dict[str, Any]:
    """Check every class folder and every file.

    A file is accepted if it begins and ends like a JPEG or PNG, or if it can be decoded. With
    ``thorough`` every image is decoded. An image with more than 8 bits of grey is refused.

    Raises:
        DataError: wrong classes, a class without images, a wrong number of images, or unreadable
            files; the message names the first five.
        OSError: the folder does not exist.
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
    counts = {split: len(images.files) for split, images in splits.items()}
    if name == "imagenet" and counts != IMAGENET_COUNTS:
        raise DataError(
            f"ImageNet-1K: found {counts} images, expected {IMAGENET_COUNTS}: an archive was not "
            "unpacked completely, or the folders contain other images"
        )
    files = [file for images in splits.values() for file in images.files]
    with ThreadPool(READERS) as threads:  # PIL releases Python's global lock
        damages = threads.map(partial(_damage, thorough=thorough), files, chunksize=500)
    damaged = [f"{f} ({damage})" for f, damage in zip(files, damages, strict=True) if damage]
    if damaged:
        raise DataError(
            f"{dataset.label}: {len(damaged)} of {len(files):,} images cannot be read: "
            f"{_first_few(damaged)}. Replace them, or move them out of the folder"
        )
    folders = [str(Path(one).absolute()) for split in splits.values() for one in split.folders]
    notes = {
        "images in subfolders of a class": [f for one in splits.values() for f in one.nested],
        "ignored files": [f for one in splits.values() for f in one.ignored],
    }
    return {
        "source": str(_root(name, folder).absolute()),
        "images": counts,
        "notes": [f"{kind}: {len(of)} ({_first_few(of)})" for kind, of in notes.items() if of],
        "watched": sizes_and_times(folder, folders),
    }


def _root(name: str, folder: Path) -> Path:
    root = find_dataset(name).folder
    return folder / name if root is None else Path(root)


def _list_images(name: str, folder: Path) -> dict[str, Listing]:
    """Both splits; the held-out images are in ``val``, or in ``test`` if there is no ``val``."""
    root = _root(name, folder)
    held_out = "test" if (root / "test").is_dir() and not (root / "val").is_dir() else "val"
    return {"train": _list_split(root / "train"), "test": _list_split(root / held_out)}


def _list_split(root: Path) -> Listing:
    found = Listing(root, class_folders(root), folders=[str(root)])
    found.ignored += sorted(str(file) for file in root.iterdir() if not file.is_dir())
    empty = []
    for label, name in enumerate(found.classes):
        before = len(found.files)
        for folder, names in sorted(_walk(root / name)):
            found.folders.append(folder)
            is_image = {n: n.lower().endswith(ENDINGS) and n[0] != "." for n in sorted(names)}
            images = [f"{folder}/{n}" for n in is_image if is_image[n]]
            found.files += images
            found.nested += images if folder != str(root / name) else []
            found.ignored += [f"{folder}/{n}" for n in is_image if not is_image[n]]
        found.labels += [label] * (len(found.files) - before)
        if len(found.files) == before:
            empty.append(name)
    if empty or not found.classes:
        raise DataError(
            f"{root}: found no images in {_first_few(empty) or 'it'}; each class needs a folder "
            f"with files that end in {', '.join(ENDINGS)}"
        )
    return found


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder and the names of its files, without hidden folders."""
    for folder, inside, names in os.walk(top, followlinks=True):
        inside[:] = [name for name in inside if not is_hidden(name)]
        yield folder, names


def class_names(name: str, folder: Path) -> list[str]:
    """The class folders in the order of the labels."""
    return class_folders(_root(name, folder) / "train")


def _first_few(items: list[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


def _damage(file: str, *, thorough: bool) -> str:
    """Why an image file is damaged, judged by its first and last bytes if possible; or ""."""
    try:
        require_regular(file)
        with Path(file).open("rb", buffering=0) as stream:
            head = stream.read(8)
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 8))
            tail = stream.read(8)
        # by content, because ImageNet has a PNG file with the suffix .JPEG
        jpeg = head.startswith(b"\xff\xd8\xff") and tail.endswith(b"\xff\xd9")
        png = head == b"\x89PNG\r\n\x1a\n" and tail[:4] == b"IEND"
        if thorough or not jpeg:
            with open_image(file) as image:
                require_8_bits(image)
                if thorough or not png:
                    to_rgb(image).load()
    except Exception as error:  # a decoder may raise anything on damaged bytes
        return str(error)
    return ""
