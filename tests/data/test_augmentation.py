"""Augmented and mixed images equal torchvision's, timm's and the papers' equations."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from attngrid.data.augmentation import Mixing
from attngrid.data.images import Batches, ImageFiles, Images, mix_seed
from attngrid.data.sharding import ALL, Share
from attngrid.data.stream import Stream
from attngrid.data.transforms import (
    ColorJitter,
    PerImage,
    RandAugment,
    RandomErasing,
    Resize,
    TimmRandAugment,
    TrivialAugment,
)

CPU = torch.device("cpu")
ZERO, ONE = torch.zeros(3), torch.ones(3)
CLASSES = 7
TIMM = TimmRandAugment(kind="timm_rand_augment", config="rand-m6-mstd0.5-inc1")
TRANSFORMS: dict[PerImage, object] = {
    RandAugment(kind="rand_augment", num_ops=3, magnitude=5): v2.RandAugment(3, 5),
    TrivialAugment(kind="trivial_augment"): v2.TrivialAugmentWide(),
    ColorJitter(kind="color_jitter", brightness=0.4, hue=0.1): v2.ColorJitter(0.4, hue=0.1),
    RandomErasing(kind="random_erasing", probability=0.9): v2.RandomErasing(0.9, value=0),
    TIMM: None,
}


def some_images(count: int = 24, side: int = 16) -> Images:
    """Smooth images, each different; the label is the number modulo the classes."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 4, 4, generator=generator)
    pixels = torch.nn.functional.interpolate(small, side, mode="bicubic").clamp(0, 1) * 255
    return Images(pixels.round().to(torch.uint8), torch.arange(count) % CLASSES)


def batches(
    images: Images, batch: int, *transforms: PerImage, mean: Tensor = ZERO, share: Share = ALL
) -> Batches:
    generator = torch.Generator().manual_seed(3)
    return Batches(images, batch, mean, ONE, transforms, generator, share)


