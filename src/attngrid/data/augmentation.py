"""Augmentation by torchvision and timm: of single images, and mixes of the images of a batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from attngrid.data.images import mix_seed
from attngrid.data.transforms import (
    ColorJitter,
    PerImage,
    RandAugment,
    RandomErasing,
    TimmRandAugment,
    TrivialAugment,
)


@contextmanager
def own_generators() -> Iterator[None]:
    """Restore the global generators of torch's CPU, NumPy and Python on exit."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def seed_generators(seed: int) -> None:
    """Seed these generators; torch and torchvision draw from the first, timm from the others."""
    # torch.manual_seed also looks for GPUs, a tenth of the time for an image
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def augmentation(transform: PerImage, mean: tuple[float, ...]) -> Any:
    """The transform as a function from a uint8 image 3×H×W to one, by torchvision or timm.

    ``mean`` is the mean colour of the training images, in [0, 255].
    """
    match transform:
        case RandAugment(num_ops=num_ops, magnitude=magnitude):
            return v2.RandAugment(num_ops, magnitude)
        case TimmRandAugment(config=config):
            from timm.data.auto_augment import rand_augment_transform

            # a transform of PIL images, which fills its borders with the mean colour
            apply = rand_augment_transform(config, {"img_mean": tuple(map(round, mean))})
            return v2.Compose([functional.to_pil_image, apply, functional.pil_to_tensor])
        case TrivialAugment():
            return v2.TrivialAugmentWide()
        case ColorJitter():
            return v2.ColorJitter(**transform.model_dump(exclude={"kind"}))
        case RandomErasing(probability=probability):
            return v2.RandomErasing(probability, value=list(map(round, mean)))


def augment_each(
    pixels_NCHW: Tensor, augmentations: list[Any], seed: int, positions_N: Tensor
) -> Tensor:
    """Augment each image of a batch with random numbers of its own, on the CPU.

    The random numbers depend on ``seed`` and the image's position in the split only.
    """
    images = list(pixels_NCHW.cpu())
    with own_generators():
        for place, position in enumerate(positions_N.tolist()):
            seed_generators(mix_seed(seed, position))
            for augment in augmentations:
                images[place] = augment(images[place])
    return torch.stack(images).to(pixels_NCHW.device)


@dataclass(frozen=True)
class Mixing:
    """mixup or CutMix of the images of a micro-batch, by torchvision.

    With λ from Beta(α, α), mixup gives λ·x + (1 - λ)·x', where x' is the image before x; CutMix
    pastes a rectangle of x' whose area is about 1 - λ. The labels are mixed by the same shares.

    Attributes:
        num_classes: the number of classes.
        mixup, cutmix: their α; None leaves one of them out.
        probability: of a micro-batch to be mixed.
        switch_probability: of CutMix, where both are given.
    """

    num_classes: int
    mixup: float | None
    cutmix: float | None
    probability: float
    switch_probability: float

    def __call__(self, images_NCHW: Tensor, labels_N: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mixed images, and N×classes shares of the labels; ``seed`` decides all draws."""
        with own_generators():
            seed_generators(seed)
            mixed, cut = torch.rand(2).tolist()
            if mixed >= self.probability:
                return images_NCHW, one_hot(labels_N, self.num_classes).float()
            use_cutmix = self.mixup is None or (
                self.cutmix is not None and cut < self.switch_probability
            )
            mix = v2.CutMix if use_cutmix else v2.MixUp
            alpha = self.cutmix if use_cutmix else self.mixup
            images, shares = mix(alpha=alpha, num_classes=self.num_classes)(images_NCHW, labels_N)
            return images, shares
