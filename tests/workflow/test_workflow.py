"""The workflow as a user runs it: Snakemake in a copy of the repository."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from attngrid.analysis.frames import load_results
from attngrid.core.validation import validate
from attngrid.measure.maps_file import pictured, read_maps
from attngrid.records.record import read_record
from attngrid.records.status import read_attempts
from attngrid.study.schema import Study, load_study
from conftest import ROOT, environment, jobs

Snakemake = Callable[..., subprocess.CompletedProcess[str]]


def write(clone: Path, content: dict[str, Any]) -> str:
    (clone / "tiny.yaml").write_text(yaml.safe_dump(content))
    return "tiny.yaml"


@pytest.mark.parametrize(
    ("config", "trainings"),
    [
        ("config", 18),
        ("cifar10", 39),
        ("cifar100", 224),
        ("dogs", 63),
        ("imagenet", 95),
        ("placement", 114),
        ("tuning", 24),
    ],
)
def test_dry_run_of_the_shipped_studies(
    clone: Path, snakemake: Snakemake, config: str, trainings: int
) -> None:
    done = snakemake(clone, "-n", "--configfile", f"config/{config}.yaml")
    assert done.returncode == 0, done.stderr
    assert jobs(done.stdout + done.stderr)["train"] == trainings
    assert trainings == len(load_study(clone / f"config/{config}.yaml").trainings)


def test_trials_come_before_what_they_choose_and_a_first_block_before_a_second() -> None:
    for name in ("tuning", "cifar100"):
        study = load_study(ROOT / f"config/{name}.yaml")
        ids = [*study.trainings, *study.trials]
        priorities = {id: study.priority(id) for id in ids}
        assert len(set(priorities.values())) == len(ids)
        assert 0 < min(priorities.values()) < max(priorities.values()) < 1
        in_order = [priorities[id] for id in study.trainings]
        assert in_order == sorted(in_order, reverse=True)
        for cell in study.choices.values():
            assert min(priorities[trial.id] for trial in cell.trials) > priorities[cell.id]


def test_the_demo_is_the_default(clone: Path, snakemake: Snakemake) -> None:
    done = snakemake(clone, "-n")
    assert jobs(done.stdout + done.stderr)["train"] == 18
    assert not (clone / "results/demo/records").exists()


def test_a_configfile_means_that_study_alone(clone: Path, snakemake: Snakemake) -> None:
    """The demo has compute, tables and figures of its own; none may leak."""
    small = {
        "study": "alone",
        "grid": [
            {
                "dataset": "cifar100",
                "backbones": ["resnet18"],
                "attentions": ["none"],
                "recipes": ["cifar_200ep"],
                "seeds": [0],
            }
        ],
    }
    done = snakemake(clone, "-n", "--configfile", write(clone, small))
    assert done.returncode == 0, done.stderr
    (snapshot,) = (clone / "results/alone/configs").iterdir()
    resolved = load_study(snapshot)
    assert resolved == validate(Study, small, "tiny.yaml")
    assert (resolved.compute.device, resolved.tables, resolved.title) == ("auto", (), "")
    assert not (clone / "results/demo").exists()


def test_targets_by_name(clone: Path, snakemake: Snakemake) -> None:
    expected = {
        "complexity": set(),
        "tables": {"train", "set_tables"},
        "figures": {"train", "draw_figures"},
    }
    for target, rules in expected.items():
        done = snakemake(clone, "-n", target)
        assert done.returncode == 0, done.stderr
        found = jobs(done.stdout + done.stderr)
        assert rules <= set(found)
        assert ("train" in found) == ("train" in rules)


def test_cost_is_measured_where_it_is_asked_for_and_then_always(
    clone: Path, snakemake: Snakemake
) -> None:
    (clone / "results/cost.csv").write_text("")  # of some machine
    done = snakemake(clone, "-n", "cost")
    assert jobs(done.stdout + done.stderr) == {"cost": 1}
    done = snakemake(clone, "-n")
    assert "cost" not in jobs(done.stdout + done.stderr)


def test_bad_configuration_is_one_clear_error_before_any_job(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any]
) -> None:
    tiny["grid"][0]["attentions"] = ["cbma"]
    done = snakemake(clone, "--cores", "1", "--configfile", write(clone, tiny))
    assert done.returncode != 0
    assert (
        "tiny.yaml: grid.0.attentions.0: unknown attention 'cbma': did you mean cbam" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (clone / "results/tiny").exists()
    done = snakemake(clone, "-n", "--config", "figures=modules")
    assert (
        "config/config.yaml with --config figures: figures: found 'modules'; needs a list, "
        "such as [modules]" in done.stdout + done.stderr
    )


def test_a_study_that_cannot_be_trained_stops_before_its_first_job(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any]
) -> None:
    done = snakemake(clone, "--cores", "1", "--configfile", "config/imagenet.yaml")
    assert done.returncode != 0
    assert "there is no data/imagenet/train; put it there" in done.stderr
    assert not (clone / "logs").exists()
    tiny["grid"][0] |= {"dataset": "cifar100"}
    done = snakemake(clone, "--cores", "1", "--configfile", write(clone, tiny))
    assert "there is no data/cifar-100-python/train; set `data: {download: true}`" in done.stderr
    assert not (clone / "logs").exists()


def test_maps_without_captum_stop_before_the_first_job(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (clone / "hidden").mkdir()
    (clone / "hidden/sitecustomize.py").write_text("import sys; sys.modules['captum'] = None\n")
    path = os.pathsep.join([str(clone / "hidden"), *filter(None, [os.getenv("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    arguments = ("--cores", "1", "--configfile", write(clone, tiny))
    done = snakemake(clone, *arguments)
    assert done.returncode != 0
    assert 'pip install "attngrid[maps]"' in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone / "logs").exists()
    assert snakemake(clone, "current", *arguments).returncode == 0
    assert (clone / "figures/tiny.maps.pdf").is_file()


@pytest.mark.parametrize("config", ["imagenet", "cifar100", "dogs"])
def test_current_renders_what_is_committed(clone: Path, snakemake: Snakemake, config: str) -> None:
    """Without a record too; the tables in the repository are the ones it makes."""
    committed = {file: file.read_bytes() for file in (clone / "tables").glob(f"{config}.*")}
    assert committed
    done = snakemake(clone, "current", "--cores", "1", "--configfile", f"config/{config}.yaml")
    assert done.returncode == 0, done.stderr
    study = load_study(clone / f"config/{config}.yaml")
    assert all((clone / file).is_file() for file in study.outputs())
    assert {file: file.read_bytes() for file in committed} == committed


@pytest.mark.slow
def test_a_grid_from_nothing_to_its_tables_and_what_does_not_train_it_again(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any]
) -> None:
    arguments = ("--cores", "2", "--configfile", write(clone, tiny))
    done = snakemake(clone, *arguments)
    assert done.returncode == 0, done.stderr
    study = load_study(clone / "tiny.yaml")
    assert all((clone / file).is_file() for file in study.outputs())
    records = {cell.id: read_record(clone / cell.record) for cell in study.trainings.values()}
    assert len(records) == 4  # cam reads se's

    # a second run finds nothing to do
    again = snakemake(clone, *arguments)
    assert "Nothing to be done" in again.stdout + again.stderr

    def trains(*, fresh: bool) -> int:
        """How many cells a run would train, with or without Snakemake's own memory."""
        memory = clone / ".snakemake"
        if fresh:
            memory.rename(clone / "memory")
        dry = snakemake(clone, "-n", *arguments)
        assert dry.returncode == 0, dry.stdout + dry.stderr
        if fresh:
            shutil.rmtree(memory)
            (clone / "memory").rename(memory)
        return jobs(dry.stdout + dry.stderr).get("train", 0)

    # nothing is trained by another title, table, figure, device or order
    more = tiny["grid"][0]
    other = {"title": "other", "figures": ["modules"], "tables": ["csm_table2"]}
    order = {"compute": {"device": "auto"}, "grid": [more | {"attentions": ["cam", "none"]}]}
    write(clone, tiny | other | order)
    assert [trains(fresh=fresh) for fresh in (False, True)] == [0, 0]
    # another seed trains that seed alone, another module itself
    grid = [
        more | {"seeds": [0, 1, 2], "attentions": ["none", "se"]},
        more | {"attentions": ["cbam"]},
    ]
    write(clone, tiny | {"grid": grid})
    assert [trains(fresh=fresh) for fresh in (False, True)] == [4, 4]
    recipe = tiny["recipes"]["tiny"] | {"learning_rate": 0.01}
    # another recipe nothing, until the records of the old one are archived; then everything
    write(clone, tiny | {"recipes": {"tiny": recipe}})
    assert [trains(fresh=fresh) for fresh in (False, True)] == [0, 0]
    subprocess.run(["attngrid", "archive", "tiny.yaml"], cwd=clone, env=environment(), check=True)
    assert [trains(fresh=fresh) for fresh in (False, True)] == [4, 4]
    for file in (clone / "results/tiny/archive/records").iterdir():
        file.rename(clone / "results/tiny/records" / file.name)

    # another study of this name was rendered meanwhile: the next run renders its own again
    write(clone, tiny | {"grid": [more | {"attentions": ["none", "cbam"]}]})
    assert snakemake(clone, "current", *arguments).returncode == 0
    write(clone, tiny)
    assert "CBAM" in (clone / "tables/tiny.grid.md").read_text("utf-8")
    assert snakemake(clone, *arguments).returncode == 0
    assert "CBAM" not in (clone / "tables/tiny.grid.md").read_text("utf-8")

    # whatever the files' times, nothing is trained
    shuffled = random.Random(0)
    for file in clone.rglob("*"):
        if file.is_file():
            time = 1_700_000_000 + shuffled.randrange(10**6)
            os.utime(file, (time, time))
    (clone / "results/complexity.csv").touch()  # to count the papers' models takes minutes
    assert [trains(fresh=fresh) for fresh in (False, True)] == [0, 0]

    # without weights, as in a clone, everything is rendered, with the maps as they were
    shutil.rmtree(clone / "results/tiny/weights")
    shutil.rmtree(clone / "figures")
    maps = (clone / study.maps).read_bytes()
    for _ in range(2):
        assert snakemake(clone, *arguments, "--forcerun", "maps").returncode == 0
        assert all((clone / file).is_file() for file in study.outputs())
        assert (clone / study.maps).read_bytes() == maps
        shutil.rmtree(clone / ".snakemake")
    assert read_maps(clone / study.maps).cells.keys() == {cell.id for cell in pictured(study)}

    # one cell trained alone, by hand, is equal to the bit
    cell = next(iter(study.trainings.values()))
    command = [sys.executable, "-m", "attngrid.cli", "train", "results/tiny/study.json"]
    subprocess.run([*command, cell.id, "--record", "alone.json"], cwd=clone, check=True)
    alone = read_record(clone / "alone.json")
    assert alone.config == records[cell.id].config
    assert alone.metrics == records[cell.id].metrics


