"""Image folders: ImageNet-1K and any folder with ``train/<class>/`` and ``val/<class>/``.

The images stay in their files. Which there are, and that each can be read, is found out once; the
index beside the report is loaded without looking at a single image again.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attngrid.core.errors import DataError
from attngrid.core.files import write_atomically
from attngrid.data.prepare import OURS, Found, report_file, stats
from attngrid.data.prepare import prepare as make_ready
from attngrid.data.registry import find_dataset

# torchvision's, of ImageFolder
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# ILSVRC 2012: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, Table 2
IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}

# Threads that wait for the disk, or for a file server.
READERS = 16

Bytes = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class FolderIndex:
    """A split whose images stay in their files.

    Attributes:
        root: the folder that holds it.
        files: N paths relative to ``root``, as UTF-8; in the order of their names.
        labels: N whole numbers from 0, int64.
        classes: the classes' names, by label.
    """

    root: Path
    files: Bytes
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.root / os.fsdecode(bytes(self.files[index]))

    def first_classes(self, classes: int) -> FolderIndex:
        """Only the images of labels below ``classes``."""
        first = self.only(self.labels < classes)
        return FolderIndex(first.root, first.files, first.labels, self.classes[:classes])

    def only(self, kept: npt.NDArray[np.bool_]) -> FolderIndex:
        """Only the images where ``kept`` is true."""
        return FolderIndex(self.root, self.files[kept], self.labels[kept], self.classes)


def load(name: str, folder: Path, *, classes: int | None = None) -> tuple[FolderIndex, FolderIndex]:
    """The training and the held-out split of ``imagenet`` or of an ``imagefolder:PATH``.

    Args:
        name: as ``find_dataset`` takes it.
        folder: the data folder.
        classes: keep the first so many only.

    Raises:
        DataError: as ``prepare`` does, which is called where it has not been.
    """
    make_ready(name, folder)
    with np.load(_index_file(name, folder), allow_pickle=False) as index:
        names = tuple(index["classes"].tolist())
        train, test = (
            FolderIndex(_root(name, folder), index[f"{s}_files"], index[f"{s}_labels"], names)
            for s in ("train", "test")
        )
    return (
        (train, test)
        if classes is None
        else (
            train.first_classes(classes),
            test.first_classes(classes),
        )
    )


def prepare(name: str, folder: Path, *, download: bool, thorough: bool) -> Found:
    """Look at every class folder and every file once; write the index.

    A file passes that has the first and the last bytes of a JPEG or PNG, or that can be decoded:
    what is cut short or empty does not. With ``thorough`` every image is decoded.

    Raises:
        DataError: not the classes or the number of images that there should be, or files that
            cannot be read; the message names the first few.
    """
    dataset, root = find_dataset(name), _root(name, folder)
    splits = {"train": root / "train", "test": _held_out(root)}
    for path in splits.values():
        if not path.is_dir():
            raise DataError(
                f"{dataset.label}: there is no folder {path}; put each image in "
                f"{path}/<class>/ (a link to where they are will do)"
            )
    found = {split: _folders(path) for split, path in splits.items()}
    classes = found["train"]
    _check_classes(name, splits, found)
    watched = stats(
        folder,
        [
            str(looked_at.absolute())
            for split, path in splits.items()
            for looked_at in (path, *(path / c for c in found[split]))
        ],
    )
    arrays: dict[str, npt.NDArray[np.generic]] = {"classes": np.array(classes)}
    images: dict[str, int] = {}
    bad: list[str] = []
    ignored = 0
    with ThreadPoolExecutor(READERS) as threads:
        for split, path in splits.items():
            listed = list(threads.map(_images, [path / c for c in classes]))
            ignored += sum(others for _, others in listed)
            if empty := [c for c, (files, _) in zip(classes, listed, strict=True) if not files]:
                raise DataError(f"{dataset.label}: no image in {_few(path / c for c in empty)}")
            files = [
                f"{path.name}/{c}/{file}"
                for c, (names, _) in zip(classes, listed, strict=True)
                for file in names
            ]
            counts = [len(names) for names, _ in listed]
            images[split] = len(files)
            arrays[f"{split}_files"] = np.array([os.fsencode(file) for file in files])
            arrays[f"{split}_labels"] = np.repeat(np.arange(len(classes)), counts)
            _check_count(name, path, len(files))
            bad += _unreadable([str(root / file) for file in files], threads, thorough)
    if bad:
        raise DataError(
            f"{dataset.label}: {len(bad)} of {sum(images.values()):,} images cannot be read: "
            f"{_few(bad)}. Replace them, or move them out of the folder"
        )
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_atomically(_index_file(name, folder), stream.getvalue())
    index = str(_index_file(name, folder).relative_to(folder))
    return Found(
        source=str(root),
        images=images,
        classes=len(classes),
        watched=watched | stats(folder, [index]),
        ignored=ignored,
    )


def _root(name: str, folder: Path) -> Path:
    own = find_dataset(name).folder
    return folder / name if own is None else Path(own)


def _held_out(root: Path) -> Path:
    return (
        root / "test" if not (root / "val").is_dir() and (root / "test").is_dir() else root / "val"
    )


def _index_file(name: str, folder: Path) -> Path:
    return folder / OURS / report_file(name, folder).with_suffix(".npz").name


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _images(path: Path) -> tuple[list[str], int]:
    """Names of a class's images, sorted, and how many other files there are."""
    names, others = [], 0
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(EXTENSIONS):
                others += 1
            else:
                names.append(entry.name)
    return sorted(names), others


