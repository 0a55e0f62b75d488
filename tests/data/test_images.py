"""Transforms have the right distributions, and image files are read as by torchvision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from attngrid.core.errors import DataError
from attngrid.data.images import (
    Batches,
    ImageFiles,
    Images,
    channel_statistics,
    mix_seed,
    rotate,
)
from attngrid.data.loading import load_files
from attngrid.data.stream import MEAN, STD, DecodedBatches, ResizedCrop, Stream
from attngrid.data.transforms import (
    Brightness,
    CropTo,
    Flip,
    RandomCrop,
    RandomResizedCrop,
    Rotation,
    Transform,
)
from attngrid.study.recipe import shipped_recipes

CPU = torch.device("cpu")
ZERO, ONE = torch.zeros(3), torch.ones(3)
PAD4 = RandomCrop(kind="random_crop", padding=4)
FLIP = Flip(kind="flip")
CROP = RandomResizedCrop(kind="random_resized_crop", size=16)
NO_FILES = ImageFiles(np.array([], np.bytes_), torch.arange(0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def epoch(batches: Any, first: int = 0) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches.epoch(first), strict=True)
    return torch.cat(images), torch.cat(labels)


# In memory


def coordinate_images(images: int, side: int) -> Images:
    """Images whose pixel values are their row and column; each image is another class."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    one = torch.stack([rows + 1, columns + 1, torch.full_like(rows, 255)]).to(torch.uint8)
    return Images(one.expand(images, -1, -1, -1).contiguous(), torch.arange(images))


def test_averaged_pixels_are_the_means_of_squares() -> None:
    pixels = torch.randint(256, (3, 3, 32, 32), generator=seeded(0), dtype=torch.uint8)
    found = Images(pixels, torch.arange(3)).averaged(16).pixels_NCHW
    means = pixels.numpy().reshape(3, 3, 16, 2, 16, 2).mean(axis=(3, 5))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), np.rint(means))


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """CIFAR's augmentation of 8,100 images: the offsets down and right of each crop, and whether it
    was flipped, computed from its pixels.
    """
    batches = Batches(coordinate_images(8100, 16), 128, ZERO, ONE, (PAD4, FLIP), seeded(0))
    images, _ = epoch(batches)
    middle = images[:, :, 8, 7:9]  # every crop contains these pixels
    flipped = middle[:, 1, 0] > middle[:, 1, 1]
    down = middle[:, 0, 0] - 1 - 8 + 4
    column = torch.where(flipped, middle[:, 1, 1], middle[:, 1, 0]) - 1
    return down.int(), (column - 7 + 4).int(), flipped


def chi_square(counts: Tensor) -> float:
    """The χ² statistic in standard deviations from its mean, about 0 for uniform counts."""
    expected = counts.sum() / counts.numel()
    freedom = counts.numel() - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - freedom) / (2 * freedom) ** 0.5


def test_offsets_are_uniform(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    down, right, flipped = drawn
    assert (int(down.min()), int(down.max())) == (0, 8)
    counts = torch.bincount(down * 9 + right, minlength=81).float()
    assert len(counts) == 81
    assert abs(chi_square(counts)) < 4
    assert abs(float(flipped.float().mean()) - 0.5) < 4 * 0.5 / len(flipped) ** 0.5


def test_offsets_and_flips_are_independent_per_image(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    """They are independent of each other and of those of the next image, in any batch."""
    draws = torch.stack([d.double() for d in drawn])
    beside = torch.cat([draws[:, :-1], draws[:, 1:]])
    correlation = torch.corrcoef(beside) - torch.eye(6)
    assert float(correlation.abs().max()) < 4 / beside.shape[1] ** 0.5


def test_two_epochs_and_two_seeds_draw_differently() -> None:
    batches = Batches(coordinate_images(64, 32), 64, ZERO, ONE, (PAD4, FLIP), seeded(0))
    (one, _), (two, _) = epoch(batches), epoch(batches)
    other, _ = epoch(Batches(coordinate_images(64, 32), 64, ZERO, ONE, (PAD4, FLIP), seeded(1)))
    assert not torch.equal(one, two)
    assert not torch.equal(one, other)


def test_random_crop_is_a_window_of_the_zero_padded_image() -> None:
    pixels = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8, generator=seeded(0))
    images, labels = epoch(
        Batches(Images(pixels, torch.arange(50)), 50, ZERO, ONE, (PAD4,), seeded(1))
    )
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4)).float()
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # N×3×9×9×8×8
    for image, label in zip(images, labels, strict=True):
        assert (windows[label] == image[:, None, None]).all(dim=(0, 3, 4)).any()


