"""The workflow as a user runs it: Snakemake in a copy of the repository."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from attngrid.analysis.frames import load_results
from attngrid.cli.main import main
from attngrid.measure.maps_file import pictured, read_maps
from attngrid.records.record import read_record
from attngrid.records.status import read_attempts, read_status
from attngrid.study.schema import load_study
from conftest import environment, jobs

pytestmark = pytest.mark.slow
Snakemake = Callable[..., subprocess.CompletedProcess[str]]


def write(clone: Path, content: dict[str, Any]) -> str:
    (clone / "tiny.yaml").write_text(yaml.safe_dump(content))
    return "tiny.yaml"


def test_current_reproduces_the_committed_tables(
    clone: Path, snakemake: Snakemake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Studies without records have committed tables, too."""
    monkeypatch.chdir(clone)
    for config in ("imagenet", "cifar100", "dogs"):
        committed = {file: file.read_bytes() for file in Path("tables").glob(f"{config}.*")}
        assert committed
        if config == "dogs":
            arguments = ("--cores", "1", "--configfile", f"config/{config}.yaml")
            done = snakemake(clone, "current", *arguments)
            assert done.returncode == 0, done.stderr
        else:  # the command of the rule
            assert main(["current", f"config/{config}.yaml"]) == 0
        study = load_study(f"config/{config}.yaml")
        assert all(file.is_file() for file in study.outputs())
        assert {file: file.read_bytes() for file in committed} == committed


def test_a_grid_is_trained_and_later_only_its_new_cells(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any]
) -> None:
    tiny["grid"][0] |= {"attentions": ["se", "none", "cam"], "seeds": [1, 0]}
    arguments = ("--cores", "1", "--configfile", write(clone, tiny))
    done = snakemake(clone, *arguments)
    assert done.returncode == 0, done.stderr
    study = load_study(clone / "tiny.yaml")
    assert all((clone / file).is_file() for file in study.outputs())
    records = {cell.id: read_record(clone / cell.record) for cell in study.trainings.values()}
    assert len(records) == 4  # cam shares the records of se
    # cells start in the order of the configuration, neither by name nor by size
    began = [read_attempts(clone / cell.status)[0]["began"] for cell in study.trainings.values()]
    assert began == sorted(began)

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

    # another title, table, figure, device or order trains nothing
    block = tiny["grid"][0]
    other = {"title": "other", "figures": ["modules"], "tables": ["csm_table2"]}
    order = {"compute": {"device": "auto"}, "grid": [block | {"attentions": ["cam", "none"]}]}
    write(clone, tiny | other | order)
    assert trains(fresh=True) == 0
    # another seed or module trains only its own cells
    grid = [
        block | {"seeds": [0, 1, 2], "attentions": ["none", "se"]},
        block | {"attentions": ["cbam"]},
    ]
    write(clone, tiny | {"grid": grid})
    assert trains(fresh=False) == 4

    # after another study of this name was rendered, the next run renders this one again
    write(clone, tiny | {"grid": [block | {"attentions": ["none", "cbam"]}]})
    assert snakemake(clone, "current", *arguments).returncode == 0
    write(clone, tiny)
    assert "CBAM" in (clone / "tables/tiny.grid.md").read_text("utf-8")
    assert snakemake(clone, *arguments).returncode == 0
    assert "CBAM" not in (clone / "tables/tiny.grid.md").read_text("utf-8")
    again = snakemake(clone, "-n", *arguments)
    assert "Nothing to be done" in again.stdout + again.stderr

    # modification times do not matter
    shuffled = random.Random(0)
    for file in clone.rglob("*"):
        if file.is_file():
            time = 1_700_000_000 + shuffled.randrange(10**6)
            os.utime(file, (time, time))
    (clone / "results/complexity.csv").touch()  # counting the papers' models takes minutes
    assert trains(fresh=True) == 0

    # without weights, as in a clone, everything is rendered and the maps are kept
    shutil.rmtree(clone / "results/tiny/weights")
    shutil.rmtree(clone / "figures")
    maps = (clone / study.maps).read_bytes()
    shutil.rmtree(clone / ".snakemake")
    assert snakemake(clone, *arguments, "--forcerun", "maps").returncode == 0
    assert all((clone / file).is_file() for file in study.outputs())
    assert (clone / study.maps).read_bytes() == maps
    assert read_maps(clone / study.maps).cells.keys() == {cell.id for cell in pictured(study)}

    # a cell trained by a single command is bit-identical
    cell = next(iter(study.trainings.values()))
    command = [sys.executable, "-m", "attngrid.cli", "train", "results/tiny/study.json"]
    subprocess.run([*command, cell.id, "--record", "alone.json"], cwd=clone, check=True)
    alone = read_record(clone / "alone.json")
    assert alone.config == records[cell.id].config
    assert alone.metrics == records[cell.id].metrics


