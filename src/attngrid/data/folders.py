"""Image folders: ImageNet-1K, and any folder with ``train/<class>/`` and ``val/<class>/``.

The images stay in their files. All files are listed and checked once; the list is kept as an index
beside the report, and is loaded without looking at the images again.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attngrid.core.errors import DataError
from attngrid.core.files import write_atomically
from attngrid.data.prepare import Summary, report_file, sizes_and_times
from attngrid.data.prepare import prepare as prepare_dataset
from attngrid.data.registry import find_dataset

# As in torchvision's ImageFolder.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# ILSVRC 2012: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, Table 2.
IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}

READERS = 16  # threads, which mostly wait for the disk or a file server
CHUNK = 500  # files that a thread or process checks at a time


@dataclass(frozen=True)
class FolderIndex:
    """A split whose images stay in their files.

    Attributes:
        root: folder of the dataset.
        files: N paths relative to ``root``, as UTF-8, sorted by class and name.
        labels: N whole numbers from 0, int64.
        classes: names of the classes, by label.
    """

    root: Path
    files: npt.NDArray[np.bytes_]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.root / os.fsdecode(bytes(self.files[index]))

    def first_classes(self, classes: int) -> FolderIndex:
        """Only the images of labels below ``classes``."""
        kept = self.labels < classes
        return FolderIndex(self.root, self.files[kept], self.labels[kept], self.classes[:classes])

    def only(self, kept: npt.NDArray[np.bool_]) -> FolderIndex:
        """Only the images where ``kept`` is true."""
        return FolderIndex(self.root, self.files[kept], self.labels[kept], self.classes)


def load(name: str, folder: Path, *, classes: int | None = None) -> tuple[FolderIndex, FolderIndex]:
    """The training and the held-out split of ``imagenet`` or an ``imagefolder:PATH``.

    Args:
        name: as ``find_dataset`` takes it.
        folder: the data folder.
        classes: keep the first so many classes only; None keeps all.

    Raises:
        DataError: as ``prepare``, which is called first.
    """
    prepare_dataset(name, folder)
    with np.load(_index_file(name, folder), allow_pickle=False) as index:
        names = tuple(index["classes"].tolist())
        train, test = (
            FolderIndex(_root(name, folder), index[f"{s}_files"], index[f"{s}_labels"], names)
            for s in ("train", "test")
        )
    if classes is None:
        return train, test
    return train.first_classes(classes), test.first_classes(classes)


def prepare(name: str, folder: Path, *, download: bool, thorough: bool) -> Summary:
    """List and check every class folder and every file, and write the index.

    A file is accepted if it begins and ends like a JPEG or PNG, or else if it can be decoded. With
    ``thorough`` every image is decoded.

    Raises:
        DataError: wrong classes, a wrong number of images, or files that cannot be read; the
            message names the first few.
    """
    dataset, root = find_dataset(name), _root(name, folder)
    splits = {"train": root / "train", "test": _held_out(root)}
    classes = _check_classes(name, splits)
    watched = sizes_and_times(
        folder, [str((path / c).absolute()) for path in splits.values() for c in (".", *classes)]
    )
    arrays: dict[str, npt.NDArray[np.generic]] = {"classes": np.array(classes)}
    images: dict[str, int] = {}
    damaged: list[str] = []
    ignored = 0
    for split, path in splits.items():
        listed, others = _list_images(path, classes)
        ignored += others
        if empty := [path / c for c, names in zip(classes, listed, strict=True) if not names]:
            raise DataError(f"{dataset.label}: no image in {_first_few(empty)}")
        files = [
            f"{path.name}/{c}/{file}"
            for c, names in zip(classes, listed, strict=True)
            for file in names
        ]
        images[split] = len(files)
        arrays[f"{split}_files"] = np.array([os.fsencode(file) for file in files])
        counts = [len(names) for names in listed]
        arrays[f"{split}_labels"] = np.repeat(np.arange(len(classes)), counts)
        _check_count(name, path, len(files))
        damaged += _check_files([str(root / file) for file in files], thorough=thorough)
    if damaged:
        raise DataError(
            f"{dataset.label}: {len(damaged)} of {sum(images.values()):,} images cannot be read: "
            f"{_first_few(damaged)}. Replace them, or move them out of the folder"
        )
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    index = _index_file(name, folder)
    write_atomically(index, stream.getvalue())
    return Summary(
        source=str(root),
        images=images,
        classes=len(classes),
        watched=watched | sizes_and_times(folder, [str(index.relative_to(folder))]),
        ignored=ignored,
    )


def _root(name: str, folder: Path) -> Path:
    own = find_dataset(name).folder
    return folder / name if own is None else Path(own)


def _held_out(root: Path) -> Path:
    """``val``, or ``test`` if only that is there."""
    val, test = root / "val", root / "test"
    return test if test.is_dir() and not val.is_dir() else val


def _index_file(name: str, folder: Path) -> Path:
    return report_file(name, folder).with_suffix(".npz")


def _check_classes(name: str, splits: dict[str, Path]) -> list[str]:
    """The names of the class folders, sorted, which both splits must share."""
    dataset = find_dataset(name)
    for path in splits.values():
        if not path.is_dir():
            raise DataError(
                f"{dataset.label}: there is no folder {path}; put each image in "
                f"{path}/<class>/ (a link to where they are will do)"
            )
    found = {split: _class_folders(path) for split, path in splits.items()}
    for split, path in splits.items():
        if not found[split]:
            raise DataError(
                f"{dataset.label}: {path} has no class folders; its images belong in "
                f"{path}/<class>/"
            )
    train, test = set(found["train"]), set(found["test"])
    if train != test:
        lacking = {splits["test"]: train - test, splits["train"]: test - train}
        text = "; ".join(
            f"{path} lacks {_first_few(sorted(names))}" for path, names in lacking.items() if names
        )
        raise DataError(f"{dataset.label}: both splits need the same classes: {text}")
    if len(train) != dataset.num_classes:
        raise DataError(
            f"{dataset.label}: found {len(train)} classes in {splits['train']}, expected "
            f"{dataset.num_classes}"
        )
    odd = [c for c in found["train"] if not re.fullmatch(r"n\d{8}", c)]
    if name == "imagenet" and odd:
        raise DataError(
            f"{dataset.label}: class folders must have WordNet ids such as n01440764; found "
            f"{_first_few(odd)}"
        )
    return found["train"]


def _check_count(name: str, path: Path, count: int) -> None:
    expected = IMAGENET_COUNTS[path.name] if name == "imagenet" else count
    if count != expected:
        raise DataError(
            f"ImageNet-1K: found {count:,} images in {path}, expected {expected:,}: a part of the "
            "archive was not unpacked, or other files are among them"
        )


def _class_folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _list_images(path: Path, classes: list[str]) -> tuple[list[list[str]], int]:
    """The sorted image names of each class, and the number of other files."""
    with ThreadPoolExecutor(READERS) as threads:
        names = list(threads.map(os.listdir, [path / c for c in classes]))
    images = [
        sorted(n for n in of_class if n.lower().endswith(EXTENSIONS) and not n.startswith("."))
        for of_class in names
    ]
    return images, sum(map(len, names)) - sum(map(len, images))


def _first_few(items: Iterable[object]) -> str:
    shown = [str(item) for item in items]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _check_files(files: list[str], *, thorough: bool) -> list[str]:
    """``file (damage)`` of each file that is not a whole image."""
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    pool: Executor = ThreadPoolExecutor(READERS)
    if thorough:  # decoding keeps a processor busy, so each worker needs its own
        pool = ProcessPoolExecutor(mp_context=get_context("spawn"))
    with pool:
        found = pool.map(partial(_damaged, thorough=thorough), chunks)
        return [file for damaged in found for file in damaged]


def _damaged(files: list[str], *, thorough: bool) -> list[str]:
    find = _decoding_error if thorough else _damage
    return [f"{file} ({damage})" for file in files if (damage := find(file))]


def _damage(file: str) -> str:
    """What is wrong with an image file, judged by its first and last bytes if possible."""
    try:
        with Path(file).open("rb", buffering=0) as stream:
            head = stream.read(8)
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 8))
            tail = stream.read(8)
    except OSError as error:
        return error.strerror or str(error)
    # by the content, since ImageNet has a PNG that is named JPEG
    jpeg = head.startswith(b"\xff\xd8\xff") and tail.endswith(b"\xff\xd9")
    png = head == b"\x89PNG\r\n\x1a\n" and tail[:4] == b"IEND"
    return "" if jpeg or png else _decoding_error(file)


def _decoding_error(file: str) -> str:
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.convert("RGB")
    except Exception as error:  # a decoder may raise anything on damaged bytes
        if isinstance(error, OSError) and error.errno is not None:
            return error.strerror or str(error)
        return "not an image" if "cannot identify" in str(error) else str(error)
    return ""
