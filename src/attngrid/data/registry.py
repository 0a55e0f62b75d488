"""Datasets by name: sizes, files, and the functions that prepare and read them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.core.files import expand
from attngrid.core.types import CountFrom2, Pixels, Strict
from attngrid.core.user_code import find_user_class, is_user_class
from attngrid.core.validation import validate


@dataclass(frozen=True)
class Dataset:
    """Properties of a dataset that are known before it is read.

    Attributes:
        label: name in tables and figures.
        input_size: height and width of the model's input, in pixels.
        stem: stem of the backbones at that size.
        target: ``module:function`` that reads all images into memory; None if they stay in files.
        files: files in the data folder that the dataset is read from.
        sha256: SHA-256 of a user's class and of what it uses from its file.
        archives: files in the data folder that ``files`` can be unpacked from.
        prepare: ``module:function`` that checks the files once and returns the content of
            the report; None if there is nothing to check.
        folder: folder of an ``imagefolder:``, which holds train/ and val/ or test/.
        stored_size: height and width of the stored images; None if that is ``input_size``.
        smallest_class: training images of the smallest class; None if unknown.
        images: number of training and test images; None if unknown.
    """

    label: str
    num_classes: int
    input_size: int
    stem: str
    target: str | None
    files: tuple[str, ...] = ()
    sha256: str | None = None
    archives: tuple[str, ...] = ()
    prepare: str | None = None
    folder: str | None = None
    stored_size: int | None = None
    smallest_class: int | None = None
    images: tuple[int, int] | None = None


_CIFAR10_FILES = (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta")
_DOGS_FILES = ("train_images", "train_labels", "test_images", "test_labels")

DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        "digits",
        num_classes=10,
        input_size=16,
        stem="cifar",
        target="attngrid.data.digits:digits",
        smallest_class=140,
        images=(1442, 355),
    ),
    "cifar10": Dataset(
        "CIFAR-10",
        num_classes=10,
        input_size=32,
        stem="cifar",
        target="attngrid.data.cifar:cifar10",
        files=tuple(f"cifar-10-batches-py/{name}" for name in _CIFAR10_FILES),
        archives=("cifar-10-python.tar.gz",),
        prepare="attngrid.data.cifar:prepare",
        smallest_class=5000,
        images=(50_000, 10_000),
    ),
    "cifar100": Dataset(
        "CIFAR-100",
        num_classes=100,
        input_size=32,
        stem="cifar",
        target="attngrid.data.cifar:cifar100",
        files=tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
        archives=("cifar-100-python.tar.gz",),
        prepare="attngrid.data.cifar:prepare",
        smallest_class=500,
        images=(50_000, 10_000),
    ),
    "imagenet": Dataset(
        "ImageNet-1K",
        num_classes=1000,
        input_size=224,
        stem="imagenet",
        target=None,
        files=("imagenet/train", "imagenet/val"),
        prepare="attngrid.data.folders:prepare",
        smallest_class=732,
        images=(1_281_167, 50_000),
    ),
    "dogs": Dataset(
        "Stanford Dogs",
        num_classes=120,
        input_size=224,
        stem="imagenet",
        target="attngrid.data.dogs:dogs",
        files=tuple(f"stanford-dogs/squashed-256/{name}.npy" for name in _DOGS_FILES),
        archives=("stanford-dogs/images.tar", "stanford-dogs/lists.tar"),
        prepare="attngrid.data.dogs:prepare",
        stored_size=256,
        smallest_class=100,
        images=(12_000, 8_580),
    ),
}

_FOLDER = re.compile(r"imagefolder:(?P<path>.+?)(?::(?P<classes>\d+))?")


class UserDataset(Strict):
    """The class attributes of a user's dataset."""

    label: str
    num_classes: CountFrom2
    input_size: Pixels
    stem: Literal["imagenet", "cifar"] = "cifar"
    files: tuple[str, ...] = Field((), strict=False)


def list_datasets() -> list[str]:
    """The datasets that a study can name.

    It can also name a folder of images, ``imagefolder:PATH``, or a user's class, ``file.py:Class``.

    Examples:
        >>> {"digits", "cifar100", "imagenet"} <= set(list_datasets())
        True
    """
    return list(DATASETS)


def find_dataset(name: str) -> Dataset:
    """Find a dataset by its name, ``imagefolder:PATH[:CLASSES]``, or a user's ``file.py:Class``.

    Without CLASSES the class folders are counted. A user's class has the attributes of
    ``UserDataset``, made of literals, because the file is not run. Its static
    ``load(folder)`` returns the training and the held-out split, each as uint8 images N×3×H×W and
    N labels from 0.

    Raises:
        UnknownNameError: no such dataset; the message lists near names.
        ConfigError: a folder without classes, or a class with a missing or wrong attribute.

    Examples:
        >>> find_dataset("cifar100").num_classes, find_dataset("cifar100").images
        (100, (50000, 10000))
    """
    if name in DATASETS:
        return DATASETS[name]
    if match := _FOLDER.fullmatch(name):
        return _image_folder(match["path"], match["classes"])
    if is_user_class(name):
        return _user_dataset(name)
    raise UnknownNameError(
        "dataset", name, [*DATASETS, "imagefolder:PATH", "my_dataset.py:MyDataset"]
    )


def full_name(name: str) -> str:
    """The name with the number of classes, if it is an ``imagefolder:PATH``."""
    match = _FOLDER.fullmatch(name)
    return (
        name
        if match is None
        else f"imagefolder:{Path(match['path'])}:{find_dataset(name).num_classes}"
    )


def short_name(name: str) -> str:
    """The name for files and digests, without the location of an image folder."""
    dataset = find_dataset(name)
    return f"imagefolder:{dataset.label}:{dataset.num_classes}" if dataset.folder else name


def _user_dataset(name: str) -> Dataset:
    """Check the class attributes of a user's dataset."""
    user_class = find_user_class("dataset", name)
    found = {"label": user_class.name} | user_class.constants(UserDataset.model_fields)
    dataset = validate(UserDataset, found, f"{user_class.file}: {user_class.name}")
    return Dataset(**dict(dataset), target=name, sha256=user_class.sha256)


def _image_folder(path: str, classes: str | None) -> Dataset:
    """The dataset of a folder; without ``classes``, the class folders are counted."""
    root = expand(path, f"dataset 'imagefolder:{path}': ")
    train = root / "train"
    if classes is None and not train.is_dir():
        raise ConfigError(
            f"dataset 'imagefolder:{path}': there is no folder {train} to count the classes in; "
            f"put the images there; or write imagefolder:{path}:N, with the number of classes N, "
            "to render results without the images"
        )
    number = int(classes) if classes else len(class_folders(train))
    if number < 2:
        raise ConfigError(f"dataset 'imagefolder:{path}': found {number} classes, needs 2 or more")
    return Dataset(
        root.absolute().name,
        number,
        input_size=224,
        stem="imagenet",
        target=None,
        files=(str(train.absolute()),),
        prepare="attngrid.data.folders:prepare",
        folder=str(root),
    )


def class_folders(split: Path) -> list[str]:
    """The names of a split's class folders in the order of their labels, without hidden ones."""
    return sorted(
        entry.name for entry in split.iterdir() if entry.is_dir() and not is_hidden(entry.name)
    )


def is_hidden(folder: str) -> bool:
    """Whether a folder is no class, but a program's own, such as ``.ipynb_checkpoints``."""
    return folder.startswith(".") or folder in ("__MACOSX", "@eaDir")
