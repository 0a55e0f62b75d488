"""Loading a dataset's splits, and holding out validation images."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from attngrid.core.errors import DataError
from attngrid.core.user_code import load_user_class
from attngrid.data.images import ImageFiles, Images
from attngrid.data.prepare import prepare, report_file
from attngrid.data.registry import Dataset, find_dataset

AnyImages = TypeVar("AnyImages", Images, ImageFiles)


def load(
    name: str,
    folder: Path,
    *,
    download: bool,
    classes: int | None,
    validation: int = 0,
    sizes: tuple[int, int] | None = None,
) -> tuple[Images, Images]:
    """Read a dataset's training and held-out split into memory.

    Args:
        name: a name that ``find_dataset`` accepts.
        folder: the data folder.
        download: fetch missing files.
        classes: number of classes to keep, from the first on; None keeps all.
        validation: number of training images to hold out in place of the test images.
        sizes: average the images of each split down to this height and width.

    Raises:
        DataError: missing or damaged files, or too few images; the message says what to do.
    """
    dataset = find_dataset(name)
    assert dataset.target is not None, "its images stay in their files: use load_files"
    prepare(name, folder, download=download)
    if dataset.sha256 is not None:
        train, test = _load_user_dataset(name, dataset, folder)
    else:
        train, test = pkgutil.resolve_name(dataset.target)(folder)
    train, test = _subset(train, test, classes, validation)
    if sizes is not None:
        train, test = train.averaged(sizes[0]), test.averaged(sizes[1])
    return train, test


def load_files(
    name: str, folder: Path, *, classes: int | None = None, validation: int = 0
) -> tuple[ImageFiles, ImageFiles]:
    """As ``load``, for images that stay in their files: ``imagenet``, ``imagefolder:``."""
    from attngrid.data import folders

    report = prepare(name, folder)
    train, test = folders.list_files(name, folder)
    if report is None or report["images"] != {"train": len(train), "test": len(test)}:
        raise DataError(f"{name}: its files have changed; remove {report_file(name, folder)}")
    return _subset(train, test, classes, validation)


def class_names(name: str, folder: Path) -> list[str]:
    """The names of a dataset's classes, in the order of the labels; their numbers if unknown."""
    dataset = find_dataset(name)
    if dataset.target is None:
        from attngrid.data import folders

        return folders.class_names(name, folder)
    if name in ("cifar10", "cifar100"):
        from attngrid.data import cifar

        return cifar.class_names(name, folder)
    return [str(label) for label in range(dataset.num_classes)]


def _subset(
    train: AnyImages, test: AnyImages, classes: int | None, validation: int
) -> tuple[AnyImages, AnyImages]:
    if classes is not None:
        train, test = train.only(train.labels_N < classes), test.only(test.labels_N < classes)
    if validation:
        held_out_N = validation_part(train.labels_N, validation)
        train, test = train.only(~held_out_N), train.only(held_out_N)
    return train, test


def validation_part(labels_N: Tensor, images: int) -> Tensor:
    """Choose the training images that tuning trials are tested on, as N booleans.

    Takes the same number of each class, evenly spaced in the order of the images. The choice
    depends only on the labels and the number.

    Raises:
        DataError: not a multiple of the classes, or a class would have no training image left.
    """
    classes = torch.unique(labels_N)
    per_class, rest = divmod(images, len(classes))
    smallest = int(torch.bincount(labels_N)[classes].min())
    if rest or per_class >= smallest:
        raise DataError(
            f"tuning.validation_images: found {images}; needs a multiple of the {len(classes)} "
            f"classes, and fewer than {smallest} of each: the smallest class has {smallest} images"
        )
    held_out_N = torch.zeros_like(labels_N, dtype=torch.bool)
    for label in classes:
        positions = (labels_N == label).nonzero()[:, 0]
        middles = (2 * torch.arange(per_class) + 1) * len(positions) // (2 * per_class)
        held_out_N[positions[middles]] = True
    return held_out_N


def _load_user_dataset(name: str, dataset: Dataset, folder: Path) -> tuple[Images, ...]:
    """Read a user's dataset and check it against the attributes of its class."""
    user_class = load_user_class(name, dataset.sha256 or "")
    try:
        splits = user_class.load(folder)
        train, test = (
            Images(torch.as_tensor(pixels).contiguous(), torch.as_tensor(labels))
            for pixels, labels in splits
        )
    except Exception as error:
        raise DataError(f"dataset {name!r}: load: {type(error).__name__}: {error}") from error
    size, last = dataset.input_size, dataset.num_classes - 1
    for split, images in {"training": train, "held-out": test}.items():
        pixels, labels = images.pixels_NCHW, images.labels_N
        _require_integers(labels, f"dataset {name!r}: the {split} labels", last + 1)
        found, expected = (pixels.dtype, *pixels.shape), (torch.uint8, len(labels), 3, size, size)
        if found != expected:
            raise DataError(
                f"dataset {name!r}: the {split} images are {found}; needs {expected} for "
                f"{len(labels)} labels"
            )
        if not len(labels) or not set(labels.tolist()) <= set(range(last + 1)):
            raise DataError(
                f"dataset {name!r}: the {split} labels must be 0 to {last}, found "
                f"{sorted(set(labels.tolist()))[:10]}"
            )
    return tuple(Images(one.pixels_NCHW, one.labels_N.long()) for one in (train, test))


def _require_integers(labels: Tensor, which: str, classes: int) -> None:
    """Raise a DataError that says what labels are, unless they are N integers."""
    fractional = (
        labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool
    )
    if labels.ndim == 1 and not fractional:
        return
    shapes = {1: ", a column: take [:, 0]", classes: ", one-hot or scores: take argmax(1)"}
    remedy = shapes.get(labels.shape[1], "") if labels.ndim == 2 else ""
    raise DataError(
        f"{which} are {labels.dtype} of shape {tuple(labels.shape)}{remedy}; needs N integers from "
        f"0 to {classes - 1}"
    )