def test_crop_to_is_a_window_of_the_image_and_reaches_every_offset() -> None:
    crop = CropTo(kind="crop_to", size=5)
    images, _ = epoch(Batches(coordinate_images(2000, 8), 500, ZERO, ONE, (crop,), seeded(0)))
    assert images.shape == (2000, 3, 5, 5)
    assert (images[:, 2] == 255).all()  # no padding
    corners = (images[:, 0, 0, 0] - 1) * 4 + images[:, 1, 0, 0] - 1
    counts = torch.bincount(corners.int(), minlength=16).float()
    assert len(counts) == 16
    assert abs(chi_square(counts)) < 4


@pytest.mark.parametrize(("side", "size"), [(256, 224), (9, 4), (8, 5)])
def test_the_test_crop_is_torchvisions_centre_crop(side: int, size: int) -> None:
    pixels = torch.randint(256, (2, 3, side, side), dtype=torch.uint8, generator=seeded(0))
    crop = CropTo(kind="crop_to", size=size)
    images, _ = epoch(Batches(Images(pixels, torch.arange(2)), 2, ZERO, ONE, (crop,)))
    assert torch.equal(images, transforms.CenterCrop(size)(pixels).float())


def test_a_rotation_equals_pils() -> None:
    """PIL computes in 16-bit fractions, so a pixel on an edge may come from its neighbour."""
    pixels = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=seeded(0))
    angles = torch.linspace(-15, 15, 40)
    angles[0] = 90
    expected = torch.stack(
        [
            pil_to_tensor(to_pil_image(image).rotate(float(angle)))
            for image, angle in zip(pixels, angles, strict=True)
        ]
    )
    found = rotate(pixels, angles)
    assert torch.equal(found[0], pixels[0].rot90(1, (1, 2)))
    assert found.dtype == torch.uint8
    assert float((found == expected).all(1).float().mean()) > 0.999


def test_rotation_draws_an_angle_for_each_image() -> None:
    """The angle is that from the centre of the image to the centre of its bright square."""
    side = 101
    pixels = torch.zeros(500, 3, side, side, dtype=torch.uint8)
    pixels[:, :, 48:53, -8:-3] = 255
    turn = Rotation(kind="rotation", degrees=15)
    batches = Batches(Images(pixels, torch.arange(500)), 100, ZERO, ONE, (turn,), seeded(0))
    bright = epoch(batches)[0][:, 0].double() / 255
    from_centre = torch.arange(side).double() - side // 2
    down, right = ((bright.sum(dim) * from_centre).sum(1) for dim in (2, 1))
    angles = torch.atan2(-down, right).rad2deg()
    assert -15.5 < float(angles.min()) < -14
    assert 14 < float(angles.max()) < 15.5
    assert abs(chi_square(torch.histc(angles, bins=10, min=-15, max=15))) < 4
    assert abs(float(torch.corrcoef(torch.stack([angles[:-1], angles[1:]]))[0, 1])) < 0.2


def test_brightness_draws_a_factor_for_each_image() -> None:
    grey = torch.full((20_000, 3, 1, 1), 100, dtype=torch.uint8)
    jitter = Brightness(kind="brightness", amount=0.4)
    images, _ = epoch(
        Batches(Images(grey, torch.arange(len(grey))), 5000, ZERO, ONE, (jitter,), seeded(0))
    )
    factor = images[:, :, 0, 0] / 100
    assert (factor == factor[:, :1]).all()  # the same factor for all channels
    factor = factor[:, 0]
    assert 0.6 <= float(factor.min()) < 0.601
    assert 1.399 < float(factor.max()) <= 1.4 + 1e-6
    counts = torch.histc(factor, bins=40, min=0.6, max=1.4)
    assert abs(chi_square(counts)) < 4
    assert abs(float(torch.corrcoef(torch.stack([factor[:-1], factor[1:]]))[0, 1])) < 0.03


def test_brightness_clips_pixels_as_torchvision_does() -> None:
    white = torch.full((100, 3, 1, 1), 250, dtype=torch.uint8)
    jitter = Brightness(kind="brightness", amount=0.4)
    images, _ = epoch(
        Batches(Images(white, torch.arange(100)), 100, ZERO, ONE, (jitter,), seeded(0))
    )
    assert float(images.max()) == 255
    bright = v2.functional.adjust_brightness(white[0].float() / 255, 1.4)
    assert float(bright.max()) == 1


