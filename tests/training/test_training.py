"""Training: the data, reproducibility, and the record and status after success or failure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import attngrid
from attngrid.core.errors import DataError, DivergedError
from attngrid.core.files import write_atomically
from attngrid.core.validation import validate
from attngrid.data.images import Batches, Images, channel_statistics
from attngrid.data.loading import load
from attngrid.data.transforms import Flip, RandomCrop
from attngrid.records.environment import now
from attngrid.records.record import read_record
from attngrid.records.status import RUN_BEGAN, read_status, write_status
from attngrid.study.options import Options
from attngrid.study.schema import Study
from attngrid.training import loop, run
from attngrid.training.run import run_cell

CPU = torch.device("cpu")


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study on 289 images."""
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0]["options"] = {"width": 0.0625, "classes": 2}
    tiny["recipes"]["tiny"]["batch_size"] = 50
    return validate(Study, tiny, "tiny.yaml")


def train(study: Study, index: int = 0) -> dict[str, Any]:
    return loop.train(study.cells[index], CPU, Path("data"))[0]


# Data


def test_digits_come_from_scikit_learn_with_a_fixed_stratified_split() -> None:
    train, test = load("digits", Path("unused"), download=False, classes=None)
    assert (len(train), len(test)) == (1442, 355)
    assert train.pixels_NCHW.shape == (1442, 3, 16, 16)
    assert train.pixels_NCHW.dtype == torch.uint8
    counts = np.bincount(load_digits().target)
    held_out = np.bincount(test.labels_N.numpy())
    assert all(abs(h - c / 5) <= 1 for h, c in zip(held_out, counts, strict=True))
    # the first held-out image is the fifth of its digit, enlarged: same mean, smoothed
    bunch = load_digits()
    fifth = np.flatnonzero(bunch.target == 0)[4]
    zeros = test.pixels_NCHW[test.labels_N == 0]
    assert zeros[0, 0].float().mean() == pytest.approx(
        bunch.images[fifth].mean() * 255 / 16, rel=0.02
    )


def test_a_subset_of_classes_has_only_the_first_classes() -> None:
    train, test = load("digits", Path("unused"), download=False, classes=3)
    assert set(train.labels_N.tolist()) == set(test.labels_N.tolist()) == {0, 1, 2}


def test_missing_cifar100_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="download: true"):
        load("cifar100", tmp_path, download=False, classes=None)


