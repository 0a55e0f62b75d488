"""The peers' network (torchvision's) and their way to read images."""

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
# Number of batches on the device, for comparisons without reading images.
RESIDENT = 4


class Pictures(Dataset[tuple[Any, int]]):
    """Like torchvision's CIFAR100: an array in memory; each item is transformed as a PIL image."""

    def __init__(
        self, pixels_NHWC: NDArray[Any], labels: list[int], transform: Callable[[Any], Any]
    ) -> None:
        self.pixels_NHWC, self.labels, self.transform = pixels_NHWC, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels_NHWC[index])), self.labels[index]


def usual_transform(size: int) -> Callable[[Any], Any]:
    """Transforms from a PIL image of this size to a tensor."""
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
        setting: the images, the batch size and the device.
        workers: processes of a DataLoader that crops, flips and normalises PIL images one by one.
        resident: yield a few normalised batches that are already on the device instead.
    """
    count = RESIDENT * setting.batch if resident else setting.data.TRAIN
    pixels_NCHW, labels_N = setting.data.draw(count)
    device = torch.device(setting.device)
    if resident:
        mean_C, std_C = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
        images_NCHW = (torch.from_numpy(pixels_NCHW) / 255 - mean_C) / std_C
        whole = images_NCHW.to(device), torch.from_numpy(labels_N).to(device)
        on_device = list(zip(*(part.chunk(RESIDENT) for part in whole), strict=True))
        while True:
            yield from on_device
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
    while True:  # persistent workers, so a new epoch starts no processes
        for images, labels in loader:
            yield images.to(device), labels.to(device)


def network(setting: Setting) -> nn.Module:
    """Torchvision's ResNet, with CIFAR's stem if the images are CIFAR's."""
    model: nn.Module = getattr(torchvision.models, setting.usual_name)(
        num_classes=setting.data.num_classes
    )
    return with_stem(model, setting).to(setting.device)


def with_stem(model: nn.Module, setting: Setting) -> nn.Module:
    """Replace a ResNet's stem by CIFAR's (3×3, stride 1, no pooling) if the images are CIFAR's."""
    if setting.data.stem == "cifar":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model
