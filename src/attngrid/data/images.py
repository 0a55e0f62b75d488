"""Resident image datasets: all images as uint8 in memory, augmented in batches on the device."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attngrid.core.errors import AttngridError, DataError
from attngrid.core.user_code import load_user_class
from attngrid.data.prepare import prepare
from attngrid.data.registry import Dataset, find_dataset
from attngrid.data.sharding import ALL, Share
from attngrid.data.transforms import Brightness, CropTo, Flip, RandomCrop, Transform


@dataclass(frozen=True)
class Images:
    """A split of a dataset.

    Attributes:
        pixels_NCHW: uint8, three channels.
        labels_N: int64.
    """

    pixels_NCHW: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def first_classes(self, classes: int) -> Images:
        """Only the images of labels below ``classes``."""
        return self.only(self.labels_N < classes)

    def only(self, kept_N: Tensor) -> Images:
        """Only the images where ``kept`` is true."""
        return Images(self.pixels_NCHW[kept_N], self.labels_N[kept_N])

    def to(self, device: torch.device) -> Images:
        """The same on another device."""
        return Images(self.pixels_NCHW.to(device), self.labels_N.to(device))


def load(
    name: str, folder: Path, *, download: bool, classes: int | None, validation: int = 0
) -> tuple[Images, Images]:
    """Read a dataset.

    Args:
        name: of ``DATASETS``.
        folder: where its files are.
        download: fetch what is missing.
        classes: keep the first so many only.
        validation: hold out so many training images in place of the test images.

    Returns:
        The training and the held-out split.

    Raises:
        DataError: files missing or damaged, or too few images; the message says what to do.
    """
    dataset = find_dataset(name)
    if dataset.target is None:
        raise DataError(f"the images of {name!r} stay in their files: attngrid.data.stream")
    if dataset.prepare is not None:
        prepare(name, folder, download=download)
    if dataset.sha256 is not None:
        splits = _load_own(name, dataset, folder)
    else:
        module, _, function = dataset.target.rpartition(":")
        splits = getattr(importlib.import_module(module), function)(folder)
    if classes is not None:
        splits = tuple(split.first_classes(classes) for split in splits)
    train, test = splits
    if validation:
        held_out_N = validation_part(train.labels_N, validation)
        train, test = train.only(~held_out_N), train.only(held_out_N)
    return train, test


def validation_part(labels_N: Tensor, images: int) -> Tensor:
    """Which training images trials are tested on: a function of the labels and the number alone.

    As many of each class, at even distances in the order of the images: whatever model, seed,
    machine or version asks, they are the same.

    Args:
        labels_N: of the training images.
        images: how many; a multiple of the classes.

    Returns:
        N booleans.

    Raises:
        DataError: no multiple of the classes, or a class with none left to train on.
    """
    classes = torch.unique(labels_N)
    of_each, rest = divmod(images, len(classes))
    fewest = int(torch.bincount(labels_N)[classes].min())
    if rest or of_each >= fewest:
        raise DataError(
            f"tuning.validation_images: found {images}; needs a multiple of the {len(classes)} "
            f"classes, and fewer than {fewest} of each: the smallest has no more training images"
        )
    held_out_N = torch.zeros_like(labels_N, dtype=torch.bool)
    for label in classes:
        places = (labels_N == label).nonzero()[:, 0]
        middles = (2 * torch.arange(of_each) + 1) * len(places) // (2 * of_each)
        held_out_N[places[middles]] = True
    return held_out_N


def _load_own(name: str, dataset: Dataset, folder: Path) -> tuple[Images, ...]:
    """Read a user's dataset; raise where it is not what its class says."""
    try:
        splits = load_user_class(name, dataset.sha256 or "").load(folder)
        (train, test) = (
            Images(torch.as_tensor(pixels).contiguous(), torch.as_tensor(labels).long())
            for pixels, labels in splits
        )
    except AttngridError:
        raise
    except Exception as error:
        raise DataError(f"dataset {name!r}: load: {type(error).__name__}: {error}") from error
    for split, images in {"training": train, "held-out": test}.items():
        pixels, labels = images.pixels_NCHW, images.labels_N
        shape = (len(labels), 3, dataset.input_size, dataset.input_size)
        if pixels.dtype != torch.uint8 or tuple(pixels.shape) != shape or labels.ndim != 1:
            raise DataError(
                f"dataset {name!r}: the {split} images are {tuple(pixels.shape)} of "
                f"{str(pixels.dtype).removeprefix('torch.')}, its {len(labels)} labels want "
                f"{shape} of uint8"
            )
        if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < dataset.num_classes:
            raise DataError(
                f"dataset {name!r}: the {split} labels must be 0 to {dataset.num_classes - 1}, "
                f"found {sorted(set(labels.tolist()))[:10]}"
            )
    return train, test