def _few(items: Iterable[object]) -> str:
    shown = [str(item) for item in items]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _check_classes(name: str, splits: dict[str, Path], found: dict[str, list[str]]) -> None:
    dataset = find_dataset(name)
    for split, path in splits.items():
        if not found[split]:
            raise DataError(
                f"{dataset.label}: {path} has no class folders; its images belong in "
                f"{path}/<class>/"
            )
    train, test = set(found["train"]), set(found["test"])
    if train != test:
        lacking = {splits["test"]: train - test, splits["train"]: test - train}
        text = "; ".join(f"{path} lacks {_few(sorted(c))}" for path, c in lacking.items() if c)
        raise DataError(f"{dataset.label}: both splits need the same classes: {text}")
    if len(train) != dataset.num_classes:
        raise DataError(
            f"{dataset.label}: found {len(train)} classes in {splits['train']}, expected "
            f"{dataset.num_classes}"
        )
    if name == "imagenet" and (
        odd := [c for c in found["train"] if not re.fullmatch(r"n\d{8}", c)]
    ):
        raise DataError(
            f"{dataset.label}: class folders must have WordNet ids such as n01440764; found "
            f"{_few(odd)}"
        )


def _check_count(name: str, path: Path, count: int) -> None:
    expected = IMAGENET_COUNTS[path.name] if name == "imagenet" else count
    if count != expected:
        raise DataError(
            f"ImageNet-1K: found {count:,} images in {path}, expected {expected:,}: a part of the "
            "archive was not unpacked, or other files are among them"
        )


def _unreadable(files: list[str], threads: Executor, thorough: bool) -> list[str]:
    """``file (why)`` of each file that cannot be read."""
    chunks = [files[start : start + 500] for start in range(0, len(files), 500)]
    if not thorough:
        return [bad for found in threads.map(_bad_at_the_ends, chunks) for bad in found]
    # what decodes is bound by the processor, not by the disk
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        return [bad for found in processes.map(_undecodable, chunks) for bad in found]


def _bad_at_the_ends(files: list[str]) -> list[str]:
    return [f"{file} ({why})" for file in files if (why := _fault(file))]


def _undecodable(files: list[str]) -> list[str]:
    return [f"{file} ({why})" for file in files if (why := _decoding_fault(file))]


def _fault(file: str) -> str:
    """Why a file is no whole image, by its ends alone where they say that it is one."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return "not a file"
            if not status.st_size:
                return "empty"
            head = os.pread(descriptor, 8, 0)
            tail = os.pread(descriptor, 8, max(0, status.st_size - 8))
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.strerror or str(error)
    # ImageNet has a PNG that is called JPEG; the content counts, not the name
    jpeg = head.startswith(b"\xff\xd8\xff") and tail.endswith(b"\xff\xd9")
    png = head == b"\x89PNG\r\n\x1a\n" and tail[:4] == b"IEND"
    # whatever else it is, or whatever follows its end: a decoder knows
    return "" if jpeg or png else _decoding_fault(file)


def _decoding_fault(file: str) -> str:
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.convert("RGB")
    except Exception as error:  # a decoder may raise anything on damaged bytes
        if isinstance(error, OSError) and error.errno is not None:
            return error.strerror or str(error)
        return "no image" if "cannot identify" in str(error) else str(error)
    return ""