def test_channel_statistics_of_many_images_equal_numpys() -> None:
    pixels = torch.randint(256, (2500, 3, 2, 2), dtype=torch.uint8, generator=seeded(0))
    mean_C, std_C = channel_statistics(Images(pixels, torch.zeros(2500)))
    np.testing.assert_allclose(mean_C, pixels.numpy().mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std_C, pixels.numpy().std((0, 2, 3)), rtol=1e-6)


def test_a_constant_channel_is_divided_by_one() -> None:
    """As scikit-learn's StandardScaler does; dividing by 0 would look like divergence."""
    pixels = torch.randint(256, (50, 3, 4, 4), dtype=torch.uint8, generator=seeded(0))
    pixels[:, 1] = 77
    images = Images(pixels, torch.zeros(50))
    scaler = StandardScaler().fit(pixels.numpy().transpose(0, 2, 3, 1).reshape(-1, 3).astype(float))
    mean_C, std_C = channel_statistics(images)
    np.testing.assert_allclose(std_C, scaler.scale_, rtol=1e-6)
    np.testing.assert_allclose(mean_C, scaler.mean_, rtol=1e-6)
    assert (epoch(Batches(images, 50, mean_C, std_C))[0][:, 1] == 0).all()


# From files


def write_pictures(root: Path) -> Path:
    """Two classes, each with 12 training and 5 test JPEGs of many shapes; and a grey PNG."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        for label in ("ash", "oak"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                width, height = random.integers(40, 700, 2)
                small = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
                picture.save(root / split / label / f"{number}.jpg", quality=90)
    picture.convert("L").save(root / "train/oak/grey.png")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def index(pictures: Path, tmp_path: Path) -> tuple[ImageFiles, ImageFiles]:
    return load_files(f"imagefolder:{pictures}:2", tmp_path / "data")


IMAGENET = shipped_recipes()["imagenet_100ep"]


def streamed(
    split: ImageFiles,
    workers: int = 0,
    seed: int | None = 0,
    recipe: tuple[Transform, ...] = IMAGENET.train_transforms,
) -> Stream:
    generator = None if seed is None else seeded(seed)
    return Stream(split, 4, recipe, CPU, workers=workers, generator=generator)


def test_test_images_equal_torchvisions_pipeline(
    index: tuple[ImageFiles, ImageFiles],
) -> None:
    """The transforms are resize 256, center crop 224, and ImageNet's normalisation."""
    _, test = index
    found, labels = epoch(streamed(test, seed=None, recipe=IMAGENET.test_transforms))
    theirs = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    expected = [theirs(Image.open(test.paths_N[n]).convert("RGB")) for n in range(len(test))]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert labels.tolist() == [0] * 5 + [1] * 5


def test_test_transforms_of_dogs_equal_torchvisions(
    index: tuple[ImageFiles, ImageFiles],
) -> None:
    dogs = shipped_recipes()["dogs_200ep"].test_transforms
    _, test = index
    found, _ = epoch(streamed(test, seed=None, recipe=dogs))
    theirs = transforms.Compose([transforms.Resize((256, 256)), transforms.CenterCrop(224)])
    pixels = torch.stack([pil_to_tensor(theirs(Image.open(test.paths_N[n]))) for n in range(10)])
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    assert torch.equal(found, (pixels.float() - mean) / std)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.slow
def test_an_epoch_does_not_depend_on_the_number_of_workers(
    index: tuple[ImageFiles, ImageFiles],
) -> None:
    train, _ = index
    (none, labels), (one, _), (three, _) = (epoch(streamed(train, n)) for n in (0, 1, 3))
    assert torch.equal(none, one)
    assert torch.equal(none, three)
    assert len(none) == len(train) - 1
    assert sorted(labels.tolist()) != labels.tolist()
    # the same if it starts at batch 3
    late, late_labels = epoch(streamed(train, 2), first=3)
    assert torch.equal(late, none[12:])
    assert torch.equal(late_labels, labels[12:])


def test_reading_does_not_change_the_global_generator(
    index: tuple[ImageFiles, ImageFiles],
) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    epoch(streamed(index[0]))
    assert torch.equal(torch.get_rng_state(), state)


def test_training_drops_a_last_batch_of_one_image(
    index: tuple[ImageFiles, ImageFiles],
) -> None:
    train, _ = index
    assert len(train) == 25  # 6 batches of 4 and one image
    assert len(streamed(train)) == 6
    assert len(epoch(streamed(train))[1]) == 24
    assert len(streamed(train, seed=None)) == 7


