"""Tuning: equal budgets, validation images only, and the lowest validation error is chosen."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import attngrid
from attngrid.analysis.frames import collect, unfinished, write_results
from attngrid.cli.main import main
from attngrid.core.errors import ConfigError, DataError, DivergedTrialsError, RecordError
from attngrid.core.validation import validate
from attngrid.data.loading import load, validation_part
from attngrid.data.registry import DATASETS
from attngrid.records.record import read_record, read_trial, write_record
from attngrid.records.status import read_status
from attngrid.records.tuning import (
    choose_hyperparameters,
    read_tuning_result,
    with_best_hyperparameters,
)
from attngrid.render.tables import build_table
from attngrid.study.cell import Cell
from attngrid.study.schema import Study, load_study
from attngrid.study.tuning import Tuning
from attngrid.training import loop, run
from attngrid.training.checkpoint import Checkpoints
from attngrid.training.run import run_cell
from conftest import jobs
from made_up import fake_record

ROOT = Path(__file__).resolve().parents[2]
TUNING: dict[str, Any] = {
    "learning_rates": [0.1, 0.02],
    "weight_decays": [5e-4, 0.0, 1e-3],
    "validation_images": 300,
}
GRID = [(0.02, 0.0), (0.02, 5e-4), (0.02, 1e-3), (0.1, 0.0), (0.1, 5e-4), (0.1, 1e-3)]


@pytest.fixture
def tuned(tiny: dict[str, Any]) -> dict[str, Any]:
    return tiny | {"tuning": dict(TUNING)}


@pytest.fixture
def study(tuned: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    Path("tiny.json").write_text(json.dumps(tuned))
    return validate(Study, tuned, "tiny.yaml")


def cell(study: Study, attention: str = "none", seed: int = 0) -> Cell:
    (found,) = (c for c in study.cells if c.tuning and (c.attention, c.seed) == (attention, seed))
    return found


def setting(cell: Cell) -> tuple[float, float]:
    return cell.recipe.learning_rate, cell.recipe.weight_decay


def choose(study: Study, cell: Cell) -> None:
    assert cell.choice is not None
    choose_hyperparameters(study, cell.choice.stem)


def diverge(trial: Cell) -> None:
    write_record(trial.record, trial, None, {"diverged": "diverged: the loss became nan"})


def fake_trials(cell: Cell, *errors: float | None) -> None:
    """Trials with these validation errors, in the order of ``GRID``; None diverged."""
    for trial, error in zip(cell.trials, errors, strict=True):
        fake_record(trial, error) if error is not None else diverge(trial)


# Budgets and identities


def test_every_module_and_the_baseline_get_the_same_trials(study: Study) -> None:
    for tuned_cell in filter(lambda cell: cell.tuning, study.cells):
        assert [setting(trial) for trial in tuned_cell.trials] == GRID
        for trial in tuned_cell.trials:
            assert (trial.seed, trial.validation, trial.tuning) == (0, 300, None)
            assert trial.options == tuned_cell.options
    budget = Counter(trial.trained_attention for trial in study.trials.values())
    assert budget == {"none": 6, "se": 6}  # cam shares the trials of se
    assert len({cell.record for cell in study.trials.values()}) == 12


def test_the_shipped_study_gives_every_module_the_same_budget_and_keeps_untuned_cells() -> None:
    study = load_study(ROOT / "config/tuning.yaml")
    budget = Counter(trial.attention for trial in study.trials.values())
    assert budget == dict.fromkeys(("none", "se", "cbam", "csm"), 6)
    assert {trial.validation for trial in study.trials.values()} == {5000}
    untuned = {cell.id for cell in study.cells if not cell.tuning}
    csm = load_study(ROOT / "config/cifar100.yaml")
    assert untuned <= set(csm.trainings)
    assert len(study.trainings) == 2 * len(untuned) == 24


def test_tuning_changes_no_untuned_cell(tiny: dict[str, Any], study: Study) -> None:
    before = validate(Study, tiny, "tiny.yaml")
    after = [cell for cell in study.cells if not cell.tuning]
    assert [cell.digest for cell in after] == [cell.digest for cell in before.cells]
    assert [cell.config() for cell in after] == [cell.config() for cell in before.cells]
    assert len(study.trainings) == 2 * len(before.trainings)


@pytest.mark.parametrize(
    ("change", "new_trials"),
    [
        ({"learning_rates": [0.1, 0.02, 0.5]}, 3),  # the earlier ones are kept
        ({"weight_decays": [5e-4, 0.0, 2e-3]}, 2),
        ({"validation_images": 200}, 6),
        ({"seed": 1}, 6),
    ],
)
def test_a_change_of_the_tuning_section_makes_another_tuned_cell(
    tuned: dict[str, Any], study: Study, change: dict[str, Any], new_trials: int
) -> None:
    other = validate(Study, tuned | {"tuning": TUNING | change}, "t")
    before, after = cell(study), cell(other)
    assert before.id != after.id
    assert before.choice != after.choice
    assert not after.matches(before.config())
    assert len({t.id for t in after.trials} - {t.id for t in before.trials}) == new_trials
    assert [c.id for c in study.cells if not c.tuning] == [
        c.id for c in other.cells if not c.tuning
    ]


def test_the_order_of_values_and_the_recipes_own_setting_change_no_tuned_cell(
    tuned: dict[str, Any], study: Study
) -> None:
    tuned["tuning"] |= {"learning_rates": [0.02, 0.1], "seed": 0, "recipes": ["tiny"]}
    tuned["recipes"]["tiny"] |= {"learning_rate": 7.0, "weight_decay": 0.25}
    other = validate(Study, tuned, "t")
    assert cell(other).id == cell(study).id
    assert list(other.trials) == list(study.trials)
    tuned["recipes"]["tiny"]["epochs"] = 2
    assert cell(validate(Study, tuned, "t")).id != cell(study).id


def test_only_the_named_recipes_are_tuned(tuned: dict[str, Any]) -> None:
    tuned["recipes"]["other"] = tuned["recipes"]["tiny"] | {"epochs": 2}
    tuned["grid"][0]["recipes"] = ["tiny", "other"]
    tuned["tuning"]["recipes"] = ["other"]
    study = validate(Study, tuned, "t")
    assert {c.recipe_name for c in study.cells} == {"tiny", "other", "other+tuned"}
    assert len(study.trials) == 12


def test_all_seeds_and_aliases_share_one_tuning_result(study: Study) -> None:
    assert cell(study, "se", 0).choice == cell(study, "se", 1).choice == cell(study, "cam").choice
    assert cell(study, "cam").record == cell(study, "se").record
    assert cell(study, "se", 0).record != cell(study, "se", 1).record
    assert len(study.choices) == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"learning_rates": [0.1]}, ["1 learning_rates × 3 weight_decays = 3", "6 or more"]),
        ({"learning_rates": [0.1, 0.1]}, ["tuning.learning_rates", "[0.1, 0.1]", "each once"]),
        ({"learning_rates": [0.1, 0]}, ["tuning.learning_rates.1", "found 0", "greater than 0"]),
        ({"weight_decays": [-1.0]}, ["tuning.weight_decays.0", "found -1.0"]),
        ({"weight_decays": []}, ["tuning.weight_decays", "at least 1 item"]),
        ({"weight_decays": 5e-4}, ["tuning.weight_decays", "needs a list"]),
        ({"validation_images": 0}, ["tuning.validation_images", "found 0"]),
        ({"validation_images": 305}, ["tuning.validation_images", "305", "multiple of 10"]),
        ({"validation_images": 1400}, ["1400", "1390 at most", "140 training images of a class"]),
        ({"recipes": ["tinny"]}, ["tuning.recipes", "'tinny'", "did you mean tiny"]),
        ({"recipes": []}, ["tuning.recipes", "at least 1 item"]),
        ({"attentions": ["cbam"]}, ["tuning.attentions", "'cbam'", "known are none, se"]),
        ({"seed": -1}, ["tuning.seed", "found -1"]),
        ({"trials": 6}, ["tuning: unknown key 'trials'", "learning_rates"]),
    ],
)
def test_a_mistake_in_tuning_is_named(
    tuned: dict[str, Any], change: dict[str, Any], expected: list[str]
) -> None:
    tuned["tuning"] |= change
    with pytest.raises(ConfigError) as caught:
        validate(Study, tuned, "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: tuning")
    assert "\n" not in message
    for words in expected:
        assert words in message


def test_validation_images_are_limited_by_the_subset_of_classes(
    tuned: dict[str, Any],
) -> None:
    tuned["grid"][0]["options"] = {"classes": 4}
    with pytest.raises(ConfigError, match="can be 556 at most"):
        validate(Study, tuned | {"tuning": TUNING | {"validation_images": 560}}, "t")
    validate(Study, tuned | {"tuning": TUNING | {"validation_images": 556}}, "t")


# The validation part


def test_the_validation_part_is_balanced_and_disjoint_from_training_and_test() -> None:
    whole, test = load("digits", Path("data"), download=False, classes=None)
    rest, part = load("digits", Path("data"), download=False, classes=None, validation=300)
    assert torch.bincount(part.labels_N).tolist() == [30] * 10
    assert len(rest) + len(part) == len(whole)

    def images(split: Any) -> Counter[bytes]:
        return Counter(pixels.numpy().tobytes() for pixels in split.pixels_NCHW)

    assert images(rest) + images(part) == images(whole)
    # no two digits are equal, so the splits share no image
    assert not images(part) & images(rest)
    assert not images(part) & images(test)


def test_the_validation_part_is_fixed() -> None:
    """By hand: the middle images of equal sections of a class."""
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 0, 1, 0, 2, 2, 2, 2])
    zeros, ones, twos = [0, 2, 3, 5, 6, 8], [1, 4, 7], [9, 10, 11, 12]
    one_each = sorted([zeros[3], ones[1], twos[2]])
    assert validation_part(labels, 3).nonzero()[:, 0].tolist() == one_each
    two_each = sorted([zeros[1], zeros[4], ones[0], ones[2], twos[1], twos[3]])
    assert validation_part(labels, 6).nonzero()[:, 0].tolist() == two_each
    for wrong in (4, 9):
        with pytest.raises(DataError, match=r"validation_images: found .* multiple of the 3"):
            validation_part(labels, wrong)


def test_the_validation_part_of_cifar100_would_be_fifty_of_each_class() -> None:
    labels = torch.randperm(50_000, generator=torch.Generator().manual_seed(0)) % 100
    part = validation_part(labels, 5000)
    assert part.sum() == 5000
    assert torch.bincount(labels[part]).tolist() == [50] * 100


def test_the_registered_smallest_class_of_digits_is_correct() -> None:
    whole, _ = load("digits", Path("data"), download=False, classes=None)
    assert DATASETS["digits"].smallest_class == int(torch.bincount(whole.labels_N).min())


def test_no_test_image_reaches_a_trial(small: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test split of noise changes the errors of an untuned cell, but not those of a trial."""
    trial, untuned = cell(small).trials[0], small.cells[0]

    def metrics(cell: Cell) -> dict[str, Any]:
        return loop.train(cell, torch.device("cpu"), Path("data"))[0]

    before = metrics(trial), metrics(untuned)
    assert (before[0]["train_images"], before[0]["test_images"]) == (229, 60)
    assert (before[1]["train_images"], before[1]["test_images"]) == (289, 71)
    from attngrid.data import digits as module
    from attngrid.data.images import Images

    digits = module.digits

    def without_test_images(folder: Path) -> Any:
        train, test = digits(folder)
        return train, Images(255 - test.pixels_NCHW, test.labels_N.flip(0))

    monkeypatch.setattr(module, "digits", without_test_images)
    assert metrics(trial) == before[0]
    assert metrics(untuned)["curve"] != before[1]["curve"]


