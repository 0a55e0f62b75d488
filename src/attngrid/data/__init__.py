"""Datasets by name: what each is, and the function that reads it."""

from __future__ import annotations

from dataclasses import dataclass

from attngrid.errors import UnknownNameError


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
    """

    label: str
    num_classes: int
    input_size: int
    stem: str
    target: str | None
    files: tuple[str, ...] = ()


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


def find(name: str) -> Dataset:
    """The dataset of a name.

    Raises:
        UnknownNameError: no such dataset; the message lists the near names.
    """
    if name not in DATASETS:
        raise UnknownNameError("dataset", name, DATASETS)
    return DATASETS[name]
