"""Plans, states and what Slurm is told, without a Slurm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from attngrid.cli.main import main
from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.data.registry import find_dataset
from attngrid.records.status import read_attempts, write_status
from attngrid.study.cluster import Cluster, require_plain
from attngrid.study.plan import PEAKS, Planner, summary
from attngrid.study.schema import Study, load_study
from conftest import jobs

ROOT = Path(__file__).resolve().parents[2]
Snakemake = Callable[..., subprocess.CompletedProcess[str]]


def test_the_literal_command_means_the_papers(clone: Path, snakemake: Snakemake) -> None:
    """From a fresh clone, with nothing in the home; it says first what it is about to do."""
    done = snakemake(clone, "--cores", "all", "--profile", "slurm", "-n")
    assert done.returncode == 0, done.stderr
    assert jobs(done.stdout + done.stderr)["train"] == 95
    said = done.stderr.partition("Building DAG")[0]
    assert "study imagenet: CBAM, CSM and MAF on ImageNet-1K\n95 cells, 0 done; some " in said
    assert "GPU hours left (A100, from MACs); 11 GB on disk" in said
    # another study takes its place, with nothing of it left
    done = snakemake(
        clone, "--cores", "all", "--profile", "slurm", "-n", "--configfile", "config/cifar10.yaml"
    )
    assert jobs(done.stdout + done.stderr)["train"] == 39
    assert "imagenet" not in done.stderr.partition("Building DAG")[0]


def test_a_job_asks_for_what_the_site_says(clone: Path, snakemake: Snakemake) -> None:
    """And a local run for nothing of it."""
    (clone / "config/cluster.yaml").write_text("partition: gpu-long\nconstraint: nvlink\n")
    arguments = ("records", "--cores", "all", "--configfile", "config/cifar10.yaml", "-n")
    for profile, asks in ((("--profile", "slurm"), True), ((), False)):
        done = snakemake(clone, *arguments, *profile, "--quiet", "host")
        assert done.returncode == 0, done.stderr
        said = done.stdout + done.stderr
        lines = [line for line in said.splitlines() if "gpu=1" in line]
        assert len(lines) == 39
        for option in ("slurm_partition=gpu-long", "constraint=nvlink", "runtime=", "in_turn=1"):
            assert all((option in line) == asks for line in lines), option


def test_every_line_of_the_profile_is_explained() -> None:
    lines = (ROOT / "workflow/profiles/slurm/config.yaml").read_text("utf-8").splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith((" ", "#")):
            assert before.startswith("#"), line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition: ''", "partition: found ''; needs printable characters"),
        ('partition: "a\\nb"', r"partition: found 'a\\nb'; needs printable"),
        ("account: --wrap=x", "account: found '--wrap=x'; needs printable characters, not begin"),
        ("time_limit: 1 day", r"time_limit: found '1 day'; needs \[days-\]hours:minutes:seconds"),
        ("time_limit: 0-12:00", r"time_limit: found '0-12:00'; needs \[days-\]hours:minutes:sec"),
        ("gpu_model: a100;reboot", "gpu_model: found 'a100;reboot'"),
        ("gpu_request: --gpus", "gpu_request: found '--gpus'"),
        ("extra: [-x y]", r"extra\.0: found '-x y'; needs an option of sbatch"),
        ("partitoin: gpu", "unknown key 'partitoin': did you mean partition"),
        ("margin: 0", "margin: found 0"),
    ],
)
def test_a_wrong_cluster_is_one_line_before_any_job(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^cluster\.yaml: {message}"):
        validate(Cluster, yaml.safe_load(text), "cluster.yaml")


def test_the_shipped_cluster_and_its_examples_are_valid() -> None:
    text = (ROOT / "config/cluster.yaml").read_text("utf-8")
    validate(Cluster, yaml.safe_load(text), "cluster.yaml")
    examples = [
        [line[2:] for line in block.splitlines() if line.startswith("# ") and ": " in line[2:30]]
        for block in text.split("#\n")
    ]
    for lines in examples:
        keys = [line for line in lines if line.partition(":")[0] in Cluster.model_fields]
        validate(Cluster, yaml.safe_load("\n".join(keys)), "cluster.yaml")
    assert sum("partition: gpu" in lines for lines in examples) >= 2


def test_options_come_back_from_a_shell_as_they_were() -> None:
    wild = "--comment=a 'b' $(touch pwned) `id` ;|&"
    (extra,) = (Cluster(extra=(wild,)).options(1)["slurm_extra"],)
    done = subprocess.run(["sh", "-c", f"printf %s {extra}"], capture_output=True, text=True)
    assert done.stdout == wild
    with pytest.raises(ConfigError, match=r"found '/a/\$\(x\)', in which a shell would read '\$'"):
        require_plain(["/a b/'c'", "/a/$(x)"])


def test_a_gpu_is_asked_for_as_the_site_spells_it() -> None:
    assert Cluster().options(1) == {"gpu": 1}
    assert Cluster(gpu_model="a100").options(2) == {"gpu": 2, "gpu_model": "a100"}
    assert Cluster(gpu_request="gres", gpu_model="v100").options(1) == {"gres": "gpu:v100:1"}
    whole = Cluster(gpu_request="none", partition="booster", cpu_partition="cpu")
    assert whole.options(1) == {"slurm_partition": "booster"}
    assert whole.options(0) == {"slurm_partition": "cpu"}


def test_wall_time_has_its_margin_and_ends_at_the_limit() -> None:
    cluster = Cluster(margin=2.0, warning_s=60)
    assert cluster.runtime(3600, 1440) == 10 + 2 * 60 + 1
    assert cluster.runtime(10**6, 1440) == cluster.runtime(None, 1440) == 1440
    assert Cluster(time_limit="1-02:30:00").limit() == 1590


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "imagenet", "dogs"])
def test_what_a_plan_takes_for_the_number_of_images(name: str) -> None:
    """As the datasets' own pages and papers give them; the digits' as scikit-learn has them."""
    published = {
        "cifar10": (50_000, 10_000),
        "cifar100": (50_000, 10_000),
        "imagenet": (1_281_167, 50_000),
        "dogs": (12_000, 8_580),
    }
    found = find_dataset(name).images
    assert found is not None
    if name == "digits":
        from sklearn.datasets import load_digits

        assert sum(found) == len(load_digits().target)
    else:
        assert found == published[name]


def test_hours_from_macs_are_the_arithmetic_they_say() -> None:
    """ResNet-50 on ImageNet: 100 epochs of 1,281,167 images at 3.86 GMACs as counted, by hand."""
    study = load_study(ROOT / "config/imagenet.yaml")
    cell = next(c for c in study.cells if (c.backbone, c.attention) == ("resnet50", "none"))
    planner = Planner(study, gpu="NVIDIA A100-SXM4-80GB")
    found = planner.estimate(cell)
    assert (found.source, found.params) == ("from MACs", 25_557_032)
    flops = 100 * 3_858_925_568 * (6 * 1_281_167 + 2 * 50_000)
    assert found.seconds == pytest.approx(flops / (0.2 * 312e12), rel=0.07)
    assert PEAKS["L40S"] != PEAKS["L4"]
    assert (
        Planner(study, gpu="L40S").estimate(cell).seconds
        != Planner(study, gpu="L4").estimate(cell).seconds
    )


def test_a_measured_speed_takes_the_place_of_macs(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny["compute"] = {"device": "auto"}
    study = validate(Study, tiny, "tiny.yaml")
    assert {line.sources["--"] for line in Planner(study).lines()} == {4}
    assert "GPU hours --" in summary(Planner(study))
    first = next(iter(study.trainings.values()))
    first.record.parent.mkdir(parents=True)
    run = {"device": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "wall_s": 7200}
    first.record.write_text(json.dumps({"run": run}))
    again = validate(Study, tiny, "tiny.yaml")
    (line,) = Planner(again, gpu="h100").lines()
    # the other seed of its model; the other model's two are not known
    assert line.sources == {"measured": 1, "--": 2}
    (line,) = Planner(again, gpu="A100").lines()
    assert line.sources == {"--": 3}
    first.record.write_text(json.dumps({"run": run | {"device_name": "NVIDIA L40S"}}))
    (line,) = Planner(again, gpu="L40S").lines()
    assert line.sources == {"measured": 1, "--": 2}
    (line,) = Planner(again, gpu="L4").lines()
    assert line.sources == {"--": 3}


def test_a_plan_takes_the_median_of_a_models_seeds(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them was trained on a machine that was busy with others."""
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0] |= {"attentions": ["none"], "seeds": [0, 1, 2, 3]}
    *trained, left = validate(Study, tiny, "tiny.yaml").trainings.values()
    for cell, wall_s in zip(trained, (5000, 100, 120), strict=True):
        cell.record.parent.mkdir(parents=True, exist_ok=True)
        run = {"device": "cpu", "device_name": "a processor", "wall_s": wall_s}
        cell.record.write_text(json.dumps({"run": run}))
    planner = Planner(validate(Study, tiny, "tiny.yaml"), on_cpu=True)
    assert planner.estimate(left).seconds == 120


