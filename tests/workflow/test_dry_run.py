"""The jobs that Snakemake would run, and errors before the first job."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from attngrid.cli.workflow import before_jobs, open_study
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


def test_a_study_trains_each_of_its_cells(clone: Path, run: Run) -> None:
    done = run("-n", "--configfile", "config/cifar100.yaml")
    assert done.returncode == 0, done.stdout
    assert jobs(done.stdout)["train"] == len(load_study(clone / "config/cifar100.yaml").trainings)


def test_a_module_as_snakedeploy_writes_it_plans_and_checks_a_study(
    clone: Path, run: Run, tmp_path: Path
) -> None:
    """The handlers are those of docs/installation.md."""
    page = (ROOT / "docs/installation.md").read_text("utf-8")
    (handlers,) = re.findall(r"(?:^    on.*\n        .*\n\n?){3}", page, re.MULTILINE)
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow/Snakefile").write_text(
        'configfile: "config/config.yaml"\n'
        f"module attngrid:\n    snakefile: {str(clone / 'workflow/Snakefile')!r}\n"
        f"    config: config\nuse rule * from attngrid\n{dedent(handlers)}"
    )
    (tmp_path / "config").mkdir()
    shutil.copy(clone / "config/imagenet.yaml", tmp_path / "config/config.yaml")
    done = run("--cores", "1", "--directory", tmp_path, "-s", tmp_path / "workflow/Snakefile")
    assert stopped(clone, done, "there is no data/imagenet/train; put it there")
    assert jobs(done.stdout)["train"] == 95


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
        "complexity cost": {"complexity", "count_study", "cost"},
        "tables figures": {"train", "set_tables", "draw_figures"},
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


def stops(caplog: pytest.LogCaptureFixture, call: Callable[[], object]) -> str:
    """The error with which a function ends that the Snakefile calls."""
    caplog.clear()
    with pytest.raises(SystemExit):
        call()
    assert caplog.messages[-1].startswith("attngrid: error: ")
    return caplog.messages[-1]


def of_snakemake(*rules: str, **settings: Any) -> Any:
    """What these functions read of Snakemake's workflow, with a job of each rule."""
    jobs = [SimpleNamespace(rule=SimpleNamespace(name=rule)) for rule in rules]
    return SimpleNamespace(
        dag=SimpleNamespace(needrun_jobs=lambda: jobs),
        deployment_settings=SimpleNamespace(deployment_method=()),
        config_settings=SimpleNamespace(config={}),
        output_settings=SimpleNamespace(verbose=False),
        **{"non_local_exec": False, "nodes": None, "is_main_process": True} | settings,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_study_for_a_gpu_stops_before_the_first_job_on_a_machine_without_one(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    study = validate(Study, tiny | {"compute": {"device": "cuda"}}, "t")
    workflow = of_snakemake("train")
    (job,) = workflow.dag.needrun_jobs()
    job.wildcards = SimpleNamespace(cell=next(iter(study.trainings)))
    assert "device: found 'cuda'; torch" in stops(caplog, lambda: before_jobs(workflow, study))


def test_maps_without_captum_stop_before_the_first_job(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "captum", None)
    study = validate(Study, tiny, "t")
    error = stops(caplog, lambda: before_jobs(of_snakemake("maps"), study))
    assert 'pip install "attngrid[maps]"' in error
    before_jobs(of_snakemake("draw_figures"), study)


def test_a_folder_with_braces_stops_before_the_first_job(
    tiny: dict[str, Any], clone: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.chdir(clone)
    monkeypatch.setenv("PATH", os.environ["PATH"])  # restored, since open_study changes it
    workflow = of_snakemake(configfiles=[write(clone, tiny)])
    monkeypatch.setenv("ATTNGRID_SITE", "braces.yaml")
    Path("braces.yaml").write_text("results: 'r {x}/results'\n")
    error = stops(caplog, lambda: open_study(workflow, tiny))
    assert "Snakemake takes { and } for a wildcard" in error


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
    done = run(*max(DOCUMENTED, key=len).split()[1:])
    assert done.returncode == 0, done.stdout
    assert "Unlocked working directory" in done.stdout


def test_a_dry_run_finds_a_wrong_shell_command(clone: Path, run: Run) -> None:
    rule = clone / "workflow/rules/collect.smk"
    before = rule.read_text()
    rule.write_text(before.replace("{input.study:q}", "{input.nothing:q}"))
    done = run("-n")
    rule.write_text(before)
    assert done.returncode != 0
    assert "nothing" in done.stdout
