"""Images that stay in their files: decoded and augmented by worker processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from attngrid.core.errors import DataError
from attngrid.data.augmentation import Mixing, augmentation, own_generators, seed_generators
from attngrid.data.decoding import open_image, to_rgb
from attngrid.data.images import ImageFiles, Images, Split, mix_seed, normalize
from attngrid.data.sharding import ALL, Share
from attngrid.data.transforms import (
    Brightness,
    CropTo,
    Flip,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotation,
    Transform,
)

# The usual channel statistics of ImageNet's training images, in [0, 255].
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
GRACE_S = 20  # between SIGTERM and the end of a worker


class Stream(Split):
    """Batches of images in files.

    The random numbers of an image depend only on generator, epoch and image, so the batches are the
    same with any number of workers and after a restart. An unreadable image raises a DataError that
    names its file. ``workers`` processes read ahead; with 0 this process reads. The transforms are
    applied in their order. The other arguments are those of ``Split``.
    """

    def __init__(
        self,
        files: ImageFiles,
        batch_size: int,
        transforms: tuple[Transform, ...],
        device: torch.device,
        *,
        workers: int,
        generator: torch.Generator | None = None,
        share: Share = ALL,
        mixing: Mixing | None = None,
    ) -> None:
        mean_C, std_C = (torch.tensor(values, device=device) for values in (MEAN, STD))
        super().__init__(files, batch_size, mean_C, std_C, generator, share, mixing)
        self.files = files
        self.transforms = transforms
        self.device = device
        self.workers = workers

    def _epoch(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        order_N, seed = torch.arange(self.count), None
        if self.generator is not None:
            order_N = torch.randperm(self.count, generator=self.generator)
            seed = self._draw_seed()
        loader = DataLoader(
            DecodedBatches(self.files, self.transforms, seed),
            sampler=[order_N[part.start : part.stop] for part in self._ranges(first)],
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # the default would draw from torch's global generator
        )
        for batch in _start(loader):
            if isinstance(batch, str):
                raise DataError(batch)
            pixels_NCHW, labels_N = (part.to(self.device, non_blocking=True) for part in batch)
            yield normalize(pixels_NCHW, self.mean_C, self.std_C), labels_N

    def _read_plain(self, index_N: Tensor) -> Images:
        batch = DecodedBatches(self.files, self.transforms, None)[index_N]
        if isinstance(batch, str):
            raise DataError(batch)
        return Images(*batch)


class DecodedBatches(Dataset[Any]):
    """Batches of decoded and augmented images, by their positions in a split.

    ``seed`` is the seed of the epoch; None for test images, which need no random numbers.
    """

    def __init__(
        self, files: ImageFiles, transforms: tuple[Transform, ...], seed: int | None
    ) -> None:
        self.files = files
        self.seed = seed
        self.steps = [_make_step(t, training=seed is not None) for t in transforms]

    def __getitem__(self, positions_N: Tensor) -> tuple[Tensor, Tensor] | str:
        """Return uint8 N×3×H×W and N labels, or an error message.

        An exception raised in a worker would reach the user as a traceback.
        """
        pixels = []
        with own_generators():
            for position in positions_N.tolist():
                file = Path(os.fsdecode(self.files.paths_N[position]))
                try:
                    pixels.append(self._read(file, position))
                except Exception as error:  # a decoder may raise anything on damaged bytes
                    return (
                        f"{file}: cannot be read: {type(error).__name__}: {error}; `attngrid "
                        "prepare --thorough` decodes every image of a study and names all that "
                        "cannot be decoded"
                    )
        return torch.stack(pixels), self.files.labels_N[positions_N]

    def _read(self, file: Path, position: int) -> Tensor:
        with open_image(file) as opened:
            if self.seed is not None:
                seed_generators(mix_seed(self.seed, position))
            image: Any = opened
            for step in self.steps:
                image = step(image)
            return _to_tensor(_to_rgb(image))


class ResizedCrop(v2.RandomResizedCrop):  # type: ignore[misc]
    """torchvision's RandomResizedCrop for an image that is not decoded yet.

    Resizing a tensor takes a third of PIL's time and differs by at most one grey level.

    Args:
        size: height and width of the result in pixels.
        shrink: decode a JPEG at 1/2, 1/4 or 1/8 of its size, if the crop is then still at least
            ``size``.
    """

    def __init__(self, size: int, *, shrink: bool) -> None:
        super().__init__(size)
        self.shrink = shrink

    def forward(self, image: Image.Image) -> Tensor:
        crop = self.make_params([image])
        top, left, height, width = (crop[key] for key in ("top", "left", "height", "width"))
        rows, columns = self.size
        full = image.size
        scale = min(height / rows, width / columns)
        if self.shrink and scale >= 2:
            image.draft(None, (int(full[0] / scale), int(full[1] / scale)))
        decoded = _to_rgb(image)
        if decoded.size == full:
            crop_CHW = _to_tensor(decoded.crop((left, top, left + width, top + height)))
            resized_CHW: Tensor = functional.resize(crop_CHW, [rows, columns])
            return resized_CHW
        x, y = decoded.size[0] / full[0], decoded.size[1] / full[1]
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        return _to_tensor(decoded.resize((columns, rows), Image.Resampling.BILINEAR, box))


def transform_test_image(image: Image.Image, transforms: tuple[Transform, ...]) -> Tensor:
    """An opened image as a test image: uint8, 3×H×W."""
    for transform in transforms:
        image = _make_step(transform, training=False)(image)
    return _to_tensor(_to_rgb(image))


def _start(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the workers; signals are blocked until each worker has its handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_signals(worker: int) -> None:
    """Keep a worker alive until the training ends it.

    Ctrl-C and batch systems signal every process, but the training needs images until its
    checkpoint. SIGTERM ends a worker after ``GRACE_S`` seconds, in case the training is gone.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_S))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _make_step(transform: Transform, *, training: bool) -> Any:
    """The transform as torchvision's transform of PIL images."""
    match transform:
        case RandomResizedCrop(size=size, shrink_on_load=shrink):
            return ResizedCrop(size, shrink=shrink)
        case Rotation(degrees=degrees):
            return v2.Compose([_to_rgb, v2.RandomRotation(degrees)])
        case Flip():
            return v2.RandomHorizontalFlip()
        case Resize(size=size, squash=squash):
            return v2.Compose([_to_rgb, v2.Resize((size, size) if squash else size)])
        case CropTo(size=size):
            return v2.RandomCrop(size) if training else v2.CenterCrop(size)
        case Brightness(amount=amount):
            return v2.Compose([_to_rgb, v2.ColorJitter(brightness=amount)])
        case RandomCrop():
            raise AssertionError("images in files have no random_crop")
    return v2.Compose([_to_rgb, _to_tensor, augmentation(transform, MEAN)])


def _to_rgb(image: Any) -> Any:
    """Convert a PIL image to RGB; a tensor already has three channels."""
    return image if isinstance(image, Tensor) else to_rgb(image)


def _to_tensor(image: Any) -> Tensor:
    pixels_CHW: Tensor = image if isinstance(image, Tensor) else functional.pil_to_tensor(image)
    return pixels_CHW
