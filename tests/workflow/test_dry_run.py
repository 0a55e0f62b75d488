"""The jobs that Snakemake would run, and errors before the first job."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from attngrid.core.validation import validate
from attngrid.study.scaffold import init
from attngrid.study.schema import Study, load_study
from conftest import ROOT, environment, jobs, make_clone

pytestmark = pytest.mark.slow  # Snakemake takes some three seconds to start
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which nothing is trained."""
    return make_clone(tmp_path_factory.mktemp("dry") / "clone")


@pytest.fixture
def run(clone: Path) -> Run:
    """Run Snakemake in the clone; both its outputs are in ``stdout``."""

    def snakemake(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["snakemake", *arguments],
            cwd=clone,
            env=environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )

    return snakemake


def write(clone: Path, content: dict[str, Any]) -> str:
    (clone / "tiny.yaml").write_text(yaml.safe_dump(content))
    return "tiny.yaml"


# Jobs


def test_the_demo_is_the_default_of_both_snakefiles(clone: Path, run: Run) -> None:
    assert jobs(run("-n").stdout)["train"] == 18
    assert jobs(run("-n", "--snakefile", "workflow/Snakefile").stdout)["train"] == 18
    assert not (clone / "results/demo/records").exists()


@pytest.mark.parametrize("config", ["cifar100", "tuning"])
def test_a_study_trains_each_of_its_cells(clone: Path, run: Run, config: str) -> None:
    done = run("-n", "--configfile", f"config/{config}.yaml")
    assert done.returncode == 0, done.stdout
    study = load_study(clone / f"config/{config}.yaml")
    found = jobs(done.stdout)
    assert found["train"] == len(study.trainings)
    assert (found.get("trial", 0), found.get("tune", 0)) == (len(study.trials), len(study.choices))


def test_the_slurm_profile_runs_the_papers_study(run: Run) -> None:
    """It needs only a fresh clone, and prints a summary first."""
    done = run("--cores", "all", "--profile", "slurm", "-n")
    assert done.returncode == 0, done.stdout
    assert jobs(done.stdout)["train"] == 95
    summary = done.stdout.partition("Building DAG")[0]
    assert "study imagenet: CBAM, CSM and MAF on ImageNet-1K\n95 cells, 0 done; about " in summary
    assert re.search(
        r"GPU hours left \(A100: \d+ from MACs, \d+ reading images\); 11 GB on disk", summary
    )


def test_a_cluster_job_requests_the_resources_of_the_site(clone: Path, run: Run) -> None:
    """A local run requests none of them, and the profile's study has no effect."""
    site = clone / "site.cluster.yaml"
    site.write_text("partition: gpu-long\nconstraint: nvlink\n")
    arguments = ("records", "--cores", "all", "--configfile", "config/cifar10.yaml", "-n")
    for profile, has_resources in ((("--profile", "slurm"), True), ((), False)):
        done = run(*arguments, *profile, "--quiet", "host", ATTNGRID_CLUSTER=str(site))
        assert done.returncode == 0, done.stdout
        assert "imagenet" not in done.stdout.partition("Building DAG")[0]
        lines = [line for line in done.stdout.splitlines() if "gpu=1" in line]
        assert len(lines) == 39
        for option in ("slurm_partition=gpu-long", "constraint=nvlink", "runtime=", "in_turn=1"):
            assert all((option in line) == has_resources for line in lines), option


def test_a_configfile_replaces_the_demo_completely(clone: Path, run: Run) -> None:
    """The demo's compute section, tables and figures must not apply to another study."""
    block = {"dataset": "cifar100", "backbones": ["resnet18"], "attentions": ["none"]}
    small = {"study": "alone", "grid": [block | {"recipes": ["cifar_200ep"], "seeds": [0]}]}
    done = run("-n", "--configfile", write(clone, small))
    assert done.returncode == 0, done.stdout
    (snapshot,) = (clone / "results/alone/configs").iterdir()
    resolved = load_study(snapshot)
    assert resolved == validate(Study, small, "tiny.yaml")
    assert (resolved.compute.device, resolved.tables, resolved.title) == ("auto", (), "")


def test_targets_by_name(clone: Path, run: Run) -> None:
    (clone / "results/cost.csv").write_text("")  # an existing file does not stop the measurement
    for targets, rules in {
        "complexity": {"complexity", "count_study"},
        "tables figures": {"train", "set_tables", "draw_figures"},
        "cost": {"cost"},
    }.items():
        found = jobs(run("-n", *targets.split()).stdout)
        assert rules <= set(found)
        assert ("train" in found, "cost" in found) == ("train" in rules, "cost" in rules)


# Errors


