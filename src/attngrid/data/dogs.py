"""Stanford Dogs (Khosla et al. 2011): 12,000 and 8,580 images of 120 breeds, squashed to 256×256.

The archives are decoded once, into arrays that are mapped into memory, not read: cells that run
beside each other share one copy.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attngrid.core.errors import DataError
from attngrid.data.prepare import Archive, Found, extract, fetch, move_into_place, scratch, stats
from attngrid.data.registry import DATASETS, find_dataset

SOURCE = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
SIZE = 256
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Release:
    """The archives, and how many images their lists name."""

    images: Archive
    lists: Archive
    counts: tuple[int, int]


OFFICIAL = Release(
    Archive("stanford-dogs/images.tar", f"{SOURCE}images.tar", "1bb1f2a596ae7057f99d7d75860002ef"),
    Archive("stanford-dogs/lists.tar", f"{SOURCE}lists.tar", "edbb9f16854ec66506b5f09b583e0656"),
    (12_000, 8_580),
)


def prepare(name: str, folder: Path, *, download: bool, thorough: bool) -> Found:
    """Decode the archives' images into one array a split.

    Each is squashed to 256×256, bilinearly and antialiased, as torchvision resizes a PIL image.
    ``thorough`` changes nothing: every image is decoded anyway.

    Raises:
        DataError: an archive missing or damaged, or not the images that its lists name.
    """
    arrays = [folder / file for file in find_dataset(name).files]
    archives = {
        a.file: fetch(a, folder, download=download) for a in (OFFICIAL.images, OFFICIAL.lists)
    }
    with scratch(name, folder) as unpacked:
        for archive in archives.values():
            extract(archive, unpacked)
        for split, count in zip(SPLITS, OFFICIAL.counts, strict=True):
            files, labels_N = _listed(unpacked / f"{split}_list.mat")
            classes = find_dataset(name).num_classes
            if len(files) != count or set(labels_N) != set(range(classes)):
                raise DataError(
                    f"Stanford Dogs: {split}_list.mat names {len(files)} images of "
                    f"{len(set(labels_N))} classes, expected {count} of {classes}"
                )
            np.save(unpacked / f"{split}_labels.npy", labels_N)
            _decode(unpacked, files, unpacked / f"{split}_images.npy")
        # the report comes last: arrays without one are made again
        for array in arrays:
            move_into_place(unpacked / array.name, array)
    return Found(
        source=SOURCE,
        images=dict(zip(SPLITS, OFFICIAL.counts, strict=True)),
        classes=find_dataset(name).num_classes,
        watched=stats(folder, find_dataset(name).files),
        checksums={a.file: f"md5:{a.md5}" for a in (OFFICIAL.images, OFFICIAL.lists)},
    )


def dogs(folder: Path) -> Any:
    """Both splits, N×3×256×256, mapped: a page is read when it is used."""
    import torch

    from attngrid.data.images import Images

    files = [folder / file for file in DATASETS["dogs"].files]
    # copy on write: torch wants arrays that it may write to
    arrays = {
        f.stem: torch.from_numpy(np.load(f, mmap_mode="c", allow_pickle=False)) for f in files
    }
    return tuple(
        Images(arrays[f"{split}_images"], arrays[f"{split}_labels"].clone()) for split in SPLITS
    )


def _listed(file: Path) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The images of a MATLAB list, relative to Images/, and their labels from 0."""
    from scipy.io import loadmat

    if not file.is_file():
        raise DataError(f"Stanford Dogs: lists.tar has no {file.name}")
    content = loadmat(file)
    files = [str(cell.item()) for cell in content["file_list"].ravel()]
    return files, content["labels"].ravel().astype(np.int64) - 1


def _decode(unpacked: Path, files: list[str], target: Path) -> None:
    """Write N×3×256×256 uint8 pixels of images in the order of their list."""
    from PIL import Image

    shape = (len(files), 3, SIZE, SIZE)
    pixels_NCHW = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)

    def decode(number: int) -> None:
        file = unpacked / "Images" / files[number]
        try:
            with Image.open(file) as image:
                rgb = image.convert("RGB")
        except Exception as error:  # a decoder may raise anything on damaged bytes
            raise DataError(f"Stanford Dogs: images.tar: {files[number]}: {error}") from error
        small = rgb.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pixels_NCHW[number] = np.asarray(small).transpose(2, 0, 1)

    # PIL decodes and resizes without holding Python's lock
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(decode, range(len(files))):
            pass
    pixels_NCHW.flush()
