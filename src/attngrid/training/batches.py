"""A cell's batches: of images in memory, or read from files as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from attngrid.data import folders
from attngrid.data.images import Batches, Images, channel_statistics
from attngrid.data.loading import load, validation_part
from attngrid.data.registry import find_dataset
from attngrid.data.sharding import ALL, Share
from attngrid.study.cell import Cell

TEST_BATCH = 500
STREAMED_TEST_BATCH = 100  # each worker holds a few of them


class Split(Protocol):
    """Batches of a split: normalised N×3×H×W float32 images and N labels, on the device.

    Attributes:
        mean_C, std_C: that they were normalised by.
        places: of each batch of an epoch, the images' in its order.
    """

    mean_C: Tensor
    std_C: Tensor
    places: list[range]

    @property
    def count(self) -> int:
        """Images of the split."""

    def __len__(self) -> int:
        """Batches an epoch."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch, of each batch what this process takes."""

    def epoch(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch from a batch on."""

    def first_of_each_class(self, classes: int) -> Images:
        """The first image of each of the first classes, as it is but for its size."""


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
    """A cell's training and test batches.

    Args:
        cell: says which images, and what is done to them.
        folder: holds the datasets.
        device: of the batches.
        generator: of the training batches' order and augmentation; without one they are plain.
        download: fetch what is missing.
        workers: processes that read image files ahead.
        share: what of the batches this process takes.

    Raises:
        DataError: images that are not where they should be.
    """
    recipe, classes = cell.recipe, cell.options.classes
    if find_dataset(cell.dataset).target is None:
        from attngrid.data.stream import Stream  # its torchvision takes a second to import

        train, test = folders.load(cell.dataset, folder, classes=classes)
        if cell.validation:
            held_out_N = validation_part(torch.from_numpy(train.labels), cell.validation).numpy()
            train, test = train.only(~held_out_N), train.only(held_out_N)
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