def test_a_wrong_configuration_is_one_error_before_any_job(
    clone: Path, run: Run, tiny: dict[str, Any]
) -> None:
    tiny["grid"][0]["attentions"] = ["cbma"]
    arguments = ("--configfile", write(clone, tiny), "--config", "figures=modules")
    done = run("--cores", "1", *arguments)
    assert done.returncode != 0
    source = "tiny.yaml with --config figures: "
    assert (
        f"{source}grid.0.attentions.0: unknown attention 'cbma': did you mean cbam" in done.stdout
    )
    assert f"{source}figures: found 'modules'; needs a list, such as [modules]" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (clone / "results/tiny").exists()


def stopped(clone: Path, done: subprocess.CompletedProcess[str], message: str) -> bool:
    """Whether a run ended before any job, and its last line is an error with this message."""
    last = done.stdout.rstrip().rpartition("\n")[2]
    failed = done.returncode != 0 and last.startswith("attngrid: error: ") and message in last
    return failed and not (clone / "logs").exists()


def test_a_study_that_cannot_be_trained_stops_before_its_first_job(clone: Path, run: Run) -> None:
    done = run("--cores", "1", "--configfile", "config/imagenet.yaml")
    assert stopped(clone, done, "there is no data/imagenet/train; put it there")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_study_for_a_gpu_stops_before_the_first_job_on_a_machine_without_one(
    clone: Path, run: Run, tiny: dict[str, Any]
) -> None:
    tiny |= {"compute": {"device": "cuda"}, "figures": []}
    done = run("--cores", "1", "--configfile", write(clone, tiny))
    assert stopped(clone, done, "device: found 'cuda'; torch")


def test_a_folder_with_braces_stops_before_the_first_job(clone: Path, run: Run) -> None:
    (clone / "site.yaml").write_text("results: 'r {x}/results'\n")
    done = run("--cores", "1")
    (clone / "site.yaml").unlink()
    assert stopped(clone, done, "Snakemake takes { and } for a wildcard")


def test_a_key_that_is_there_twice_stops_before_the_first_job(
    clone: Path, run: Run, tiny: dict[str, Any]
) -> None:
    """Snakemake itself lets the last one win."""
    file = write(clone, tiny)
    with (clone / file).open("a") as stream:
        stream.write("study: other\n")
    done = run("--cores", "1", "--configfile", file)
    assert stopped(clone, done, "study is there twice, also in line ")


def test_a_tab_in_the_default_configuration_is_named_with_its_line(
    clone: Path, run: Run, tmp_path: Path
) -> None:
    init(tmp_path / "mine")
    (tmp_path / "mine/study.yaml").write_text("study: mine\ngrid:\n\t- dataset: digits\n")
    done = run("-n", "--directory", tmp_path / "mine", "-s", tmp_path / "mine/Snakefile")
    assert stopped(clone, done, r"study.yaml, line 3: not valid YAML: found character '\t'")


def test_two_configfiles_are_merged_or_refused(clone: Path, run: Run, tiny: dict[str, Any]) -> None:
    """Snakemake merges them, the last first; two studies would become a mixture."""
    file = write(clone, tiny | {"study": "merged"})
    (clone / "more.yaml").write_text("compute: {threads: 2}\n")
    done = run("-n", "--configfile", file, "more.yaml")
    assert done.returncode == 0, done.stdout
    (snapshot,) = (clone / "results/merged/configs").glob("*.json")
    compute = {"compute": tiny["compute"] | {"threads": 2}}
    assert load_study(snapshot) == validate(Study, tiny | {"study": "merged"} | compute, "t")
    done = run("-n", "--configfile", file, "config/cifar20.yaml")
    assert stopped(clone, done, f"{file} with config/cifar20.yaml: each has the key study; run")


DOCUMENTED = {
    line
    for page in sorted((ROOT / "docs").glob("*.md"))
    for line in re.findall(r"`(snakemake --unlock[^`]*)`", page.read_text("utf-8"))
}


def test_unlocking_as_documented(clone: Path, run: Run) -> None:
    assert {line.split()[-1] for line in DOCUMENTED} == {"--unlock", "slurm"}
    for line in DOCUMENTED:
        done = run(*line.split()[1:])
        assert done.returncode == 0, done.stdout
        assert "Unlocked working directory" in done.stdout


def test_maps_without_captum_stop_before_the_first_job(
    clone: Path, run: Run, tiny: dict[str, Any]
) -> None:
    (clone / "hidden").mkdir()
    (clone / "hidden/sitecustomize.py").write_text("import sys; sys.modules['captum'] = None\n")
    path = os.pathsep.join([str(clone / "hidden"), *filter(None, [os.getenv("PYTHONPATH")])])
    done = run("--cores", "1", "--configfile", write(clone, tiny), PYTHONPATH=path)
    assert stopped(clone, done, 'pip install "attngrid[maps]"')


def test_a_dry_run_finds_a_wrong_shell_command(clone: Path, run: Run) -> None:
    rule = clone / "workflow/rules/collect.smk"
    before = rule.read_text()
    rule.write_text(before.replace("{input.study:q}", "{input.nothing:q}"))
    done = run("-n")
    rule.write_text(before)
    assert done.returncode != 0
    assert "nothing" in done.stdout