def digits(folder: Path) -> tuple[Images, Images]:
    """scikit-learn's 1,797 scans of digits, 8×8, enlarged to 16×16 (bilinear).

    Every fifth image of each digit, in the order of the file, is held out.
    """
    # the file that its load_digits reads: to import scikit-learn takes longer than all else here
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError('the digits come with scikit-learn: pip install "attngrid[train]"')
    file = Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    scans, labels = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].copy()
    rank = np.zeros_like(labels)
    for digit in range(10):
        rank[labels == digit] = np.arange((labels == digit).sum())
    small = torch.from_numpy(scans.astype(np.float32))
    large = torch.nn.functional.interpolate(small, size=16, mode="bilinear", align_corners=False)
    pixels = (large * (255 / 16)).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    held_out = torch.from_numpy(rank % 5 == 4)
    targets = torch.from_numpy(labels)
    return Images(pixels[~held_out], targets[~held_out]), Images(
        pixels[held_out], targets[held_out]
    )


class Batches:
    """Shuffled, augmented training batches and plain test batches, made on the device.

    Pixels are normalised by the training split's own mean and deviation per channel.

    Args:
        images: on the device.
        batch_size: images a batch.
        mean_C, std_C: of the training split, in [0, 255].
        transforms: each training image draws its own; a test image has none but the centre crop.
        generator: a CPU generator; drawing on the CPU gives every device the same augmentation.
            Without one these are test batches.
        share: what of the batches is made.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        mean_C: Tensor,
        std_C: Tensor,
        transforms: tuple[Transform, ...] = (),
        generator: torch.Generator | None = None,
        share: Share = ALL,
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.mean_C, self.std_C = mean_C, std_C
        self.padding = next((t.padding for t in transforms if isinstance(t, RandomCrop)), 0)
        height, width = images.pixels_NCHW.shape[2:]
        sizes = [t.size for t in transforms if isinstance(t, CropTo)]
        self.height, self.width = (sizes[0], sizes[0]) if sizes else (height, width)
        self.flip = any(isinstance(t, Flip) for t in transforms)
        self.brightness = next((t.amount for t in transforms if isinstance(t, Brightness)), 0.0)
        self.generator = generator
        self.share = share
        training = generator is not None
        self.places = share.batches(len(images), batch_size, training=training)

    @property
    def count(self) -> int:
        """Images of the split."""
        return len(self.images)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch's batches of normalised N×3×H×W float32 images and N labels, in their parts."""
        return self.epoch()

    def epoch(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The same from a batch on; those before it are drawn and not made."""
        device = self.images.labels_N.device
        order_N = torch.arange(self.count)
        if self.generator is not None:
            order_N = torch.randperm(self.count, generator=self.generator)
        order_N = order_N.to(device)
        # an epoch's draws at once: a copy to the device every step would stall it
        flipped_N1 = self._draw(2 if self.flip else 1) == 1
        height, width = self.images.pixels_NCHW.shape[2:]
        down_N1 = self._draw_offset(height - self.height)
        right_N1 = self._draw_offset(width - self.width)
        factor_N1 = self._draw_factor()
        for part in self.share.taken(self.places[first:], training=self.generator is not None):
            batch = slice(part.start, part.stop)
            pixels_NCHW = self.images.pixels_NCHW[order_N[batch]]
            if self.flip or self.padding or (self.height, self.width) != (height, width):
                pixels_NCHW = self._moved(
                    pixels_NCHW, flipped_N1[batch], down_N1[batch], right_N1[batch]
                )
            if factor_N1 is not None:
                pixels_NCHW = (pixels_NCHW * factor_N1[batch, :, None, None]).clamp_(max=255)
            images_NCHW = normalised(pixels_NCHW, self.mean_C, self.std_C)
            yield images_NCHW, self.images.labels_N[order_N[batch]]

    def first_of_each_class(self, classes: int) -> Images:
        """The first image of each of the first classes, in their order, on the CPU."""
        labels_N = self.images.labels_N
        index = torch.stack(
            [(labels_N == label).nonzero()[0, 0] for label in torch.unique(labels_N)[:classes]]
        )
        nowhere_N1 = torch.zeros_like(index)[:, None]
        height, width = self.images.pixels_NCHW.shape[2:]
        pixels_NCHW = self._moved(
            self.images.pixels_NCHW[index],
            nowhere_N1 == 1,
            nowhere_N1 + self.padding + centre(height - self.height),
            nowhere_N1 + self.padding + centre(width - self.width),
        )
        return Images(pixels_NCHW, labels_N[index]).to(torch.device("cpu"))

    def _moved(
        self, pixels_NCHW: Tensor, flipped_N1: Tensor, down_N1: Tensor, right_N1: Tensor
    ) -> Tensor:
        """Each image padded, cropped at its own place, and mirrored where ``flipped``."""
        if self.padding:
            pixels_NCHW = torch.nn.functional.pad(pixels_NCHW, (self.padding,) * 4)
        rows_H = torch.arange(self.height, device=pixels_NCHW.device)
        columns_W = torch.arange(self.width, device=pixels_NCHW.device)
        rows_NH = down_N1 + rows_H
        columns_NW = right_N1 + torch.where(flipped_N1, columns_W.flip(0), columns_W)
        # by its place in the flattened image, which a CPU gathers faster than it indexes
        places_NHW = rows_NH[:, :, None] * pixels_NCHW.shape[3] + columns_NW[:, None, :]
        places_NCP = places_NHW.flatten(1)[:, None].expand(-1, pixels_NCHW.shape[1], -1)
        picked_NCP = pixels_NCHW.flatten(2).gather(2, places_NCP)
        return picked_NCP.reshape(*picked_NCP.shape[:2], self.height, self.width)

    def _draw_offset(self, room: int) -> Tensor:
        """Where a crop begins: anywhere in training, at the centre in testing."""
        if self.generator is None:
            return self._draw(1) + centre(room)
        return self._draw(room + 2 * self.padding + 1)

    def _draw_factor(self) -> Tensor | None:
        """The brightness of every image of an epoch, if it changes."""
        if not self.brightness or self.generator is None:
            return None
        drawn_N1 = torch.rand((self.count, 1), generator=self.generator)
        return (1 + self.brightness * (2 * drawn_N1 - 1)).to(self.images.labels_N.device)

    def _draw(self, upper: int) -> Tensor:
        """A whole number below ``upper`` for every image of an epoch."""
        shape = (self.count, 1)
        drawn = (
            torch.randint(upper, shape, generator=self.generator)
            if upper > 1
            else torch.zeros(shape, dtype=torch.int64)
        )
        return drawn.to(self.images.labels_N.device)


def centre(room: int) -> int:
    """Where a centre crop begins, as torchvision rounds it."""
    return round(room / 2)


def normalised(pixels_NCHW: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Pixels in [0, 255] to float32 of mean 0 and deviation 1, by the channels' statistics."""
    images_NCHW = pixels_NCHW.to(torch.float32, copy=True)
    # in place: on a CPU new memory for each step takes longer than the step
    return images_NCHW.sub_(mean_C[:, None, None]).div_(std_C[:, None, None])


def channel_statistics(images: Images) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, in [0, 255], over a whole split."""
    # some images at a time: counting wants eight bytes a pixel
    histogram_C256 = torch.zeros(3, 256, dtype=torch.float64)
    for some_NCHW in torch.split(images.pixels_NCHW, 1000):
        for channel, pixels_NHW in enumerate(some_NCHW.transpose(0, 1).int()):
            histogram_C256[channel] += torch.bincount(pixels_NHW.flatten(), minlength=256).cpu()
    levels_256 = torch.arange(256, dtype=torch.float64)
    weights = histogram_C256 / histogram_C256.sum(1, keepdim=True)
    mean_C = (weights * levels_256).sum(1)
    variance_C = (weights * (levels_256 - mean_C[:, None]) ** 2).sum(1)
    return mean_C.float(), variance_C.sqrt().float()
