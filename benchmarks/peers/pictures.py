"""What the peers read: PIL images with torchvision's transforms on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
TRANSFORMS = (
    transforms.RandomCrop(32, padding=4),
    transforms.RandomHorizontalFlip(),
    transforms.ToTensor(),
    transforms.Normalize(MEAN, STD),
)


class Pictures(Dataset[tuple[Any, int]]):
    """As torchvision's CIFAR100: an array in memory, a PIL image of each item, transforms on it."""

    def __init__(
        self,
        pixels_NHWC: NDArray[Any],
        labels: list[int],
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.pixels_NHWC, self.labels = pixels_NHWC, labels
        self.transform = transform or transforms.Compose(TRANSFORMS)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels_NHWC[index])), self.labels[index]


def endless(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch, without the start of one in a sample."""
    while True:
        yield from loader
