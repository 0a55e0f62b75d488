"""Images of CIFAR's size, random: what a benchmark feeds where only speed counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


class Synthetic:
    """Training images for many samples of a benchmark, and next to none to test on."""

    label = "random images"
    num_classes = 100
    input_size = 32
    stem = "cifar"

    TRAIN, HELD_OUT = 2_560, 2

    @classmethod
    def load(cls, folder: Path) -> list[Split]:
        """The training and the held-out split: uint8 images N×3×H×W and N labels."""
        return [random_images(cls.TRAIN), random_images(cls.HELD_OUT)]


def random_images(count: int) -> Split:
    """Images N×3×32×32 and labels, the same each time."""
    random = np.random.default_rng(0)
    pixels_NCHW = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return pixels_NCHW, random.integers(0, Synthetic.num_classes, count)
