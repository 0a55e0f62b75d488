"""Images in memory: uint8 tensors, augmented in batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from attngrid.data.sharding import ALL, Share
from attngrid.data.transforms import (
    Brightness,
    CropTo,
    Flip,
    PerImage,
    RandomCrop,
    Rotation,
    Transform,
)

if TYPE_CHECKING:
    from attngrid.data.augmentation import Mixing


@dataclass(frozen=True)
class Images:
    """A split of a dataset in memory.

    Attributes:
        pixels_NCHW: uint8, three channels.
        labels_N: int64.
    """

    pixels_NCHW: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def only(self, kept_N: Tensor) -> Images:
        """Only the images where ``kept_N`` is true."""
        return Images(self.pixels_NCHW[kept_N], self.labels_N[kept_N])

    def averaged(self, side: int) -> Images:
        """Images of ``side`` × ``side`` pixels, each the rounded mean of a square of pixels."""
        factor = self.pixels_NCHW.shape[-1] // side
        if factor == 1:
            return self
        chunks = [  # limits the memory of float32 copies
            avg_pool2d(chunk_NCHW.float(), factor).round().to(torch.uint8)
            for chunk_NCHW in torch.split(self.pixels_NCHW, 1000)
        ]
        return Images(torch.cat(chunks), self.labels_N)

    def to(self, device: torch.device) -> Images:
        """The same images on another device."""
        return Images(self.pixels_NCHW.to(device), self.labels_N.to(device))


@dataclass(frozen=True)
class ImageFiles:
    """A split of a dataset whose images stay in their files.

    Attributes:
        paths_N: bytes; an array, because each worker process would copy a list.
        labels_N: int64.
    """

    paths_N: npt.NDArray[np.bytes_]
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def only(self, kept_N: Tensor) -> ImageFiles:
        """Only the images where ``kept_N`` is true."""
        return ImageFiles(self.paths_N[kept_N.numpy()], self.labels_N[kept_N])


class Split:
    """Batches of a split: shuffled and augmented for training, unchanged for testing.

    Iterating yields normalised N×3×H×W float32 images and N labels on the device: this process's
    micro-batches for training, its whole batches for testing.

    Args:
        images: the split.
        batch_size: images per batch.
        mean_C, std_C: channel statistics for the normalisation, in [0, 255].
        generator: generator of the order and the augmentation, on the CPU, so that all devices
            draw the same; None makes test batches.
        share: the part of each batch that this process reads.
        mixing: mixes the images of each micro-batch; its labels are then N×classes shares.

    Attributes:
        count: number of images.
        places: the batches of an epoch, each as a range of positions in the epoch's order.
    """

    def __init__(
        self,
        images: Images | ImageFiles,
        batch_size: int,
        mean_C: Tensor,
        std_C: Tensor,
        generator: torch.Generator | None,
        share: Share,
        mixing: Mixing | None = None,
    ) -> None:
        self.count, self.labels_N = len(images), images.labels_N
        self.mean_C, self.std_C = mean_C, std_C
        self.generator, self.share, self.mixing = generator, share, mixing
        self.places = share.batches(self.count, batch_size, training=generator is not None)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch()

    def epoch(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch from batch ``first`` on; draw random numbers for the whole epoch."""
        if self.mixing is None:
            yield from self._epoch(first)
            return
        seed = self._draw_seed()
        # a micro-batch has the same mix in any process
        for (images_NCHW, labels_N), part in zip(
            self._epoch(first), self._ranges(first), strict=True
        ):
            yield self.mixing(images_NCHW, labels_N, mix_seed(seed, part.start))

    def _epoch(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, not mixed."""
        raise NotImplementedError

    def _draw_seed(self) -> int:
        """Draw the seed of an epoch."""
        return int(torch.randint(2**62, (), generator=self.generator))

    def first_of_each_class(self, classes: int) -> Images:
        """The first test image of each of the first classes, not normalised, on the CPU."""
        _, first = np.unique(self.labels_N.cpu(), return_index=True)
        return self._read_plain(torch.from_numpy(first[:classes]))

    def _read_plain(self, index_N: Tensor) -> Images:
        """Images by their positions in the split, resized and center-cropped only."""
        raise NotImplementedError

    def _ranges(self, first: int) -> Iterator[range]:
        """The ranges of positions that this process reads, from batch ``first`` on."""
        return self.share.assigned(self.places[first:], training=self.generator is not None)


class Batches(Split):
    """Batches of images in memory, augmented on their device.

    ``transforms`` are applied to training images: crop and flip, rotation, those of single images
    in their order, and brightness. Test images are only center-cropped. The other arguments are
    those of ``Split``.
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
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__(images, batch_size, mean_C, std_C, generator, share, mixing)
        self.images = images
        self.padding = next((t.padding for t in transforms if isinstance(t, RandomCrop)), 0)
        self.flip = any(isinstance(t, Flip) for t in transforms)
        self.degrees = next((t.degrees for t in transforms if isinstance(t, Rotation)), 0.0)
        self.brightness = next((t.amount for t in transforms if isinstance(t, Brightness)), 0.0)
        self.per_image = [t for t in transforms if isinstance(t, get_args(PerImage))]
        stored_HW = tuple(images.pixels_NCHW.shape[2:])
        crops = [(t.size, t.size) for t in transforms if isinstance(t, CropTo)]
        self.height, self.width = crops[0] if crops else stored_HW
        # the largest offset of a crop, down and to the right
        self.margin_HW = (stored_HW[0] - self.height, stored_HW[1] - self.width)

    def _epoch(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        if self.generator is None:
            for part in self._ranges(first):
                pixels_NCHW, labels_N = self._center_crop(slice(part.start, part.stop))
                yield normalize(pixels_NCHW, self.mean_C, self.std_C), labels_N
            return
        device = self.labels_N.device
        order_N = torch.randperm(self.count, generator=self.generator).to(device)
        # draws for the whole epoch at once: a copy to the device in each step would stall it
        flipped_N1 = self._draw(2 if self.flip else 1) == 1
        down_N1, right_N1 = (self._draw(margin + 2 * self.padding + 1) for margin in self.margin_HW)
        angle_N1 = self._draw_around_0(self.degrees)
        factor_N1 = 1 + self._draw_around_0(self.brightness)
        if self.per_image:  # imports torchvision, which takes a second
            from attngrid.data.augmentation import augment_each, augmentation

            mean = tuple(self.mean_C.tolist())
            augmentations = [augmentation(transform, mean) for transform in self.per_image]
            seed = self._draw_seed()
        for part in self._ranges(first):
            batch = slice(part.start, part.stop)
            pixels_NCHW = self.images.pixels_NCHW[order_N[batch]]
            if self.flip or self.padding or any(self.margin_HW):
                pixels_NCHW = self._crop(
                    pixels_NCHW, flipped_N1[batch], down_N1[batch], right_N1[batch]
                )
            if self.degrees:
                pixels_NCHW = rotate(pixels_NCHW, angle_N1[batch, 0])
            if self.per_image:
                pixels_NCHW = augment_each(pixels_NCHW, augmentations, seed, order_N[batch])
            if self.brightness:
                pixels_NCHW = (pixels_NCHW * factor_N1[batch, :, None, None]).clamp_(max=255)
            images_NCHW = normalize(pixels_NCHW, self.mean_C, self.std_C)
            yield images_NCHW, self.labels_N[order_N[batch]]

    def _read_plain(self, index_N: Tensor) -> Images:
        return Images(*self._center_crop(index_N.to(self.labels_N.device))).to(torch.device("cpu"))

    def _center_crop(self, which: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Some images and labels, cropped at the same place as by torchvision's ``CenterCrop``."""
        top, left = (round(margin / 2) for margin in self.margin_HW)
        pixels_NCHW = self.images.pixels_NCHW[which]
        rows, columns = slice(top, top + self.height), slice(left, left + self.width)
        return pixels_NCHW[:, :, rows, columns], self.labels_N[which]

    def _crop(
        self, pixels_NCHW: Tensor, flipped_N1: Tensor, down_N1: Tensor, right_N1: Tensor
    ) -> Tensor:
        """Pad each image, crop it at its own offset, and mirror it where ``flipped_N1``."""
        if self.padding:
            pixels_NCHW = torch.nn.functional.pad(pixels_NCHW, (self.padding,) * 4)
        rows_H = torch.arange(self.height, device=pixels_NCHW.device)
        columns_W = torch.arange(self.width, device=pixels_NCHW.device)
        rows_NH = down_N1 + rows_H
        columns_NW = right_N1 + torch.where(flipped_N1, columns_W.flip(0), columns_W)
        # gather from the flattened image is faster on a CPU than indexing
        index_NHW = rows_NH[:, :, None] * pixels_NCHW.shape[3] + columns_NW[:, None, :]
        index_NCP = index_NHW.flatten(1)[:, None].expand(-1, pixels_NCHW.shape[1], -1)
        picked_NCP = pixels_NCHW.flatten(2).gather(2, index_NCP)
        return picked_NCP.reshape(*picked_NCP.shape[:2], self.height, self.width)

    def _draw(self, upper: int) -> Tensor:
        """Draw an integer below ``upper`` for each image; no draw if ``upper`` is 1."""
        drawn_N1 = torch.zeros((self.count, 1), dtype=torch.int64)
        if upper > 1:
            drawn_N1 = torch.randint(upper, (self.count, 1), generator=self.generator)
        return drawn_N1.to(self.labels_N.device)

    def _draw_around_0(self, largest: float) -> Tensor:
        """Draw a number from [-largest, largest] for each image; no draw if ``largest`` is 0."""
        drawn_N1 = torch.zeros((self.count, 1))
        if largest:
            drawn_N1 = torch.rand((self.count, 1), generator=self.generator)
            drawn_N1 = largest * (2 * drawn_N1 - 1)
        return drawn_N1.to(self.labels_N.device)


def rotate(pixels_NCHW: Tensor, degrees_N: Tensor) -> Tensor:
    """Rotate square images counter-clockwise about their centres, without interpolation.

    A pixel from outside its image is black, as with torchvision's ``RandomRotation``.
    """
    side = pixels_NCHW.shape[-1]
    radians_N11 = degrees_N.double().deg2rad()[:, None, None]
    cosine, sine = radians_N11.cos(), radians_N11.sin()
    from_centre = (
        torch.arange(side, device=pixels_NCHW.device, dtype=torch.float64) - (side - 1) / 2
    )
    down, right = from_centre[:, None], from_centre[None, :]
    rows_NHW, columns_NHW = (
        (centred + side / 2).floor().long()
        for centred in (cosine * down + sine * right, cosine * right - sine * down)
    )
    inside_NHW = (rows_NHW >= 0) & (rows_NHW < side) & (columns_NHW >= 0) & (columns_NHW < side)
    index_NP = (rows_NHW * side + columns_NHW).where(inside_NHW, 0).flatten(1)
    index_NCP = index_NP[:, None].expand(-1, pixels_NCHW.shape[1], -1)
    rotated_NCHW = pixels_NCHW.flatten(2).gather(2, index_NCP).reshape(pixels_NCHW.shape)
    return rotated_NCHW * inside_NHW[:, None]


def mix_seed(seed: int, position: int) -> int:
    """The seed of an image in an epoch: the output of SplitMix64 (Steele et al., 2014)."""
    mask = 2**64 - 1
    state = (seed + (position + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def normalize(pixels_NCHW: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Subtract each channel's mean and divide by its standard deviation, in float32."""
    images_NCHW = pixels_NCHW.to(torch.float32, copy=True)
    # in place: on a CPU, new memory for each step takes longer than the step
    return images_NCHW.sub_(mean_C[:, None, None]).div_(std_C[:, None, None])


def channel_statistics(images: Images) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of a split, in [0, 255].

    The standard deviation of a constant channel is given as 1, because images are divided by it.
    """
    histogram_C256 = torch.zeros(3, 256, dtype=torch.float64)
    for chunk_NCHW in torch.split(images.pixels_NCHW, 1000):  # counting takes 8 bytes a pixel
        for channel, pixels_NHW in enumerate(chunk_NCHW.transpose(0, 1).int()):
            histogram_C256[channel] += torch.bincount(pixels_NHW.flatten(), minlength=256).cpu()
    levels_256 = torch.arange(256, dtype=torch.float64)
    weights = histogram_C256 / histogram_C256.sum(1, keepdim=True)
    mean_C = (weights * levels_256).sum(1)
    variance_C = (weights * (levels_256 - mean_C[:, None]) ** 2).sum(1)
    return mean_C.float(), torch.where(variance_C > 0, variance_C.sqrt(), 1).float()