def test_failed_cells_are_named_and_the_rest_is_rendered(
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
        "        return torch.cumsum(x, 1)\n"  # an operator that cannot be counted
    )
    tiny["grid"][0] |= {"attentions": ["none", "mine.py:Broken"], "seeds": [0]}
    tiny["recipes"]["diverging"] = tiny["recipes"]["tiny"] | {"learning_rate": 1e6, "epochs": 3}
    tiny["grid"].append(tiny["grid"][0] | {"attentions": ["none"], "recipes": ["diverging"]})
    arguments = ("--cores", "2", "--retries", "1", "--configfile", write(clone, tiny))
    done = snakemake(clone, *arguments)
    assert done.returncode != 0
    monkeypatch.chdir(clone)
    study = load_study("tiny.yaml")
    good, broken, diverging = study.cells
    assert good.record.is_file()
    assert not broken.record.exists()
    assert not diverging.record.exists()
    # a failed training is tried again, a diverged one is not
    assert [len(read_attempts(cell.status)) for cell in (good, broken, diverging)] == [1, 2, 1]
    assert "not tried again" in Path(f"logs/tiny/{diverging.id}.log").read_text()
    # the end of the output names them with their errors and remedies, below what was made
    head, _, tail = done.stderr.partition("study tiny: 3 cells: 1 done, 1 failed, 1 diverged")
    assert "made: tables/tiny.claims.md, results/tiny/report.html; `attngrid outputs tiny` " in head
    assert f"failed: {broken.id}: RuntimeError: broken on purpose" in tail
    assert f"diverged: {diverging.id}: " in tail
    assert "in epoch " in tail
    assert tail.count("remedy: ") == 2
    # each line is for the user: none is about how Snakemake schedules jobs
    assert done.stderr.count("top-1 error ") == 1
    for noise in ("Select jobs", "Execute ", "Finished jobid", " steps (", "Using shell"):
        assert noise not in done.stderr
    # the rest is rendered
    assert all(file.is_file() for file in study.outputs())
    grid = Path("tables/tiny.grid.md").read_text("utf-8")
    assert "failed" in grid
    assert "diverged" in grid
    # an operator that cannot be counted is named on the screen, too
    assert "not counted: resnet18 + mine.py:Broken: cannot count aten::cumsum" in done.stderr
    # in a second run the good one is not trained again, the others are tried again
    dry = snakemake(clone, "-n", "--configfile", "tiny.yaml")
    assert jobs(dry.stdout + dry.stderr)["train"] == 2
    snakemake(clone, str(diverging.record), *arguments)
    assert len(read_attempts(diverging.status)) == 2


def start_and_await_first_epoch(
    clone: Path, *arguments: str, results: str = "results"
) -> tuple[subprocess.Popen[str], IO[str]]:
    """Start Snakemake; return when its first cell has finished an epoch but not ended."""
    running = subprocess.Popen(
        ["snakemake", *arguments],
        cwd=clone,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    files = clone / results / "tiny/status"
    while not any((read_status(file) or {}).get("epoch") for file in files.glob("*.json")):
        assert running.poll() is None
        time.sleep(0.05)
    return running, running.stderr


def test_a_run_keeps_the_configuration_it_started_with(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any]
) -> None:
    """An edit, a dry run and `current` do not change a study that is being trained."""
    tiny["grid"][0] |= {"attentions": ["none"], "seeds": [0, 1, 2]}
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
    assert len(list((clone / "results/tiny/records").iterdir())) == 3

    # `current` wrote the frames of another configuration: the first run still finds its marker, and
    # the next one collects.
    (marker,) = configs.glob(f"{snapshot.stem}.*.collected")
    assert snakemake(clone, "current", *arguments).returncode == 0
    assert marker.is_file()
    write(clone, tiny)
    again = snakemake(clone, *arguments)
    assert again.returncode == 0, again.stderr
    found = jobs(again.stdout + again.stderr)
    assert found["collect"] == found["set_tables"] == 1
    assert "train" not in found
    assert set(load_results("tiny", clone).cells["state"]) == {"measured"}
    assert "collect" not in jobs(snakemake(clone, "-n", *arguments).stderr)


def test_a_run_continues_after_snakemake_was_killed(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any]
) -> None:
    """After kill -9, the running cell still finishes, and the next run uses its record.

    The study's results are outside the clone.
    """
    tiny["grid"][0] |= {"attentions": ["none"], "seeds": [0, 1]}
    (clone / "site.yaml").write_text("results: ../else where\n")
    file = write(clone, tiny | {"tables": ["grid"]})
    arguments = ("tables", "--cores", "1", "--configfile", file)
    running, output = start_and_await_first_epoch(clone, *arguments, results="../else where")
    running.kill()
    output.read()  # until the orphan ends
    records = clone.parent / "else where/tiny/records"
    (record,) = records.glob("*.json")
    before = record.read_bytes()
    unlocked = snakemake(clone, "--unlock", *arguments)
    assert unlocked.returncode == 0, unlocked.stderr
    done = snakemake(clone, *arguments)
    assert done.returncode == 0, done.stderr
    assert record.read_bytes() == before
    assert len(list(records.glob("*.json"))) == 2
    assert not (clone / "results/tiny").exists()
    assert "ResNet-18" in (clone / "tables/tiny.grid.md").read_text()
    again = snakemake(clone, "-n", *arguments)
    assert "Nothing to be done" in again.stdout + again.stderr
    subprocess.run(["attngrid", "evaluate", str(record)], cwd=clone, env=environment(), check=True)


def test_cells_at_the_same_time_use_different_gpus(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two GPUs do not exist; cells that ran at the same time were given different ones."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8")
    tiny["compute"] = {"device": "auto"}
    tiny["grid"][0] |= {"attentions": ["none"], "seeds": [0, 1]}
    tiny["recipes"]["tiny"]["epochs"] = 3
    profile = ("--profile", "workflow/profiles/gpu", "--resources", "gpu=2")
    arguments = ("--cores", "2", "--configfile", write(clone, tiny))
    done = snakemake(clone, "records", *profile, *arguments)
    assert done.returncode == 0, done.stderr
    study = load_study(clone / "tiny.yaml")
    made = [read_attempts(clone / cell.status)[0] for cell in study.trainings.values()]
    assert max(one["began"] for one in made) < min(one["heard"] for one in made)
    assert {one["devices"] for one in made} == {"3", "GPU-8"}
