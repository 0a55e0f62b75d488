"""Schedules, the options that change a recipe, and what is refused before a job starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.study.cell import Cell
from attngrid.study.recipe import Recipe, Schedule, shipped_recipes
from attngrid.study.resources import require_runnable
from attngrid.study.schema import Study
from attngrid.training.start import try_recipes
from conftest import ROOT

IMAGENET = shipped_recipes()["imagenet_100ep"]


def a_study(tiny: dict[str, Any], options: dict[str, Any], **recipe: Any) -> Study:
    tiny["grid"][0] |= {"attentions": ["none"], "seeds": [0], "options": options}
    tiny["recipes"]["tiny"] |= recipe
    return validate(Study, tiny, "my.yaml")


def on_files(tiny: dict[str, Any], recipe: Recipe, options: dict[str, Any]) -> Study:
    tiny["grid"][0]["dataset"] = "imagenet"
    fields = recipe.model_dump(mode="json", exclude_defaults=True)
    return a_study(tiny, options, **fields)


# Schedules


def test_the_cosine_equals_torchs_and_timms() -> None:
    epochs, warmup, start, end = 30, 5, 0.01, 0.001
    schedule = Schedule(kind="cosine", warmup_epochs=warmup, warmup_factor=start, final_factor=end)
    parameter = torch.zeros(1, requires_grad=True)
    by_torch = torch.optim.SGD([parameter], lr=1.0)
    cosine = SequentialLR(
        by_torch,
        [
            LinearLR(by_torch, start_factor=start, total_iters=warmup),
            CosineAnnealingLR(by_torch, epochs - warmup, eta_min=end),
        ],
        milestones=[warmup],
    )
    by_timm = torch.optim.SGD([parameter], lr=1.0)
    scheduler = CosineLRScheduler(
        by_timm,
        t_initial=epochs - warmup,
        lr_min=end,
        warmup_t=warmup,
        warmup_lr_init=start,
        warmup_prefix=True,
    )
    for epoch in range(epochs):
        scheduler.step(epoch)
        found = schedule.factor(epoch, epochs)
        assert found == pytest.approx(by_torch.param_groups[0]["lr"])
        assert found == pytest.approx(by_timm.param_groups[0]["lr"])
        by_torch.step()
        cosine.step()
    assert schedule.factor(epochs, epochs) == pytest.approx(end)
    assert schedule.factor(2.5, epochs) == pytest.approx((start + 1) / 2)


def test_a_step_schedule_warms_up_from_its_factor() -> None:
    schedule = Schedule(kind="step", milestones=(8,), warmup_epochs=4, warmup_factor=0.2)
    found = [schedule.factor(epoch, 10) for epoch in (0, 2, 4, 8)]
    assert found == pytest.approx([0.2, 0.6, 1.0, 0.1])


# Options of a cell that change its recipe


def test_epochs_and_batch_size_of_a_cell_replace_the_recipes(tiny: dict[str, Any]) -> None:
    changed = a_study(tiny, {"width": 0.5, "epochs": 7, "batch_size": 32})
    (cell,) = changed.cells
    assert (cell.recipe.epochs, cell.recipe.batch_size) == (7, 32)
    assert cell.condition == "digits, 16×16, half width, batch_size 32, epochs 7, tiny"
    # the same training as by a recipe with these values
    written = a_study(tiny, {"width": 0.5}, epochs=7, batch_size=32)
    assert written.cells[0].digest == cell.digest
    assert Cell.from_config(cell.config(), "tiny").digest == cell.digest
    assert cell.matches(cell.config())


def test_images_in_files_get_the_size_of_the_option(tiny: dict[str, Any]) -> None:
    """Every size is multiplied by input_size / 224: 256 → 73.1, 182.9."""
    for size, resized in ((64, 73), (160, 183)):
        (cell,) = on_files(tiny, IMAGENET, {"input_size": size}).cells
        crop, flip = cell.recipe.train_transforms
        assert (crop.size, flip.kind) == (size, "flip")
        assert [t.size for t in cell.recipe.test_transforms] == [resized, size]
        assert cell.input_size == cell.model_key[4] == cell.model_arguments()["input_size"] == size
        assert Cell.from_config(cell.config(), "tiny").digest == cell.digest
    # a recipe that already has this size stays as it is, and keeps its digest
    (again,) = on_files(tiny, cell.recipe, {"input_size": 160}).cells
    assert again.recipe.digested() == cell.recipe.digested()
    assert again.digest == cell.digest


def test_dogs_are_averaged_from_their_stored_size(tiny: dict[str, Any]) -> None:
    tiny["grid"][0] |= {"dataset": "dogs", "recipes": ["dogs_200ep"]}
    (cell,) = a_study(tiny, {"input_size": 112}).cells
    assert [t.size for t in cell.recipe.test_transforms] == [128, 112]
    with pytest.raises(ConfigError, match="averaged from 256×256 to 114×114 for it, so 114 must"):
        a_study(tiny, {"input_size": 100})


def test_training_images_may_be_smaller_than_test_images(tiny: dict[str, Any]) -> None:
    a3 = shipped_recipes()["imagenet_a3"]
    (cell,) = on_files(tiny, a3, {}).cells
    assert (cell.input_size, cell.recipe.train_size) == (224, 160)
    (cell,) = on_files(tiny, a3, {"input_size": 112}).cells
    assert (cell.recipe.train_size, cell.recipe.train_transforms[0].size) == (80, 80)
    assert [t.size for t in cell.recipe.test_transforms] == [118, 112]
    wrong = "train_transforms: give images of 160×160; "
    with pytest.raises(ConfigError, match=f"{wrong}train_size is 176×176; end with crop_to"):
        a_study(tiny, {}, train_size=176)
    with pytest.raises(ConfigError, match=f"{wrong}networks for imagenet need 224×224"):
        a_study(tiny, {}, train_size=None)


# What is refused


@pytest.mark.parametrize(
    ("options", "recipe", "message"),
    [
        (
            {"epochs": 3},
            {"epochs": 9, "schedule": {"kind": "step", "milestones": [5]}},
            r"grid\.0\.recipes: 'tiny': with options epochs 3: milestones: found \[5\]; needs "
            "rising epochs below 3",
        ),
        (
            {"epochs": 5},
            {"epochs": 9, "schedule": {"kind": "cosine", "warmup_epochs": 5}},
            "with options epochs 5: warmup_epochs: found 5; needs fewer than 5 epochs",
        ),
        ({}, {"optimizer": "adam"}, "unknown optimizer 'adam': did you mean adamw"),
        ({}, {"optimizer": "lamb"}, "unknown optimizer 'lamb': did you mean timm:lamb"),
        (
            {},
            {"optimizer": "adamw", "momentum": 0.8},
            "momentum: found 0.8; this is a key of other",
        ),
        ({}, {"optimizer": "adamw", "nesterov": True}, "nesterov: found True; this is a key of"),
        ({}, {"target_threshold": 0.5}, "this is a key of loss: binary_cross_entropy"),
        ({}, {"mix_probability": 0.5}, "mix_probability: found 0.5; this is a key of mixup or cut"),
        ({}, {"mixup": 0.2, "switch_probability": 0.1}, "a key of mixup and cutmix together"),
        ({}, {"optimizer_options": {"eps": "small"}}, "optimizer_options.eps: found 'small'"),
        ({}, {"ema": 1.0}, "ema: found 1.0; needs to be less than 1"),
        (
            {},
            {"train_transforms": [{"kind": "rand_augment"}, {"kind": "flip"}]},
            "rand_augment: must come after resize, crop, flip and rotation",
        ),
        (
            {},
            {"train_transforms": [{"kind": "brightness", "amount": 0.1}, {"kind": "rand_augment"}]},
            "brightness: must come last; color_jitter can come earlier",
        ),
        (
            {},
            {"test_transforms": [{"kind": "color_jitter"}]},
            "test_transforms: found color_jitter; test images of digits can have",
        ),
        (
            {},
            {"train_transforms": [{"kind": "timm_rand_augment", "config": "rand-m9-mst1"}]},
            "config: found 'rand-m9-mst1'",
        ),
    ],
)
def test_what_does_not_fit_is_one_error(
    tiny: dict[str, Any], options: dict[str, Any], recipe: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        a_study(tiny, options, **recipe)
    assert str(caught.value).startswith("my.yaml: ")
    assert "\n" not in str(caught.value)


def test_mixing_is_refused_where_the_number_of_gpus_would_change_it(tiny: dict[str, Any]) -> None:
    tiny["compute"] = {"device": "cuda", "gpus": 2, "sync_bn": True}
    with pytest.raises(ConfigError, match=r"'tiny': mixup, cutmix: found compute\.sync_bn true"):
        a_study(tiny, {}, mixup=0.2)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"optimizer": "timm:lambb"},
            "recipe 'tiny': optimizer: timm:lambb: unknown name 'lambb': did you mean lamb",
        ),
        ({"optimizer_options": {"damping": 0.1}}, "optimizer: sgd: .*argument 'damping'"),
        ({"optimizer": "adamw", "optimizer_options": {"lr": 0.1}}, "multiple values .*'lr'"),
        ({"optimizer": "timm:lamb", "optimizer_options": {"momentum": 0.9}}, "'momentum'"),
        ({"optimizer": "timm:lamb", "momentum": 0.8}, "timm:lamb: momentum: found 0.8; it has non"),
        ({"optimizer": "timm:adahessian"}, "timm:adahessian: fails: "),
    ],
)
def test_an_optimizer_is_tried_before_the_first_job(
    tiny: dict[str, Any], recipe: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        try_recipes(a_study(tiny, {}, **recipe).cells)


def test_an_optimizer_that_a_checkpoint_cannot_restore_is_refused(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(torch.optim.SGD):
        """Its steps depend on a number that its state does not have, as those of timm's kron."""

        steps = 0

        def step(self, closure: Any = None) -> Any:
            self.steps += 1
            self.param_groups[0]["lr"] = 0.1 * self.steps
            return super().step(closure)

    monkeypatch.setattr("timm.optim.get_optimizer_class", lambda name: Counting)
    with pytest.raises(ConfigError, match="timm:lamb: does not continue from a checkpoint with"):
        try_recipes(a_study(tiny, {}, optimizer="timm:lamb").cells)


