"""Datasets by name: what each is, and the function that reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationError

from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.core.types import Strict
from attngrid.core.user_code import find_user_class, is_user_class


@dataclass(frozen=True)
class Dataset:
    """What a cell needs to know of a dataset before reading it.

    Attributes:
        label: how tables and figures write the name.
        num_classes: labels.
        input_size: height and width of what the model sees, in pixels.
        stem: of the ResNets at that size.
        target: ``module:function`` that reads all images at once; None where they stay in files.
        files: what must be in the data folder, or be fetched, before it can be read.
        sha256: of the file, for a dataset of the user's own.
        archives: what ``files`` can be made of, in the data folder.
        prepare: ``module:function`` that checks what is on disk, once; None where nothing is to do.
        folder: of an ``imagefolder:``, with its train/ and val/ or test/.
        stored_size: height and width of the images as they are read; None where that is input_size.
        fewest: training images of the smallest class; None where only the images tell.
        images: training and test images; None where only the images tell.
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
    fewest: int | None = None
    images: tuple[int, int] | None = None


DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        "digits", 10, 16, "cifar", "attngrid.data.images:digits", fewest=140, images=(1442, 355)
    ),
    "cifar10": Dataset(
        "CIFAR-10",
        10,
        32,
        "cifar",
        "attngrid.data.cifar:cifar10",
        tuple(
            f"cifar-10-batches-py/{name}"
            for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta")
        ),
        archives=("cifar-10-python.tar.gz",),
        prepare="attngrid.data.cifar:prepare",
        fewest=5000,
        images=(50_000, 10_000),
    ),
    "cifar100": Dataset(
        "CIFAR-100",
        100,
        32,
        "cifar",
        "attngrid.data.cifar:cifar100",
        ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"),
        archives=("cifar-100-python.tar.gz",),
        prepare="attngrid.data.cifar:prepare",
        fewest=500,
        images=(50_000, 10_000),
    ),
    "imagenet": Dataset(
        "ImageNet-1K",
        1000,
        224,
        "imagenet",
        None,
        ("imagenet/train", "imagenet/val"),
        prepare="attngrid.data.folders:prepare",
        fewest=732,
        images=(1_281_167, 50_000),
    ),
    "dogs": Dataset(
        "Stanford Dogs",
        120,
        224,
        "imagenet",
        "attngrid.data.dogs:dogs",
        tuple(
            f"stanford-dogs/squashed-256/{split}_{what}.npy"
            for split in ("train", "test")
            for what in ("images", "labels")
        ),
        archives=("stanford-dogs/images.tar", "stanford-dogs/lists.tar"),
        prepare="attngrid.data.dogs:prepare",
        stored_size=256,
        fewest=100,
        images=(12_000, 8_580),
    ),
}

FOLDER = re.compile(r"imagefolder:(?P<path>.+?)(?::(?P<classes>\d+))?")


class UserDataset(Strict):
    """What the class of a user's own dataset says of it, as plain values."""

    label: str
    num_classes: Annotated[int, Field(ge=2)]
    input_size: PositiveInt
    stem: Literal["imagenet", "cifar"] = "cifar"
    files: tuple[str, ...] = ()


def find_dataset(name: str) -> Dataset:
    """The dataset of a name, of an ``imagefolder:PATH``, or of a user's ``file.py:Class``.

    An ``imagefolder:PATH:N`` has N classes; without the N its folder has to be there.

    Such a class has ``num_classes`` and ``input_size``, and may have ``label``, ``stem`` and
    ``files``, as plain values that are read without running the file, and a static
    ``load(folder)`` that returns the training and the held-out split, each uint8 images
    N×3×H×W and N labels from 0.

    Raises:
        UnknownNameError: no such dataset; the message lists the near names.
        ConfigError: a class without what it needs; the message says what.
    """
    if name in DATASETS:
        return DATASETS[name]
    if match := FOLDER.fullmatch(name):
        return _image_folder(match["path"], match["classes"])
    if not is_user_class(name):
        raise UnknownNameError(
            "dataset", name, [*DATASETS, "imagefolder:PATH", "my_dataset.py:MyDataset"]
        )
    own = find_user_class("dataset", name)
    constants = own.constants()
    said = {key: constants[key] for key in UserDataset.model_fields if key in constants}
    try:
        dataset = UserDataset.model_validate({"label": own.name} | said)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        key = ".".join(map(str, item["loc"]))
        found = f"found {item['input']!r}; " if item["type"] != "missing" else ""
        message = item["msg"][0].lower() + item["msg"][1:]
        raise ConfigError(f"{own.file}: {own.name}.{key}: {found}{message}") from None
    return Dataset(**dict(dataset), target=name, sha256=own.sha256)


def full_name(name: str) -> str:
    """The name that says all: of an ``imagefolder:PATH`` with its number of classes.

    Raises:
        UnknownNameError, ConfigError: as ``find`` does.
    """
    dataset = find_dataset(name)
    if dataset.folder is None:
        return name
    return f"imagefolder:{dataset.folder}:{dataset.num_classes}"


def short_name(name: str) -> str:
    """The name for files and digests: an image folder's is not where it happens to be."""
    dataset = find_dataset(name)
    if dataset.folder is None:
        return name
    return f"imagefolder:{dataset.label}:{dataset.num_classes}"


def _image_folder(path: str, classes: str | None) -> Dataset:
    """The dataset of a folder, which is looked at where the number of classes is not said."""
    train = Path(path) / "train"
    if classes is None and not train.is_dir():
        raise ConfigError(
            f"dataset 'imagefolder:{path}': there is no folder {train} to count the classes of; "
            f"put the images there, or write imagefolder:{path}:N for N classes, which renders "
            "what was measured without them"
        )
    number = int(classes) if classes else sum(entry.is_dir() for entry in train.iterdir())
    if number < 2:
        raise ConfigError(f"dataset 'imagefolder:{path}': found {number} classes, needs 2 or more")
    return Dataset(
        Path(path).absolute().name,
        number,
        224,
        "imagenet",
        None,
        (str(train.absolute()),),
        prepare="attngrid.data.folders:prepare",
        folder=str(Path(path)),
    )
