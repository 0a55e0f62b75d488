"""Datasets by name: what each is, and the function that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationError

from attngrid import registry
from attngrid.errors import ConfigError, UnknownNameError
from attngrid.training.recipe import Strict


@dataclass(frozen=True)
class Dataset:
    """What a cell needs to know of a dataset before reading it.

    Attributes:
        label: how tables and figures write the name.
        num_classes: labels.
        input_size: height and width of what the model sees, in pixels.
        stem: of the ResNets at that size.
        target: ``module:function`` that reads the images; None where this version cannot.
        files: what must be in the data folder, or be fetched, before it can be read.
        sha256: of the file, for a dataset of the user's own.
    """

    label: str
    num_classes: int
    input_size: int
    stem: str
    target: str | None
    files: tuple[str, ...] = ()
    sha256: str | None = None


DATASETS: dict[str, Dataset] = {
    "digits": Dataset("digits", 10, 16, "cifar", "attngrid.data.images:digits"),
    "cifar100": Dataset(
        "CIFAR-100",
        100,
        32,
        "cifar",
        "attngrid.data.images:cifar100",
        ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"),
    ),
    "imagenet": Dataset("ImageNet-1K", 1000, 224, "imagenet", None),
}


class OwnDataset(Strict):
    """What the class of a user's own dataset says of it, as plain values."""

    label: str
    num_classes: Annotated[int, Field(ge=2)]
    input_size: PositiveInt
    stem: Literal["imagenet", "cifar"] = "cifar"
    files: tuple[str, ...] = ()


def find(name: str) -> Dataset:
    """The dataset of a name, or of a user's ``file.py:Class``.

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
    if not registry.is_own(name):
        raise UnknownNameError("dataset", name, [*DATASETS, "my_dataset.py:MyDataset"])
    own = registry.find_own("dataset", name)
    constants = own.constants()
    said = {key: constants[key] for key in OwnDataset.model_fields if key in constants}
    try:
        dataset = OwnDataset.model_validate({"label": own.name} | said)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        key = ".".join(map(str, item["loc"]))
        found = f"found {item['input']!r}; " if item["type"] != "missing" else ""
        message = item["msg"][0].lower() + item["msg"][1:]
        raise ConfigError(f"{own.file}: {own.name}.{key}: {found}{message}") from None
    return Dataset(**dict(dataset), target=name, sha256=own.sha256)