@pytest.mark.slow
def test_cells_start_in_the_order_of_the_configuration(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any]
) -> None:
    """Neither by name nor by size."""
    first = tiny["grid"][0] | {"attentions": ["se", "none"], "seeds": [3, 0]}
    tiny["grid"] = [first, first | {"attentions": ["cbam"], "seeds": [1]}]
    done = snakemake(clone, "records", "--cores", "1", "--configfile", write(clone, tiny))
    assert done.returncode == 0, done.stderr
    trainings = load_study(clone / "tiny.yaml").trainings
    made = [read_attempts(clone / cell.status)[0] for cell in trainings.values()]
    began = [one["began"] for one in made]
    assert began == sorted(began)
    assert [id.split("-")[2::2][:2] for id in trainings] == [
        ["se", "s3"],
        ["none", "s3"],
        ["se", "s0"],
        ["none", "s0"],
        ["cbam", "s1"],
    ]


@pytest.mark.slow
def test_failed_cells_are_named_and_block_nothing(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (clone / "mine.py").write_text(
        "import torch\n"
        "class Broken(torch.nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            raise RuntimeError('broken on purpose')\n"
        "        return torch.cumsum(x, 1)\n"  # which nobody counts
    )
    tiny["grid"][0] |= {"attentions": ["none", "mine.py:Broken"], "seeds": [0]}
    tiny["recipes"]["wild"] = tiny["recipes"]["tiny"] | {"learning_rate": 1e20, "epochs": 3}
    tiny["grid"].append(tiny["grid"][0] | {"attentions": ["none"], "recipes": ["wild"]})
    done = snakemake(clone, "--cores", "2", "--configfile", write(clone, tiny))
    assert done.returncode != 0
    monkeypatch.chdir(clone)
    study = load_study("tiny.yaml")
    good, broken, wild = study.cells
    assert good.record.is_file()
    assert not broken.record.exists()
    assert not wild.record.exists()
    # named at the end, with why
    tail = done.stderr.partition("tiny: 1 measured")[2]
    assert f"{broken.id}: failed: RuntimeError: broken on purpose" in tail
    assert f"{wild.id}: diverged: " in tail
    assert "in epoch " in tail
    # and the rest is rendered
    assert all(file.is_file() for file in study.outputs())
    grid = Path("tables/tiny.grid.md").read_text("utf-8")
    assert "failed" in grid
    assert "diverged" in grid
    # an operator that cannot be counted is named on the screen, too
    assert "not counted: resnet18 + mine.py:Broken: cannot count aten::cumsum" in done.stderr
    # in a second run the good one is not trained again, the others are tried again
    dry = snakemake(clone, "-n", "--configfile", "tiny.yaml")
    assert jobs(dry.stdout + dry.stderr)["train"] == 2


def start_and_await_first_epoch(
    clone: Path, *arguments: str
) -> tuple[subprocess.Popen[str], IO[str]]:
    """Snakemake in the background, its first cell of one epoch trained but not finished."""
    running = subprocess.Popen(
        ["snakemake", *arguments],
        cwd=clone,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    for line in running.stderr:
        if "epoch 1/1" in line:
            break
    return running, running.stderr


@pytest.mark.slow
def test_a_run_keeps_the_configuration_it_started_with(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any]
) -> None:
    """An edit, a dry run and `current` change nothing for a study whose cells are being trained."""
    tiny["grid"][0] |= {"attentions": ["none"], "seeds": [0, 1, 2, 3]}
    tiny |= {"tables": ["grid"], "figures": []}
    arguments = ("--cores", "1", "--configfile", write(clone, tiny))
    running, output = start_and_await_first_epoch(clone, *arguments)
    configs = clone / "results/tiny/configs"
    (snapshot,) = configs.glob("*.json")
    write(clone, tiny | {"recipes": {"tiny": tiny["recipes"]["tiny"] | {"learning_rate": 0.01}}})
    assert snakemake(clone, "-n", "--nolock", *arguments).returncode == 0
    assert snakemake(clone, "current", "--nolock", *arguments).returncode == 0
    rest = output.read()
    assert running.wait(120) == 0, rest
    assert len(list((clone / "results/tiny/records").iterdir())) == 4

    # Another configuration's frames: the run that may just have made its own still finds its mark,
    # and the next one collects.
    (mark,) = configs.glob(f"{snapshot.stem}.*.collected")
    assert snakemake(clone, "current", *arguments).returncode == 0
    assert mark.is_file()
    write(clone, tiny)
    again = snakemake(clone, *arguments)
    assert again.returncode == 0, again.stderr
    found = jobs(again.stdout + again.stderr)
    assert found["collect"] == found["set_tables"] == 1
    assert "train" not in found
    assert set(load_results("tiny", clone).cells["state"]) == {"measured"}
    assert "collect" not in jobs(snakemake(clone, "-n", *arguments).stderr)


@pytest.mark.slow
def test_a_killed_snakemake_is_no_obstacle(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any]
) -> None:
    """kill -9: its cell ends by itself, and the next run takes the record and goes on."""
    tiny["grid"][0] |= {"attentions": ["none"], "seeds": [0, 1]}
    arguments = ("--cores", "1", "--configfile", write(clone, tiny))
    running, output = start_and_await_first_epoch(clone, *arguments)
    running.kill()
    output.read()  # until the orphan ends
    records = clone / "results/tiny/records"
    (record,) = records.iterdir()
    before = record.read_bytes()
    unlocked = snakemake(clone, "--unlock", *arguments)
    assert unlocked.returncode == 0, unlocked.stderr
    done = snakemake(clone, *arguments)
    assert done.returncode == 0, done.stderr
    assert record.read_bytes() == before
    assert len(list(records.iterdir())) == 2
