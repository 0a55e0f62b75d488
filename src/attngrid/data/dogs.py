"""Stanford Dogs (Khosla et al. 2011): 12,000 and 8,580 images of 120 breeds.

The archives are decoded once to arrays of 256×256 pixels. Cells map them into memory, so that
those on one machine share one copy.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from attngrid.core.errors import DataError
from attngrid.data.archives import Archive, extract, fetch
from attngrid.data.images import Images
from attngrid.data.prepare import Summary, move_into_place, sizes_and_times, unfinished_folder
from attngrid.data.registry import find_dataset

SOURCE = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
SIZE = 256


ARCHIVES = (
    Archive("stanford-dogs/images.tar", f"{SOURCE}images.tar", "1bb1f2a596ae7057f99d7d75860002ef"),
    Archive("stanford-dogs/lists.tar", f"{SOURCE}lists.tar", "edbb9f16854ec66506b5f09b583e0656"),
)
COUNTS = {"train": 12_000, "test": 8_580}


def prepare(name: str, folder: Path, *, download: bool, thorough: bool) -> Summary:
    """Decode the images of each split into one array.

    Each image is squashed to 256×256, bilinearly and antialiased, as torchvision resizes a PIL
    image. ``thorough`` changes nothing, since every image is decoded.

    Raises:
        DataError: a missing or damaged archive, or other images than its lists name.
    """
    dataset = find_dataset(name)
    files = [fetch(archive, folder, download=download) for archive in ARCHIVES]
    with unfinished_folder(name, folder) as unpacked:
        for file in files:
            extract(file, unpacked)
        for split, count in COUNTS.items():
            images, labels_N = _read_list(unpacked / f"{split}_list.mat")
            classes = set(labels_N)
            if len(images) != count or classes != set(range(dataset.num_classes)):
                raise DataError(
                    f"Stanford Dogs: {split}_list.mat names {len(images)} images of "
                    f"{len(classes)} classes, expected {count} of {dataset.num_classes}"
                )
            np.save(unpacked / f"{split}_labels.npy", labels_N)
            _decode(unpacked, images, unpacked / f"{split}_images.npy")
        for array in dataset.files:
            move_into_place(unpacked / Path(array).name, folder / array)
    return Summary(
        source=SOURCE,
        images=COUNTS,
        classes=dataset.num_classes,
        watched=sizes_and_times(folder, dataset.files),
        checksums={archive.file: f"md5:{archive.md5}" for archive in ARCHIVES},
    )


def dogs(folder: Path) -> tuple[Images, Images]:
    """Both splits, N×3×256×256; a page of the mapped files is read when it is used."""
    files = [folder / file for file in find_dataset("dogs").files]
    # mapped copy-on-write, since torch wants arrays that it may write to
    arrays = {
        f.stem: torch.from_numpy(np.load(f, mmap_mode="c", allow_pickle=False)) for f in files
    }
    train, test = (
        Images(arrays[f"{split}_images"], arrays[f"{split}_labels"].clone()) for split in COUNTS
    )
    return train, test


def _read_list(file: Path) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The images of a MATLAB list, relative to Images/, and their labels from 0."""
    from scipy.io import loadmat

    if not file.is_file():
        raise DataError(f"Stanford Dogs: lists.tar has no {file.name}")
    content = loadmat(file)
    images = [str(cell.item()) for cell in content["file_list"].ravel()]
    return images, content["labels"].ravel().astype(np.int64) - 1


def _decode(unpacked: Path, images: list[str], target: Path) -> None:
    """Write the uint8 pixels N×3×256×256 of images in the order of their list."""
    shape = (len(images), 3, SIZE, SIZE)
    pixels_NCHW = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)

    def decode(number: int) -> None:
        try:
            with Image.open(unpacked / "Images" / images[number]) as image:
                rgb = image.convert("RGB")
        except Exception as error:  # a decoder may raise anything on damaged bytes
            raise DataError(f"Stanford Dogs: images.tar: {images[number]}: {error}") from error
        small = rgb.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pixels_NCHW[number] = np.asarray(small).transpose(2, 0, 1)

    # threads suffice: PIL decodes and resizes without Python's lock
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(decode, range(len(images))):
            pass
    pixels_NCHW.flush()