# The choice


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((50.0, 40.0, 30.0, 20.0, 10.0, 60.0), (0.1, 5e-4)),
        ((50.0, 30.0, 30.0, 30.0, 40.0, 40.0), (0.02, 5e-4)),  # the smaller of each
        ((None, 90.0, None, None, None, 90.5), (0.02, 5e-4)),  # a diverged trial is never chosen
        ((None, 100.0, None, None, None, None), (0.02, 5e-4)),
        ((1.0, 1.0, 1.0, 1.0, 1.0, 0.0), (0.1, 1e-3)),
    ],
)
def test_the_lowest_validation_error_is_chosen(
    study: Study, errors: tuple[float | None, ...], expected: tuple[float, float]
) -> None:
    tuned_cell = cell(study)
    fake_trials(tuned_cell, *errors)
    choose(study, tuned_cell)
    for seed in (0, 1):
        trained = with_best_hyperparameters(cell(study, seed=seed))
        assert setting(trained) == expected
        # the choice does not change the cell's id
        assert (trained.id, trained.record) == (cell(study, seed=seed).id, trained.record)
        assert cell(study, seed=seed).matches(trained.config())
    assert with_best_hyperparameters(study.cells[0]) is study.cells[0]


def test_a_model_has_diverged_if_all_its_trials_diverged(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_trials(cell(study), *[None] * 6)
    with pytest.raises(DivergedTrialsError, match="all 6 trials diverged; add smaller"):
        choose(study, cell(study))
    choice = cell(study).choice
    assert choice is not None
    assert main(["tune", "tiny.json", choice.stem]) == 1
    assert "ResNet-18, seed 0, tiny+tuned: all 6 trials diverged" in capsys.readouterr().err
    assert not choice.exists()
    frame = collect(study).cells
    assert (frame.loc[frame["recipe"] == "tiny+tuned", "state"].tolist()) == [
        "diverged" if attention == "none" else "not_run"
        for _ in range(2)
        for attention in ("none", "se", "cam")
    ]


def test_a_missing_or_edited_trial_is_named(study: Study) -> None:
    tuned_cell = cell(study)
    fake_trials(tuned_cell, *[50.0] * 6)
    file = tuned_cell.trials[2].record
    file.write_text(file.read_text().replace('"validation": 300', '"validation": 200'))
    with pytest.raises(RecordError, match=r"trials/.*config: is not that of this cell"):
        choose(study, tuned_cell)
    (line,) = unfinished(collect(study))
    assert f"{tuned_cell.trials[2].id}: refused" in line
    diverge(tuned_cell.trials[2])
    file.write_text(file.read_text().replace('"diverged":', '"message":'))
    with pytest.raises(RecordError, match=r"trials/.*: .*either metrics or run.diverged"):
        choose(study, tuned_cell)
    file.unlink()
    with pytest.raises(RecordError, match=r"trials/.*cannot be read"):
        choose(study, tuned_cell)


def test_an_edited_tuning_result_is_refused(tuned: dict[str, Any], study: Study) -> None:
    tuned_cell, other = cell(study), cell(study, "se")
    with pytest.raises(RecordError, match=r"tuning/.*does not exist; `attngrid tune` writes it"):
        run_cell(study, tuned_cell, tuned_cell.record)
    for one in (tuned_cell, other):
        fake_trials(one, 50.0, 40.0, 30.0, 20.0, 10.0, 60.0)
        choose(study, one)
    assert tuned_cell.choice is not None
    assert other.choice is not None
    good = tuned_cell.choice.read_text()
    edited = json.loads(good)
    edited["chosen"] = {"learning_rate": 0.02, "weight_decay": 0.0}
    for content, message in {
        json.dumps(edited): "chosen: is not the setting with the lowest",
        other.choice.read_text(): "trials: are not those of this cell",
        good[:40]: "cannot be read",
    }.items():
        tuned_cell.choice.write_text(content)
        with pytest.raises(RecordError, match=message):
            read_tuning_result(tuned_cell)
        rows = collect(study).cells.set_index("id")
        assert rows.loc[tuned_cell.id, "state"] == "refused"
        assert rows.loc[other.id, "state"].tolist() == ["not_run"] * 2  # se and cam


def test_an_edited_tuned_record_is_refused(study: Study) -> None:
    tuned_cell = cell(study)
    fake_record(tuned_cell.with_setting(0.1, 5e-4), 30.0)
    good = tuned_cell.record.read_text()
    assert read_record(tuned_cell.record, tuned_cell).config["recipe"]["learning_rate"] == 0.1
    for old, new in {
        '"learning_rate": 0.1,\n   "momentum"': '"learning_rate": 0.3,\n   "momentum"',
        '"validation_images": 300': '"validation_images": 310',
    }.items():
        assert good.count(old) == 1
        tuned_cell.record.write_text(good.replace(old, new))
        with pytest.raises(RecordError, match="config: is not that of this cell"):
            read_record(tuned_cell.record, tuned_cell)


def test_a_tuned_record_of_another_setting_than_the_choice_is_refused(study: Study) -> None:
    """The id does not depend on the choice, so the record itself is checked."""
    tuned_cell = cell(study)
    fake_record(tuned_cell.with_setting(0.1, 5e-4), 30.0)
    state = collect(study).cells.set_index("id")["state"]
    assert state[tuned_cell.id] == "measured"
    for errors, expected in {
        (50.0, 50.0, 50.0, 50.0, 10.0, 50.0): "measured",
        (50.0, 50.0, 50.0, 50.0, 60.0, 50.0): "refused",
    }.items():
        fake_trials(tuned_cell, *errors)
        choose(study, tuned_cell)
        results = collect(study)
        assert results.cells.set_index("id")["state"][tuned_cell.id] == expected
    (line,) = unfinished(results)
    assert f"{tuned_cell.record}: config.recipe: differs from {tuned_cell.choice}" in line


# Training


@pytest.fixture
def small(tuned: dict[str, Any], study: Study) -> Study:
    """The study with two classes only, for training."""
    tuned["grid"][0]["options"] |= {"classes": 2}
    tuned["tuning"]["validation_images"] = 60
    tuned["recipes"]["tiny"]["batch_size"] = 128  # a trial has 229 training images
    return validate(Study, tuned, "t")


def test_a_trial_that_diverges_leaves_a_record_and_raises_nothing(
    tuned: dict[str, Any], small: Study, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tuned["recipes"]["tiny"] |= {"schedule": {"kind": "step"}, "batch_size": 128}
    tuned["tuning"]["learning_rates"] = [0.02, 1e6]
    study = validate(Study, tuned, "t")
    trial = cell(study).trials[3]
    assert trial.recipe.learning_rate == 1e6
    run_cell(study, trial, trial.record)
    record = read_trial(trial.record, trial)
    assert record.metrics is None
    assert "in epoch 1, step" in record.run["diverged"]
    assert (read_status(trial.status) or {})["state"] == "done"
    assert "learning rate 1e+06, weight decay 0: diverged: " in caplog.text
    with pytest.raises(RecordError, match="metrics: "):
        read_record(trial.record)  # a trial without metrics is not the record of a cell


def test_a_tuned_cell_equals_an_untuned_one_with_the_chosen_hyperparameters(small: Study) -> None:
    """It trains on all training images, and its metrics are bit-identical."""
    study = small
    tuned_cell, untuned = cell(study), study.cells[0]
    assert setting(untuned) == GRID[0]
    for trial in tuned_cell.trials[1:]:
        fake_record(trial, 99.9)
    trial = tuned_cell.trials[0]
    for one in (trial, untuned):
        run_cell(study, one, one.record)
    choose(study, tuned_cell)
    run_cell(study, tuned_cell, tuned_cell.record)
    record = read_record(tuned_cell.record, tuned_cell)
    assert record.metrics == read_record(untuned.record, untuned).metrics
    assert record.metrics.train_images == 289
    assert record.config["recipe"]["name"] == "tiny+tuned"
    assert (tuned_cell.weights.is_file(), trial.weights.exists()) == (True, False)
    assert not list(Path("results/tiny/checkpoints").glob("*"))
    assert len(list(Path("results/tiny/records").iterdir())) == 2


def test_a_tuned_cell_does_not_resume_from_the_checkpoint_of_another_choice(
    small: Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = small
    tuned_cell, digests = cell(study), []

    class Recorded(Checkpoints):
        def __init__(self, file: Path, digest: str, *others: Any) -> None:
            digests.append(digest)
            super().__init__(file, digest, *others)

    monkeypatch.setattr(run, "Checkpoints", Recorded)
    fake_trials(tuned_cell, 40.0, 50.0, 50.0, 50.0, 50.0, 50.0)
    choose(study, tuned_cell)
    run_cell(study, tuned_cell, tuned_cell.record)
    Checkpoints(tuned_cell.checkpoint, digests[0], 1.0).save({}, {})
    fake_trials(tuned_cell, 50.0, 40.0, 50.0, 50.0, 50.0, 50.0)
    choose(study, tuned_cell)
    run_cell(study, tuned_cell, tuned_cell.record)
    assert "not used: cell: found" in caplog.text
    assert read_record(tuned_cell.record, tuned_cell).run["resumed"] == 0


# Frames and tables


def test_trials_are_a_tidy_frame(study: Study) -> None:
    fake_trials(cell(study), 50.0, 40.0, None, 20.0, 10.0, 60.0)
    fake_trials(cell(study, "se"), *[30.0] * 6)
    cell(study, "se").trials[5].record.unlink()
    choose(study, cell(study))
    results = collect(study)
    frame = results.trials
    assert frame is not None
    assert len(frame) == 18  # cam has the rows of se
    none = frame[frame["attention"] == "none"]
    assert list(zip(none["learning_rate"], none["weight_decay"], strict=True)) == GRID
    assert none["state"].tolist() == ["measured"] * 2 + ["diverged"] + ["measured"] * 3
    assert none["chosen"].tolist() == [False, False, False, False, True, False]
    assert none["validation_top1_error"].isna().tolist() == [False, False, True] + [False] * 3
    se = frame[frame["attention"] == "se"]
    assert se["chosen"].isna().all()
    assert se["state"].tolist() == ["measured"] * 5 + ["not_run"]
    # a diverged trial is finished
    assert unfinished(results) == []
    write_results(study, results)
    read = attngrid.load_results("tiny").trials
    assert read is not None
    assert list(read.columns) == list(frame.columns)
    assert set(read["condition"]) <= set(results.summary["condition"])
    text = (ROOT / "docs/results.md").read_text("utf-8")
    assert {column for column in frame.columns if f"`{column}`" not in text} == set()


def test_tuned_and_untuned_cells_are_columns_or_rows(study: Study) -> None:
    for one in study.cells:
        fake_record(one.with_setting(0.1, 5e-4) if one.tuning else one, 30.0 - one.seed)
        if one.attention == "none" and one.tuning:
            one.record.unlink()
    summary = collect(study).summary
    beside = build_table(study, summary, ROOT / "workflow/tables/tuned.yaml")
    assert list(dict(beside.groups)) == [
        "Ours: tiny",
        "Ours: tiny+tuned",
    ]
    rows = {row.label: [value.text for value in row.values] for row in beside.rows}
    untuned = ["29.50 ± 0.71", "14.75 ± 0.35", "0.020", "0.00", "2"]
    chosen = ["29.50 ± 0.71", "14.75 ± 0.35", "0.100", "5.00", "2"]
    assert rows["ResNet-18 + SE"] == rows["ResNet-18 + CAM (= SE)"] == untuned + chosen
    assert rows["ResNet-18"] == untuned + ["--"] * 5
    assert beside.frame["recipe_learning_rate"].tolist()[2:] == [0.02, 0.1, 0.02, 0.1]
    below = build_table(study, summary, ROOT / "workflow/tables/grid.yaml")
    lines = [(row.label, row.values[0].text) for row in below.rows]
    assert lines[:3] == [
        ("ResNet-18", "tiny"),
        ("ResNet-18", "tiny+tuned"),
        ("ResNet-18 + SE", "tiny"),
    ]


# The DAG


@pytest.mark.slow
def test_the_dag_has_the_jobs_whose_records_are_missing(
    clone: Path, snakemake: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    arguments = ("-n", "--configfile", "config/tuning.yaml")
    study = load_study(clone / "config/tuning.yaml")

    def found() -> list[int]:
        done = snakemake(clone, *arguments)
        assert done.returncode == 0, done.stderr
        counted = jobs(done.stdout + done.stderr)
        return [counted.get(rule, 0) for rule in ("trial", "tune", "train", "prepare")]

    def write(file: Path) -> None:
        (clone / file).parent.mkdir(parents=True, exist_ok=True)
        (clone / file).write_text("{}")

    assert found() == [24, 4, 24, 1]
    first, second, third, _ = study.choices.values()
    # a finished trial does not run again, nor does one whose model has its tuning result
    write(third.trials[0].record)
    assert first.choice is not None
    write(first.choice)
    # nor does tuning run for cells that have their records
    for cell in study.trainings.values():
        if cell.choice in (first.choice, second.choice):
            write(cell.record)
    assert found() == [11, 2, 18, 1]
    for cell in study.trainings.values():
        write(cell.record)
    assert found() == [0, 0, 0, 0]


@pytest.mark.slow
def test_a_study_is_tuned_from_its_trials_to_its_tables(
    clone: Path,
    snakemake: Callable[..., subprocess.CompletedProcess[str]],
    tuned: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This process trains most cells; Snakemake starts one trial, which diverges, and a cell."""
    options = {"width": 0.0625, "classes": 2}
    tuned["grid"][0] |= {"attentions": ["none", "se"], "seeds": [0], "options": options}
    tuned["recipes"]["tiny"] |= {"schedule": {"kind": "step"}, "batch_size": 128}
    tuned["tuning"] |= {"learning_rates": [0.02, 1e6], "validation_images": 60}
    tuned |= {"tables": ["tuned"], "figures": [], "keep": {"weights": "none"}}
    (clone / "tiny.yaml").write_text(yaml.safe_dump(tuned))
    monkeypatch.chdir(clone)
    study = load_study("tiny.yaml")
    none, se = cell(study), cell(study, "se")
    for one in [*study.trials.values(), *(c for c in study.cells if not c.tuning)]:
        if one != none.trials[3]:
            run_cell(study, one, one.record)
    assert se.choice is not None
    assert main(["tune", "tiny.yaml", se.choice.stem]) == 0
    assert main(["train", "tiny.yaml", se.id]) == 0

    arguments = ("--cores", "1", "--configfile", "tiny.yaml")
    table = Path("tables/tiny.tuned.md")
    assert snakemake(clone, "current", *arguments).returncode == 0
    dashes = re.findall(r"^\| (.*?) \|.*(?: -- \|){4}$", table.read_text("utf-8"), re.MULTILINE)
    assert dashes == ["ResNet-18"]
    done = snakemake(clone, *arguments)
    assert done.returncode == 0, done.stderr
    assert len(list(Path("results/tiny/trials").iterdir())) == 12
    assert len(list(Path("results/tiny/records").iterdir())) == 4
    results = attngrid.load_results("tiny")
    trials = results.trials
    assert trials is not None
    assert trials["state"].tolist() == (["measured"] * 3 + ["diverged"] * 3) * 2
    chosen = trials[trials["chosen"].astype(bool)].set_index("attention")
    cells = results.cells[results.cells["recipe"] == "tiny+tuned"].set_index("attention")
    for name in ("none", "se"):
        least = trials.loc[trials["attention"] == name, "validation_top1_error"].min()
        assert chosen.loc[name, "validation_top1_error"] == least
        for key in ("learning_rate", "weight_decay"):
            assert cells.loc[name, key] == chosen.loc[name, key]
    assert cells["train_images"].tolist() == [289, 289]
    assert " -- " not in table.read_text("utf-8")


def test_the_order_of_tuning_values_changes_no_digest() -> None:
    one = Tuning(learning_rates=(0.1, 0.2), weight_decays=(0.0, 1.0, 2.0), validation_images=10)
    two = Tuning(learning_rates=(0.2, 0.1), weight_decays=(2.0, 1.0, 0.0), validation_images=10)
    assert one.digested() == two.digested()
    assert one.settings == two.settings
