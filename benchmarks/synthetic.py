"""Datasets of random images of CIFAR's and ImageNet's size, to measure speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


class Cifar:
    """Enough training images for a benchmark on a CPU, and only two test images."""

    label = "random images"
    num_classes = 100
    input_size = 32
    stem = "cifar"

    TRAIN, HELD_OUT = 2_560, 2

    @classmethod
    def load(cls, folder: Path) -> list[Split]:
        """The training and the held-out split: uint8 images N×3×H×W and N labels."""
        return [cls.draw(cls.TRAIN), cls.draw(cls.HELD_OUT)]

    @classmethod
    def draw(cls, count: int) -> Split:
        """``count`` images and labels, the same in each call."""
        random = np.random.default_rng(0)
        shape = (count, 3, cls.input_size, cls.input_size)
        pixels_NCHW = random.integers(0, 256, shape, dtype=np.uint8)
        return pixels_NCHW, random.integers(0, cls.num_classes, count)


class ManyCifar(Cifar):
    """Enough training images for a GPU."""

    TRAIN = 160_000


class LikeCifar(Cifar):
    """As many images as CIFAR-100 has."""

    TRAIN, HELD_OUT = 50_000, 10_000


class ImageNet(Cifar):
    """Images of ImageNet's size."""

    num_classes = 1000
    input_size = 224
    stem = "imagenet"

    TRAIN = 256


class ManyImageNet(ImageNet):
    """Enough training images for a GPU."""

    TRAIN = 7_680