def test_optimizers_with_their_options_pass(tiny: dict[str, Any]) -> None:
    for recipe in (
        {"optimizer": "adamw", "optimizer_options": {"betas": [0.9, "1e-1"], "eps": "1e-6"}},
        {"optimizer": "timm:lion", "optimizer_options": {}},
    ):
        study = a_study(tiny, {}, **recipe)
        try_recipes(study.cells)
        assert validate(Study, json.loads(study.resolved()), "my.yaml") == study


def test_a_recipe_of_timm_needs_timm(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    study = a_study(tiny, {}, optimizer="timm:lamb")
    require_runnable(study)
    monkeypatch.setattr("attngrid.study.recipe.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'not installed: pip install "attngrid\[timm\]"'):
        require_runnable(study)


# Identity and the shipped recipe


def test_every_committed_record_keeps_its_digest() -> None:
    files = sorted(Path(ROOT / "results").glob("*/*/*.json"))
    configs = [json.loads(file.read_text()).get("config") for file in files]
    records = [config for config in configs if config and ".py" not in str(config)]
    assert len(records) > 10
    for config in records:
        assert Cell.from_config(config, "s").digest == config["digest"]


def test_imagenet_a3_is_table_2_of_its_paper() -> None:
    """Procedure A3 of arXiv 2110.00476. Inputs: train 160, test 224, test crop ratio 0.95."""
    a3 = shipped_recipes()["imagenet_a3"]
    crop, flip, augment = a3.train_transforms
    resize, centre = a3.test_transforms
    assert (a3.epochs, a3.batch_size, a3.optimizer) == (100, 2048, "timm:lamb")
    assert (a3.learning_rate, a3.weight_decay, a3.weight_decay_1d) == (8e-3, 0.02, False)
    assert (a3.schedule.kind, a3.schedule.warmup_epochs) == ("cosine", 5)
    assert (a3.label_smoothing, a3.clip_grad_norm, a3.ema) == (0, None, None)
    assert (a3.mixup, a3.cutmix, a3.loss) == (0.1, 1.0, "binary_cross_entropy")
    # timm's arguments: bce_target_thresh 0.2, warmup_lr 1e-4, min_lr 1e-6
    assert a3.target_threshold == 0.2
    assert a3.learning_rate_at(0) == pytest.approx(1e-4)
    assert a3.learning_rate_at(100) == pytest.approx(1e-6)
    assert (crop.size, flip.kind, centre.size) == (160, "flip", 224)
    assert augment.config == "rand-m6-mstd0.5-inc1"
    assert resize.size == round(224 / 0.95)
    assert "78.1 %" in a3.expected