def test_a_streamed_crop_has_torchvisions_distribution(tmp_path: Path) -> None:
    """Area and shape of each crop are computed from an image whose colours are coordinates."""
    size = 256
    ramp = np.zeros((size, size, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(size)[:, None], np.arange(size)[None]
    Image.fromarray(ramp).save(tmp_path / "ramp.png", compress_level=0)
    for split in ("train", "val"):
        for label in "ab":
            (tmp_path / "ramp" / split / label).mkdir(parents=True)
            for number in range(200 if split == "train" else 1):
                os.link(tmp_path / "ramp.png", tmp_path / "ramp" / split / label / f"{number}.png")
    train, _ = load_files(f"imagefolder:{tmp_path / 'ramp'}:2", tmp_path / "data")
    images, _ = epoch(streamed(train, recipe=(CROP, FLIP)))
    pixels = images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    # the centers of the first and last pixel are 15/16 of the crop apart
    height = (pixels[:, 0, -1, 8] - pixels[:, 0, 0, 8]) * 16 / 15
    across = (pixels[:, 1, 8, -1] - pixels[:, 1, 8, 0]) * 16 / 15
    flipped, width = across < 0, across.abs()
    torch.manual_seed(1)
    theirs = [
        transforms.RandomResizedCrop.get_params(
            torch.empty(3, size, size), [0.08, 1.0], [3 / 4, 4 / 3]
        )
        for _ in range(4000)
    ]
    their_height, their_width = torch.tensor(theirs)[:, 2:].float().T
    for found, expected in (
        (height * width / size**2, their_height * their_width / size**2),
        ((width / height).log(), (their_width / their_height).log()),
        (height, their_height),
    ):
        error = (found.var() / len(found) + expected.var() / len(expected)).sqrt()
        assert abs(float(found.mean() - expected.mean())) < 4 * float(error)
        assert float(found.std() / expected.std()) == pytest.approx(1, abs=0.1)
    assert abs(float(flipped.float().mean()) - 0.5) < 4 * 0.5 / len(flipped) ** 0.5
    draws = torch.stack([height, width, flipped.float()]).double()
    beside = torch.corrcoef(torch.cat([draws[:, :-1], draws[:, 1:]]))[:3, 3:]
    assert float(beside.abs().max()) < 4 / len(height) ** 0.5  # independent of the next image


def test_a_training_crop_equals_torchvisions_crop_up_to_one_grey_level(
    index: tuple[ImageFiles, ImageFiles],
) -> None:
    train, _ = index
    ours, theirs = ResizedCrop(224, shrink=False), v2.RandomResizedCrop(224)
    for place in range(len(train)):
        torch.manual_seed(place)
        with Image.open(train.paths_N[place]) as image:
            found = ours(image)
        torch.manual_seed(place)
        with Image.open(train.paths_N[place]) as image:
            expected = pil_to_tensor(theirs(image.convert("RGB")))
        assert int((found.int() - expected.int()).abs().max()) <= 1


def test_a_crop_of_a_jpeg_decoded_at_reduced_size_is_nearly_torchvisions(tmp_path: Path) -> None:
    """The mean difference is below 1.5 grey levels; without shrinking the largest is 1."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(small).resize((1600, 1200), Image.Resampling.BICUBIC).save(
        tmp_path / "large.jpg", quality=95
    )
    ours, theirs = ResizedCrop(64, shrink=True), v2.RandomResizedCrop(64)
    for seed in range(10):
        torch.manual_seed(seed)
        with Image.open(tmp_path / "large.jpg") as image:
            found = ours(image).float()
            shrunk = image.size != (1600, 1200)
        torch.manual_seed(seed)
        with Image.open(tmp_path / "large.jpg") as image:
            expected = pil_to_tensor(theirs(image.convert("RGB"))).float()
        assert shrunk
        assert float((found - expected).abs().mean()) < 1.5
        (step,) = DecodedBatches(NO_FILES, (CROP.model_copy(update={"size": 64}),), 0).steps
        torch.manual_seed(seed)
        with Image.open(tmp_path / "large.jpg") as image:
            assert int((step(image) - expected).abs().max()) <= 1


def test_seeds_of_images_differ_in_their_low_bits() -> None:
    """torch's generator uses 32 bits of a seed."""
    low = {mix_seed(seed, place) & 0xFFFFFFFF for seed in range(4) for place in range(5000)}
    assert len(low) > 19_990


def test_a_missing_image_file_is_named_in_the_error(
    index: tuple[ImageFiles, ImageFiles],
) -> None:
    train, _ = index
    gone = ImageFiles(np.array([b"gone/0.jpg"] * len(train)), train.labels_N)
    with pytest.raises(DataError, match=r"gone/0\.jpg: cannot be read: FileNotFoundError"):
        epoch(streamed(gone))
    with pytest.raises(DataError, match="cannot be read"):
        streamed(gone).first_of_each_class(2)