def test_real_cifar100_is_read(tmp_path: Path) -> None:
    """It runs if ATTNGRID_CIFAR100 names the folder that contains cifar-100-python/."""
    if not (folder := os.environ.get("ATTNGRID_CIFAR100")):
        pytest.skip("ATTNGRID_CIFAR100 names no folder with cifar-100-python/")
    train, test = load("cifar100", Path(folder), download=False, classes=None)
    assert (train.pixels_NCHW.shape, test.pixels_NCHW.shape) == (
        (50000, 3, 32, 32),
        (10000, 3, 32, 32),
    )
    assert torch.bincount(train.labels_N).tolist() == [500] * 100
    mean_C, std_C = channel_statistics(train)
    # the commonly used statistics of this dataset
    torch.testing.assert_close(
        mean_C / 255, torch.tensor([0.5071, 0.4865, 0.4409]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        std_C / 255, torch.tensor([0.2673, 0.2564, 0.2762]), atol=1e-4, rtol=0
    )


def test_channel_statistics_equal_numpys() -> None:
    pixels = torch.randint(256, (50, 3, 4, 4), dtype=torch.uint8)
    mean_C, std_C = channel_statistics(Images(pixels, torch.zeros(50)))
    flat = pixels.numpy().astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(mean_C, flat.mean(1), rtol=1e-6)
    np.testing.assert_allclose(std_C, flat.std(1), rtol=1e-6)


def augmented(transforms: tuple[Any, ...], count: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Many augmentations of one image whose pixels are all different."""
    image = torch.arange(1, 37, dtype=torch.uint8).reshape(1, 1, 6, 6).expand(1, 3, 6, 6)
    images = Images(image.expand(count, 3, 6, 6), torch.zeros(count, dtype=torch.int64))
    batches = Batches(
        images, count, torch.zeros(3), torch.ones(3), transforms, torch.Generator().manual_seed(0)
    )
    return image[0, 0].float(), next(iter(batches))[0][:, 0]


def test_random_crops_are_uniform_over_all_offsets_and_independent() -> None:
    image, crops = augmented((RandomCrop(kind="random_crop", padding=2),))
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    places = [(i, j) for i in range(5) for j in range(5)]
    counts = [int((crops == padded[i : i + 6, j : j + 6]).all(dim=(1, 2)).sum()) for i, j in places]
    assert sum(counts) == len(crops)  # each is a crop
    expected = len(crops) / len(places)
    chi_squared = sum((count - expected) ** 2 / expected for count in counts)
    assert chi_squared < 51.2  # p = 0.001 at 24 degrees of freedom


def test_half_of_the_images_are_flipped() -> None:
    image, flips = augmented((Flip(kind="flip"),))
    flipped = (flips == image.flip(1)).all(dim=(1, 2))
    kept = (flips == image).all(dim=(1, 2))
    assert (flipped | kept).all()
    assert abs(flipped.float().mean().item() - 0.5) < 0.03


def test_every_epoch_has_every_image_once_in_a_new_order() -> None:
    images = Images(torch.zeros(10, 3, 2, 2, dtype=torch.uint8), torch.arange(10))
    batches = Batches(
        images, 4, torch.zeros(3), torch.ones(3), (), torch.Generator().manual_seed(0)
    )
    orders = [torch.cat([labels for _, labels in batches]).tolist() for _ in range(2)]
    assert [sorted(order) for order in orders] == [list(range(10))] * 2
    assert orders[0] != orders[1]
    assert len(batches) == 3


def test_a_last_batch_of_one_image_is_left_out_in_training_only() -> None:
    images = Images(torch.zeros(9, 3, 2, 2, dtype=torch.uint8), torch.arange(9))
    zero, one = torch.zeros(3), torch.ones(3)
    assert len(Batches(images, 4, zero, one, (), torch.Generator())) == 2
    assert sum(len(labels) for _, labels in Batches(images, 4, zero, one)) == 9


# The loop


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(study: Study) -> None:
    first, again = train(study), train(study)
    assert first == again
    assert train(study, index=3)["curve"] != first["curve"]


def test_the_metrics_are_those_of_the_last_and_of_the_best_epoch(
    tiny: dict[str, Any], study: Study
) -> None:
    tiny["recipes"]["tiny"]["epochs"] = 4
    metrics = train(validate(Study, tiny, "tiny.yaml"))
    curve = metrics["curve"]
    assert [line["epoch"] for line in curve] == [1, 2, 3, 4]
    assert metrics["top1_error"] == curve[-1]["test_top1_error"]
    assert metrics["top5_error"] == curve[-1]["test_top5_error"]
    best = min(line["test_top1_error"] for line in curve)
    assert metrics["best_top1_error"] == best == curve[metrics["best_epoch"] - 1]["test_top1_error"]
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]
    for line in curve:
        assert line["test_top5_error"] <= line["test_top1_error"]


def test_evaluate_equals_a_count_by_hand() -> None:
    logits = torch.eye(10)[torch.tensor([0, 1, 2, 3])] * 9 + torch.linspace(0, 1, 10)
    labels = torch.tensor([0, 1, 9, 0])  # true labels at ranks 1, 1, 2 and last
    batches = [(logits[:3], labels[:3]), (logits[3:], labels[3:])]
    model = torch.nn.Identity()
    x4 = [(images[:, :, None, None], y) for images, y in batches]
    result = loop.evaluate(torch.nn.Flatten(), x4)
    assert result["test_top1_error"] == 50.0
    assert result["test_top5_error"] == 25.0
    expected = torch.nn.functional.cross_entropy(model(logits), labels).item()
    assert result["test_loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_bfloat16_reaches_the_loss_of_float32(tiny: dict[str, Any], study: Study) -> None:
    tiny["recipes"]["tiny"] |= {"epochs": 3, "batch_size": 128}
    tiny["grid"][0]["options"] = {"width": 0.0625, "classes": 4}
    losses = {}
    for precision in ("float32", "bfloat16"):
        tiny["compute"]["precision"] = precision
        losses[precision] = train(validate(Study, tiny, "t"))["curve"][-1]["train_loss"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)


def test_divergence_names_epoch_and_step(
    tiny: dict[str, Any], study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch has six steps; the ninth logits are NaN, so in epoch 2, step 3."""
    tiny["recipes"]["tiny"]["epochs"] = 3
    study = validate(Study, tiny, "tiny.yaml")
    cell, calls = study.cells[0], 0

    def create_with_nan(**arguments: Any) -> torch.nn.Module:
        model = attngrid.create_model(**arguments)

        def hook(module: torch.nn.Module, _: Any, logits: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += module.training
            return logits * float("nan") if calls == 9 and module.training else logits

        model.register_forward_hook(hook)
        return model

    monkeypatch.setattr(loop, "create_model", create_with_nan)
    with pytest.raises(DivergedError, match="the loss became nan in epoch 2, step 3"):
        run_cell(study, cell, cell.record)
    status = read_status(cell.status)
    assert status is not None
    assert (status["state"], status["epoch"], status["step"]) == ("diverged", 2, 3)
    assert not cell.record.exists()


def test_a_real_divergence_stops_the_cell(tiny: dict[str, Any], study: Study) -> None:
    tiny["recipes"]["tiny"] |= {"learning_rate": 1e6, "schedule": {"kind": "step"}, "epochs": 3}
    with pytest.raises(DivergedError, match=r"the loss became (nan|inf) in epoch 1, step \d"):
        train(validate(Study, tiny, "tiny.yaml"))


def test_strict_mode_refuses_nondeterministic_operators() -> None:
    loop.make_deterministic(0, 1, strict=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.allow_tf32
    loop.make_deterministic(0, 1, strict=False)
    assert not torch.are_deterministic_algorithms_enabled()


# Records


def test_a_record_has_configuration_versions_and_device(study: Study) -> None:
    cell = study.cells[0]
    run_cell(study, cell, cell.record)
    record = read_record(cell.record)
    assert list(json.loads(cell.record.read_text())) == ["config", "metrics", "run"]
    config, metrics, run = record.config, record.metrics, record.run
    assert config["digest"] == cell.digest
    assert config["recipe"]["learning_rate"] == 0.02
    # all options, including defaults
    assert config["options"] == Options(width=0.0625, classes=2).model_dump(mode="json")
    assert len(metrics.curve) == 1
    assert metrics.params > 0
    assert run["torch"] == torch.__version__
    assert run["deterministic"] is True
    for key in ("started", "wall_s", "images_per_s", "device_name", "attngrid", "python", "numpy"):
        assert run[key]
    assert (read_status(cell.status) or {})["state"] == "done"
    assert not list(cell.record.parent.glob(".*"))


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "record.json"
    write_atomically(file, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_running_status_without_its_process_is_failed(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_status(file, "running", epoch=1)
    assert read_status(file)["state"] == "running"  # type: ignore[index]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    status = json.loads(file.read_text()) | {"pid": gone.pid}
    file.write_text(json.dumps(status))
    assert read_status(file)["state"] == "failed"  # type: ignore[index]
    file.write_text("{}")
    assert read_status(file) is None


def test_progress_is_one_line_a_cell_and_one_a_minute_of_a_long_cell(
    study: Study, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is that of the record, which tables print."""
    monkeypatch.setenv(RUN_BEGAN, now())
    caplog.set_level("INFO")
    cell, long = study.cells[1], study.cells[0]
    run_cell(study, cell, cell.record)
    error = read_record(cell.record).metrics.top1_error
    (line,) = caplog.messages
    pattern = (
        rf"\[2/4\] ResNet-18 \+ SE, seed 0: top-1 error {error:.1f} % in \d+ s; 1 of 4 cells, "
    )
    assert re.fullmatch(pattern + r"about [\d a-z]+ left", line)
    monkeypatch.setattr(run, "REPORT_S", 0)
    report = run._reporter(replace(long, recipe=long.recipe.model_copy(update={"epochs": 9})), "A")
    report({"epoch": 3, "test_top1_error": 12.34}, 60.0)
    assert caplog.messages[-1] == "A: epoch 3/9, top-1 error 12.3 %, 2 min 00 s left"
    monkeypatch.setattr(run, "REPORT_S", 60)
    report({"epoch": 4, "test_top1_error": 12.0}, 80.0)
    assert "epoch 4/9" not in caplog.text
