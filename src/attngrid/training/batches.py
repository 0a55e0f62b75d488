"""The training and test batches of a cell, from images in memory or from files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from attngrid.core.errors import ConfigError
from attngrid.data.images import Batches, Split, channel_statistics
from attngrid.data.loading import load, load_files
from attngrid.data.registry import find_dataset
from attngrid.data.sharding import ALL, Share
from attngrid.data.transforms import size_in_memory
from attngrid.study.cell import Cell

if TYPE_CHECKING:
    from attngrid.data.augmentation import Mixing

TEST_BATCH = 500
STREAMED_TEST_BATCH = 100  # each worker holds several of them in memory


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
    """The training and test batches of a cell; a trial's test images are its validation images.

    ``folder`` has the datasets. Without a generator, order and augmentation are not random.
    ``workers`` processes read image files. Missing images raise a DataError, and fewer training
    images than a batch has a ConfigError.
    """
    recipe, classes, dataset = cell.recipe, cell.options.classes, find_dataset(cell.dataset)
    mixing = _mixing(cell) if recipe.mixes else None
    if dataset.target is None:
        from attngrid.data.stream import Stream  # imports torchvision, which takes a second

        train_index, test_index = load_files(
            cell.dataset, folder, classes=classes, validation=cell.validation
        )
        _require_whole_batch(cell, len(train_index))
        stream = partial(Stream, device=device, workers=workers, share=share)
        training = partial(stream, generator=generator, mixing=mixing)
        return (
            training(train_index, recipe.batch_size, recipe.train_transforms),
            stream(test_index, STREAMED_TEST_BATCH, recipe.test_transforms),
        )
    train_size, test_size = (
        size_in_memory(dataset, transforms, cell.options.input_size)
        for transforms in (recipe.train_transforms, recipe.test_transforms)
    )
    train, test = load(
        cell.dataset,
        folder,
        download=download,
        classes=classes,
        validation=cell.validation,
        sizes=(train_size, test_size),
    )
    _require_whole_batch(cell, len(train))
    mean_C, std_C = (statistic.to(device) for statistic in channel_statistics(train))
    train, test = train.to(device), test.to(device)
    return (
        Batches(
            *(train, recipe.batch_size, mean_C, std_C, recipe.train_transforms, generator, share),
            mixing=mixing,
        ),
        Batches(test, TEST_BATCH, mean_C, std_C, recipe.test_transforms, share=share),
    )


def _require_whole_batch(cell: Cell, images: int) -> None:
    """Refuse a batch that never has as many images as its recipe and its record say."""
    if (batch_size := cell.recipe.batch_size) > images:
        raise ConfigError(f"{cell.id}: batch_size: found {batch_size}; it trains {images} images")


def _mixing(cell: Cell) -> Mixing:
    from attngrid.data.augmentation import Mixing

    recipe = cell.recipe
    return Mixing(
        cell.num_classes,
        recipe.mixup,
        recipe.cutmix,
        recipe.mix_probability,
        recipe.switch_probability,
    )