def by_hand(transform: PerImage, image: Tensor, seed: int) -> Tensor:
    """The augmented image by torchvision or timm, seeded as the documentation says."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    if transform == TIMM:
        apply = rand_augment_transform(TIMM.config, {"img_mean": (0, 0, 0)})
        return pil_to_tensor(apply(to_pil_image(image)))
    found: Tensor = TRANSFORMS[transform](image)  # type: ignore[operator]
    return found


# Single images


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.kind)
def test_each_image_in_memory_is_augmented_as_by_the_library(transform: PerImage) -> None:
    images = some_images()
    found, labels = next(iter(batches(images, len(images), transform)))
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(len(images), generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    for place, position in enumerate(order.tolist()):
        own = by_hand(transform, images.pixels_NCHW[position], mix_seed(seed, position))
        assert torch.equal(found[place], own.float())
    assert torch.equal(labels, images.labels_N[order])
    assert not torch.equal(found, images.pixels_NCHW[order].float())


def test_augmented_images_do_not_depend_on_the_batches_and_differ_between_epochs() -> None:
    images = some_images()
    global_state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    small, large = batches(images, 5, *TRANSFORMS), batches(images, 24, *TRANSFORMS)
    assert torch.equal(torch.cat([x for x, _ in small])[:20], next(iter(large))[0][:20])
    again = batches(images, 5, *TRANSFORMS)
    first, late = list(again.epoch()), list(batches(images, 5, *TRANSFORMS).epoch(2))
    assert torch.equal(first[2][0], late[0][0])
    assert not torch.equal(first[0][0], next(again.epoch())[0])
    assert torch.equal(global_state[0], torch.get_rng_state())
    assert global_state[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_an_erased_rectangle_has_the_mean_colour() -> None:
    """Its probability, and its area from 2 to 33 %, are those of Zhong et al. (2017)."""
    white = Images(torch.full((600, 3, 20, 20), 255, dtype=torch.uint8), torch.zeros(600))
    mean = torch.tensor([10.0, 100.4, 200.0])
    erasing = RandomErasing(kind="random_erasing", probability=0.3)
    ((found, _),) = batches(white, 600, erasing, mean=mean)
    erased = (found + mean[:, None, None] < 250).all(1)
    colours = found.permute(0, 2, 3, 1)[erased]
    assert float(colours.abs().max()) <= 0.5  # the mean colour, rounded, minus the mean colour
    area = erased.float().mean((1, 2))[erased.any(2).any(1)]
    assert len(area) / 600 == pytest.approx(0.3, abs=0.06)
    assert 0.01 < float(area.min()) < 0.05 < 0.28 < float(area.max()) < 0.36


def some_files(folder: Path) -> tuple[ImageFiles, Images]:
    images = some_images()
    paths = []
    for number, image in enumerate(images.pixels_NCHW):
        to_pil_image(image).save(folder / f"{number}.png")
        paths.append(str(folder / f"{number}.png").encode())
    return ImageFiles(np.array(paths), images.labels_N), images


def stream(files: ImageFiles, *transforms: PerImage, workers: int = 0) -> Stream:
    sized = (Resize(kind="resize", size=16, squash=True), *transforms)
    generator = torch.Generator().manual_seed(3)
    return Stream(files, 6, sized, CPU, workers=workers, generator=generator)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_images_in_files_are_augmented_as_by_the_library_with_any_number_of_workers(
    tmp_path: Path,
) -> None:
    files, images = some_files(tmp_path)
    jitter = next(t for t in TRANSFORMS if t.kind == "color_jitter")
    one = stream(files, jitter)
    found = torch.cat([x for x, _ in one]) * one.std_C[:, None, None] + one.mean_C[:, None, None]
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(len(images), generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    for place, position in enumerate(order.tolist()):
        own = by_hand(jitter, images.pixels_NCHW[position], mix_seed(seed, position))
        torch.testing.assert_close(found[place], own.float(), atol=1e-3, rtol=0)
    np_state = np.random.get_state()[1].tolist()
    alone = torch.cat([x for x, _ in stream(files, *TRANSFORMS)])
    assert np_state == np.random.get_state()[1].tolist()
    assert torch.equal(alone, torch.cat([x for x, _ in stream(files, *TRANSFORMS, workers=2)]))


def test_erasing_and_timm_fill_images_in_files_with_imagenets_mean(tmp_path: Path) -> None:
    for number in range(40):
        Image.new("RGB", (16, 16), "white").save(tmp_path / f"{number}.png")
    paths = np.array([str(tmp_path / f"{number}.png").encode() for number in range(40)])
    erasing = RandomErasing(kind="random_erasing", probability=1.0)
    found = torch.cat([x for x, _ in stream(ImageFiles(paths, torch.zeros(40)), erasing)])
    assert float((found.abs().amax(1) < 0.02).float().mean()) > 0.05


# Mixes of the images of a batch


def mixed(mixing: Mixing, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels, and their mixes."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % CLASSES
    return (x, y, *mixing(x, y, seed))


def test_mixup_is_its_papers_equation() -> None:
    """x̃ = λ·x + (1 - λ)·x' and ỹ = λ·y + (1 - λ)·y', with λ from Beta(α, α)."""
    weights = []
    for seed in range(300):
        x, y, mixed_x, mixed_y = mixed(Mixing(CLASSES, 0.4, None, 1.0, 0.5), seed)
        λ = float(mixed_y[1, 1])  # the second image has class 1, the one before it class 0
        assert torch.allclose(mixed_x, λ * x + (1 - λ) * x.roll(1, 0), atol=1e-6)
        one_hot = torch.nn.functional.one_hot(y, CLASSES).float()
        assert torch.allclose(mixed_y, λ * one_hot + (1 - λ) * one_hot.roll(1, 0), atol=1e-6)
        weights.append(λ)
    assert np.mean(weights) == pytest.approx(0.5, abs=0.07)
    assert np.var(weights) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.02)


def test_cutmix_is_its_papers_equation() -> None:
    """x̃ = M ⊙ x + (1 - M) ⊙ x' for a rectangle M, and the labels have the shares of the areas."""
    areas = []
    for seed in range(300):
        x, _, mixed_x, mixed_y = mixed(Mixing(CLASSES, None, 1.0, 1.0, 0.5), seed)
        pasted = mixed_x != x
        assert torch.equal(mixed_x[pasted], x.roll(1, 0)[pasted])
        inside = pasted[0, 0]
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns[None, :])
        assert torch.equal(pasted, inside.expand_as(pasted))
        assert float(mixed_y[1, 0]) == pytest.approx(float(inside.float().mean()), abs=1e-6)
        areas.append(float(inside.float().mean()))
    # λ is uniform; a rectangle at the border is cut off
    assert 0.25 < np.mean(areas) < 0.5


def test_probabilities_say_which_batches_are_mixed_and_how() -> None:
    kinds = {"plain": 0, "mixup": 0, "cutmix": 0}
    for seed in range(400):
        x, y, mixed_x, mixed_y = mixed(Mixing(CLASSES, 1.0, 1.0, 0.6, 0.25), seed)
        if torch.equal(mixed_x, x):
            kind = "plain" if torch.equal(mixed_y.argmax(1), y) else "cutmix"
        else:
            kind = "mixup" if (mixed_x != x).float().mean() > 0.999 else "cutmix"
        kinds[kind] += 1
        assert torch.allclose(mixed_y.sum(1), torch.ones(8))
    shares = {kind: count / 400 for kind, count in kinds.items()}
    assert shares == pytest.approx({"plain": 0.4, "mixup": 0.45, "cutmix": 0.15}, abs=0.07)


def test_a_micro_batch_has_the_same_mix_in_every_process_and_after_a_restart() -> None:
    """Two processes, or one with two accumulation steps; and an epoch from its second batch on."""
    images = some_images()

    def epoch(share: Share, first: int = 0) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(3)
        mixing = Mixing(CLASSES, 0.4, 1.0, 1.0, 0.5)
        return list(Batches(images, 8, ZERO, ONE, (), generator, share, mixing).epoch(first))

    accumulated = epoch(Share(gradient_accumulation_steps=2))
    ranks = [epoch(Share(rank, processes=2)) for rank in (0, 1)]
    for step, (x, y) in enumerate(accumulated):
        own_x, own_y = ranks[step % 2][step // 2]
        assert torch.equal(own_x, x)
        assert torch.equal(own_y, y)
    assert len({tuple(y.max(1).values.tolist()) for _, y in accumulated}) == len(accumulated)
    late = epoch(Share(gradient_accumulation_steps=2), first=1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(late, accumulated[2:], strict=True))
