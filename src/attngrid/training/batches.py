"""The batches of a cell, from images in memory or from files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from attngrid.data.images import Batches, Images, channel_statistics
from attngrid.data.loading import load, load_files
from attngrid.data.registry import find_dataset
from attngrid.data.sharding import ALL, Share
from attngrid.study.cell import Cell

TEST_BATCH = 500
STREAMED_TEST_BATCH = 100  # each worker holds several of them in memory


class Split(Protocol):
    """Batches of a split: normalised images N×3×H×W in float32 and N labels, on the device.

    Attributes:
        mean_C, std_C: of the normalisation.
        places: the range of each batch in the order of an epoch.
    """

    mean_C: Tensor
    std_C: Tensor
    places: list[range]

    @property
    def count(self) -> int:
        """Number of images."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, or this process's share of each."""

    def epoch(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, from batch number ``first`` on."""

    def first_of_each_class(self, classes: int) -> Images:
        """The first image of each of the first classes, resized and not normalised."""


def make_batches(
    cell: Cell,
    folder: Path,
    device: torch.device,
    *,
    generator: torch.Generator | None = None,
    download: bool = False,
    workers: int = 0,
    share: Share = ALL,
) -> tuple[Split, Split]:
    """The training and test batches of a cell.

    Args:
        cell: names the images and their transforms.
        folder: holds the datasets.
        device: of the batches.
        generator: of order and augmentation in training; None for neither.
        download: fetch a dataset that is missing.
        workers: processes that read image files.
        share: the part of the batches that this process takes.

    Raises:
        DataError: missing images.
    """
    recipe, classes = cell.recipe, cell.options.classes
    if find_dataset(cell.dataset).target is None:
        from attngrid.data.stream import Stream  # imports torchvision, which takes a second

        train, test = load_files(cell.dataset, folder, classes=classes, validation=cell.validation)
        return (
            Stream(
                train,
                recipe.batch_size,
                recipe.train_transforms,
                device,
                workers=workers,
                generator=generator,
                share=share,
            ),
            Stream(
                test,
                STREAMED_TEST_BATCH,
                recipe.test_transforms,
                device,
                workers=workers,
                share=share,
            ),
        )
    train_images, test_images = load(
        cell.dataset, folder, download=download, classes=classes, validation=cell.validation
    )
    mean_C, std_C = (statistic.to(device) for statistic in channel_statistics(train_images))
    train_images, test_images = train_images.to(device), test_images.to(device)
    return (
        Batches(
            train_images,
            recipe.batch_size,
            mean_C,
            std_C,
            recipe.train_transforms,
            generator,
            share,
        ),
        Batches(test_images, TEST_BATCH, mean_C, std_C, recipe.test_transforms, share=share),
    )
