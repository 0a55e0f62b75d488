"""What the peers train: torchvision's network, and images as they read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from setting import Setting
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
# Batches that lie on the device, where reading images is not what is compared.
RESIDENT = 4


class Pictures(Dataset[tuple[Any, int]]):
    """As torchvision's CIFAR100: an array in memory, a PIL image of each item, transforms on it."""

    def __init__(
        self, pixels_NHWC: NDArray[Any], labels: list[int], transform: Callable[[Any], Any]
    ) -> None:
        self.pixels_NHWC, self.labels, self.transform = pixels_NHWC, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels_NHWC[index])), self.labels[index]


def usual_transform(size: int) -> Callable[[Any], Any]:
    """Of a PIL image of that size to a tensor."""
    compose: Callable[[Any], Any] = transforms.Compose(
        [
            transforms.RandomCrop(size, padding=size // 8),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return compose


def batches(
    setting: Setting, *, workers: int, resident: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on the device for ever: N×3×H×W float32 images, normalised, and N labels.

    Args:
        setting: what is trained, and where.
        workers: of a DataLoader of PIL images, cropped, flipped and normalised one by one.
        resident: a few batches that are there already instead, as they come out of that.
    """
    count = RESIDENT * setting.batch if resident else setting.data.TRAIN
    pixels_NCHW, labels_N = setting.data.draw(count)
    device = torch.device(setting.device)
    if resident:
        mean_C, std_C = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
        images_NCHW = (torch.from_numpy(pixels_NCHW) / 255 - mean_C) / std_C
        whole = images_NCHW.to(device), torch.from_numpy(labels_N).to(device)
        there = list(zip(*(part.chunk(RESIDENT) for part in whole), strict=True))
        while True:
            yield from there
    pixels_NHWC = pixels_NCHW.transpose(0, 2, 3, 1).copy()
    loader = DataLoader(
        Pictures(pixels_NHWC, labels_N.tolist(), usual_transform(setting.data.input_size)),
        setting.batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    while True:  # without the start of an epoch in a sample
        for images, labels in loader:
            yield images.to(device), labels.to(device)


def network(setting: Setting) -> nn.Module:
    """Torchvision's ResNet, with the stem that CIFAR is trained with, 3×3/1 and no pooling."""
    model: nn.Module = getattr(torchvision.models, setting.usual_name)(
        num_classes=setting.data.num_classes
    )
    return with_stem(model, setting).to(setting.device)


def with_stem(model: nn.Module, setting: Setting) -> nn.Module:
    """A ResNet as it is, or with CIFAR's stem where its images are CIFAR's."""
    if setting.data.stem == "cifar":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model