def test_plan_names_the_gpus_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "config/cifar100.yaml"), "--gpu", "abacus"]) == 1
    assert "unknown GPU 'abacus': known are A100" in capsys.readouterr().err
    assert main(["plan", str(ROOT / "config/cifar100.yaml"), "--gpu", "H100"]) == 0
    out = capsys.readouterr().out
    assert "224 cells, 0 done" in out
    assert "wall time on so many H100s at once" in out


def test_status_reads_what_the_trainings_wrote(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    study = load_study("tiny.yaml")
    done, running, failed, waiting = study.trainings.values()
    assert main(["train", "tiny.yaml", done.id]) == 0
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURMD_NODENAME", "gpu07")
    reached = {"epoch": 3, "epochs": 9, "top1_accuracy": 51.25, "left_s": 3720.0}
    write_status(running.status, "running", **reached)
    write_status(failed.status, "failed", "stopped")
    log = Path(f"logs/tiny/{failed.id}.log")
    log.parent.mkdir(parents=True)
    log.write_text("a line\nattngrid: error: out of memory\n\n")
    capsys.readouterr()
    assert main(["status", "tiny.yaml"]) == 0
    out = capsys.readouterr().out
    assert "study tiny: 4 cells: 1 done, 1 running, 1 waiting, 1 failed" in out
    assert (
        f"running: {running.id}: epoch 3/9, top-1 51.2 %, 1 h 02 min left, on gpu07, job 77" in out
    )
    assert f"failed: {failed.id}: attngrid: error: out of memory" in out
    assert "1 cells in 1 attempts, 0 retries" in out
    assert waiting.id not in out


def test_a_cell_that_has_its_record_is_not_trained_again(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    cell = next(iter(load_study("tiny.yaml").trainings.values()))
    for _ in range(2):
        assert main(["train", "tiny.yaml", cell.id]) == 0
    assert len(read_attempts(cell.status)) == 1


@pytest.mark.slow
def test_each_cell_has_a_gpu_of_its_own_on_one_machine(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three that are none: of cells that ran at once no two had the same."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,GPU-8")
    tiny["compute"] = {"device": "auto"}
    tiny["recipes"]["tiny"]["epochs"] = 3
    (clone / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    profile = ("--profile", "workflow/profiles/gpu", "--resources", "gpu=3")
    done = snakemake(clone, "records", "--cores", "4", *profile, "--configfile", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    study = load_study(clone / "tiny.yaml")
    made = [read_attempts(clone / cell.status)[0] for cell in study.trainings.values()]
    assert {one["devices"] for one in made} <= {"3", "5", "GPU-8"}
    beside = [
        (a["devices"], b["devices"])
        for a, b in combinations(made, 2)
        if max(a["began"], b["began"]) < min(a["heard"], b["heard"])
    ]
    assert beside
    assert all(a != b for a, b in beside)


@pytest.mark.slow
def test_a_diverged_cell_is_not_tried_again(
    clone: Path, snakemake: Snakemake, tiny: dict[str, Any]
) -> None:
    tiny["grid"][0] |= {"attentions": ["none"], "seeds": [0]}
    tiny["recipes"]["tiny"] |= {"learning_rate": 1e20, "epochs": 3}
    (clone / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    arguments = ("--cores", "1", "--retries", "2", "--configfile", "tiny.yaml")
    done = snakemake(clone, "records", *arguments)
    assert done.returncode != 0
    (cell,) = load_study(clone / "tiny.yaml").trainings.values()
    assert len(read_attempts(clone / cell.status)) == 1
    assert "not tried again" in (clone / f"logs/tiny/{cell.id}.log").read_text()
    # another run does
    snakemake(clone, "records", *arguments)
    assert len(read_attempts(clone / cell.status)) == 2
