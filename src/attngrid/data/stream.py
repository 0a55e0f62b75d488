"""Image datasets that stay in their files: read by workers, ahead of the training."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from attngrid.core.errors import DataError
from attngrid.data.folders import FolderIndex
from attngrid.data.images import Images, normalised
from attngrid.data.sharding import ALL, Share
from attngrid.data.transforms import Brightness, CropTo, Flip, RandomResizedCrop, Resize, Transform

# Of ImageNet's training images, as all its readers normalise them; in [0, 255].
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
BATCHES_AHEAD = 2  # of each worker
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
GRACE_S = 20


class Stream:
    """Shuffled, augmented training batches and plain test batches of images in files.

    What is drawn for an image is a function of the epoch's number, drawn from the generator, and
    of the image alone: of no worker, and of nothing that was read before.

    Args:
        index: of the split.
        batch_size: images a batch.
        transforms: in their order, by torchvision.
        device: of the batches.
        workers: processes that read ahead; 0 reads in this one.
        generator: a CPU generator; without one these are test batches.
        share: what of the batches is read.
    """

    def __init__(
        self,
        index: FolderIndex,
        batch_size: int,
        transforms: tuple[Transform, ...],
        device: torch.device,
        *,
        workers: int,
        generator: torch.Generator | None = None,
        share: Share = ALL,
    ) -> None:
        self.index = index
        self.batch_size = batch_size
        self.transforms = transforms
        self.device = device
        self.workers = workers
        self.generator = generator
        self.mean_C = torch.tensor(MEAN, device=device)
        self.std_C = torch.tensor(STD, device=device)
        self.share = share
        training = generator is not None
        self.places = share.batches(len(index), batch_size, training=training)

    @property
    def count(self) -> int:
        """Images of the split."""
        return len(self.index)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch's batches of normalised N×3×H×W float32 images and N labels, in their parts.

        Raises:
            DataError: an image that cannot be read, by name.
        """
        return self.epoch()

    def epoch(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The same from a batch on; those before it are not read."""
        order_N, seed = torch.arange(self.count), None
        if self.generator is not None:
            order_N = torch.randperm(self.count, generator=self.generator)
            seed = int(torch.randint(2**62, (), generator=self.generator))
        parts = self.share.taken(self.places[first:], training=self.generator is not None)
        chunks = [order_N[part.start : part.stop] for part in parts]
        loader = DataLoader(
            Decoded(self.index, self.transforms, seed),
            sampler=chunks,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=BATCHES_AHEAD if self.workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=outlast_signals,
            generator=torch.Generator(),  # or it would draw from everybody's
        )
        for batch in started(loader):
            # as a value: of an exception a worker hands over its traceback
            if isinstance(batch, str):
                raise DataError(batch)
            pixels_NCHW, labels_N = (part.to(self.device, non_blocking=True) for part in batch)
            yield normalised(pixels_NCHW, self.mean_C, self.std_C), labels_N

    def first_of_each_class(self, classes: int) -> Images:
        """The first image of each of the first classes, in their order, augmented by nothing.

        Raises:
            DataError: an image that cannot be read, by name.
        """
        labels = np.unique(self.index.labels)[:classes]
        index = torch.tensor([int(np.argmax(self.index.labels == label)) for label in labels])
        batch = Decoded(self.index, self.transforms, None)[index]
        if isinstance(batch, str):
            raise DataError(batch)
        return Images(*batch)


class Decoded(Dataset[Any]):
    """Batches of decoded images by their places in a split, or what is wrong with one of them.

    Args:
        index: of the split.
        transforms: in their order.
        seed: of the epoch; None for test images, of which nothing is drawn.
    """

    def __init__(
        self, index: FolderIndex, transforms: tuple[Transform, ...], seed: int | None
    ) -> None:
        self.index = index
        self.seed = seed
        self.steps = [_step(transform, training=seed is not None) for transform in transforms]

    def __getitem__(self, places_N: Tensor) -> tuple[Tensor, Tensor] | str:
        """uint8 N×3×H×W and N labels; a message where an image cannot be read."""
        pixels = []
        with torch.random.fork_rng(devices=[]):
            for place in places_N.tolist():
                file = self.index.path(place)
                try:
                    pixels.append(self._read(file, place))
                except Exception as error:  # a decoder may raise anything on damaged bytes
                    return (
                        f"{file}: cannot be read: {type(error).__name__}: {error}; `attngrid "
                        "prepare --thorough` decodes every image of a study and names all that are "
                        "damaged"
                    )
        return torch.stack(pixels), torch.from_numpy(self.index.labels[places_N.numpy()])

    def _read(self, file: Path, place: int) -> Tensor:
        with Image.open(file) as image:
            if self.seed is not None:
                # torch.manual_seed also looks for GPUs, and takes a tenth of an image's time
                torch.default_generator.manual_seed(mixed(self.seed, place))
            picture: Any = image
            for step in self.steps:
                picture = step(picture)
            return picture if isinstance(picture, Tensor) else _pixels(_rgb(picture))


class ShrunkResizedCrop(v2.RandomResizedCrop):  # type: ignore[misc]
    """torchvision's, of a file that is not decoded yet: a JPEG at the least size that will do.

    A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size in so much less time. That is done where
    the crop has at least its final size all the same, so that nothing is ever enlarged for it. It
    is resized as a tensor, in a third of PIL's time and to within one grey level of it.
    """

    def forward(self, image: Image.Image) -> Tensor:
        crop = self.make_params([image])
        top, left, height, width = (crop[key] for key in ("top", "left", "height", "width"))
        rows, columns = self.size
        full = image.size
        share = min(height / rows, width / columns)
        if share >= 2:
            image.draft(None, (int(full[0] / share), int(full[1] / share)))
        decoded = _rgb(image)
        if decoded.size == full:
            crop_CHW = _pixels(decoded.crop((left, top, left + width, top + height)))
            resized_CHW: Tensor = functional.resize(crop_CHW, [rows, columns])
            return resized_CHW
        x, y = decoded.size[0] / full[0], decoded.size[1] / full[1]
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        return _pixels(decoded.resize((columns, rows), Image.Resampling.BILINEAR, box))


def started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the reading processes; signals wait until each knows what to do with them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlast_signals(worker: int) -> None:
    """Keep a reading process until its training ends it.

    Ctrl-C and a batch system signal every process, and the training still wants a checkpoint of
    this one's images. SIGTERM, with which it is ended in the last resort, ends it a while later.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_S))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _step(transform: Transform, *, training: bool) -> Any:
    """Torchvision's transform of a PIL image."""
    match transform:
        case RandomResizedCrop(size=size):
            return ShrunkResizedCrop(size)
        case Flip():
            return v2.RandomHorizontalFlip()
        case Resize(size=size, squash=squash):
            return v2.Compose([_rgb, v2.Resize((size, size) if squash else size)])
        case CropTo(size=size):
            return v2.RandomCrop(size) if training else v2.CenterCrop(size)
        case Brightness(amount=amount):
            return v2.Compose([_rgb, v2.ColorJitter(brightness=amount)])
    raise AssertionError(f"{transform.kind} is no transform of images in files")


def _rgb(image: Any) -> Any:
    """Of a file of any mode; what is pixels already has three channels."""
    return image if isinstance(image, Tensor) or image.mode == "RGB" else image.convert("RGB")


def _pixels(image: Image.Image) -> Tensor:
    pixels_CHW: Tensor = functional.pil_to_tensor(image)
    return pixels_CHW


def mixed(seed: int, place: int) -> int:
    """A seed of its own for each image of an epoch: SplitMix64's output (Steele et al., 2014)."""
    mask = 2**64 - 1
    state = (seed + (place + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)
