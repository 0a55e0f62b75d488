"""Estimated hours, and the options for Slurm, without a Slurm."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from attngrid.cli.main import main
from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.data.registry import find_dataset
from attngrid.study.cluster import Cluster, require_plain
from attngrid.study.plan import Planner, number, summary
from attngrid.study.schema import Study, load_study
from conftest import ROOT

# The cluster


def test_every_key_of_the_profile_has_a_comment() -> None:
    lines = (ROOT / "workflow/profiles/slurm/config.yaml").read_text("utf-8").splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith((" ", "#")):
            assert before.startswith("#"), line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition: ''", r"partition: found ''; needs ASCII characters"),
        ('partition: "a\\nb"', r"partition: found 'a\\nb'; needs ASCII characters"),
        ("account: --wrap=x", "account: found '--wrap=x'; needs ASCII characters, starting with"),
        ("time_limit: 1 day", "time_limit: found '1 day'; needs .days-.hours:minutes:seconds"),
        ("time_limit: 0-12:00", "time_limit: found '0-12:00'; needs .days-.hours"),
        ("gpu_model: a100;reboot", "gpu_model: found 'a100;reboot'"),
        ("gpu_request: --gpus", "gpu_request: found '--gpus'"),
        ("extra: [-x y]", r"extra\.0: found '-x y'; needs an option of sbatch"),
        ("partitoin: gpu", "unknown key 'partitoin': did you mean partition"),
        ("margin: 0", "margin: found 0"),
    ],
)
def test_a_wrong_cluster_file_is_one_line_of_error(text: str, message: str) -> None:
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


def test_a_shell_does_not_change_extra_options() -> None:
    special = "--comment=a 'b' $(touch pwned) `id` ;|&"
    extra = Cluster(extra=(special,)).options(1)["slurm_extra"]
    done = subprocess.run(["sh", "-c", f"printf %s {extra}"], capture_output=True, text=True)
    assert done.stdout == special
    with pytest.raises(ConfigError, match=r"found '/a/\$\(x\)', in which .* would expand '\$'"):
        require_plain(["/a b/'c'", "/a/$(x)"])


def test_a_gpu_is_requested_in_the_form_of_the_site() -> None:
    assert Cluster().options(1) == {"gpu": 1}
    assert Cluster(gpu_model="a100").options(2) == {"gpu": 2, "gpu_model": "a100"}
    assert Cluster(gpu_request="gres", gpu_model="v100").options(1) == {"gres": "gpu:v100:1"}
    implied = Cluster(gpu_request="none", partition="booster", cpu_partition="cpu")
    assert implied.options(1) == {"slurm_partition": "booster"}
    assert implied.options(0) == {"slurm_partition": "cpu"}


def test_wall_time_includes_the_margin_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(margin=2.0, warning_s=60)
    assert cluster.runtime(3600, 1440) == 10 + 2 * 60 + 1
    assert cluster.runtime(10**6, 1440) == cluster.runtime(None, 1440) == 1440
    assert Cluster(time_limit="1-02:30:00").limit() == 1590
    # without time_limit: the shortest limit of the partitions, or the default partition's
    sinfo = tmp_path / "sinfo"
    sinfo.write_text("#!/bin/sh\nprintf 'short*|30:00\\nlong|1-00:00:00\\nfree|infinite\\n'\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert Cluster().limit() == Cluster(partition="free").limit(ask=True) == 1440
    for partition, minutes in {None: 30, "short": 30, "long,free": 1440, "long,short": 30}.items():
        assert Cluster(partition=partition).limit(ask=True) == minutes


# The plan


def test_the_registry_has_the_published_numbers_of_images() -> None:
    """The datasets' pages and papers give these numbers; scikit-learn has 1,797 digits."""
    published = {
        "cifar10": (50_000, 10_000),
        "cifar100": (50_000, 10_000),
        "imagenet": (1_281_167, 50_000),
        "dogs": (12_000, 8_580),
        "digits": (1442, 1797 - 1442),
    }
    assert {name: find_dataset(name).images for name in published} == published


def test_an_estimate_from_macs_equals_a_calculation_by_hand() -> None:
    """ResNet-50 on ImageNet is 100 epochs of 1,281,167 images at 3.86 GMACs."""
    study = load_study(ROOT / "config/imagenet.yaml")
    cell = next(c for c in study.cells if (c.backbone, c.attention) == ("resnet50", "none"))
    found = Planner(study, gpu="NVIDIA A100-SXM4-80GB").estimate(cell)
    assert found.source == "from MACs"
    flops = 100 * 3_858_925_568 * (6 * 1_281_167 + 2 * 50_000)
    assert found.seconds == pytest.approx(flops / (0.2 * 312e12), rel=0.07)
    seconds = [Planner(study, gpu=gpu).estimate(cell).seconds for gpu in ("L40S", "L4")]
    assert seconds[0] != seconds[1]


def test_measured_times_replace_estimates_from_macs(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny["compute"] = {"device": "auto"}
    study = validate(Study, tiny, "tiny.yaml")
    assert "4 cells, 0 done; GPU hours unknown until the models are counted" in summary(
        Planner(study)
    )
    first = next(iter(study.trainings.values()))
    first.record.parent.mkdir(parents=True)
    run = {"device": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "wall_s": 7200}
    first.record.write_text(json.dumps({"run": run}))
    # known for the other seed of this model, unknown for the two cells of the other model
    known = "4 cells, 1 done; about 2 GPU hours left ({}: 1 measured, 2 unknown)"
    assert known.format("h100") in summary(Planner(study, gpu="h100"))
    assert "GPU hours unknown" in summary(Planner(study, gpu="A100"))
    first.record.write_text(json.dumps({"run": run | {"device_name": "NVIDIA L40S"}}))
    assert known.format("L40S") in summary(Planner(study, gpu="L40S"))
    assert "GPU hours unknown" in summary(Planner(study, gpu="L4"))


def test_an_estimate_is_the_median_over_seeds(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One seed is slow, as if its machine had been busy."""
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0] |= {"attentions": ["none"], "seeds": [0, 1, 2, 3]}
    study = validate(Study, tiny, "tiny.yaml")
    *trained, left = study.trainings.values()
    for cell, wall_s in zip(trained, (5000, 100, 120), strict=True):
        cell.record.parent.mkdir(parents=True, exist_ok=True)
        run = {"device": "cpu", "device_name": "a processor", "wall_s": wall_s}
        cell.record.write_text(json.dumps({"run": run}))
    assert Planner(study, on_cpu=True).estimate(left).seconds == 120


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0004, "0"),
        (0.0321, "0.032"),
        (9.96, "10"),
        (99.4, "99"),
        (99.6, "100"),
        (1234.5, "1,234"),
    ],
)
def test_a_number_has_two_digits_and_no_exponent(value: float, expected: str) -> None:
    assert number(value) == expected


def test_plan_lists_the_known_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "config/cifar100.yaml"), "--gpu", "abacus"]) == 1
    assert "unknown GPU 'abacus': known are A100" in capsys.readouterr().err
    assert main(["plan", str(ROOT / "config/cifar100.yaml"), "--gpu", "H100"]) == 0
    out = capsys.readouterr().out
    assert "224 cells, 0 done" in out
    assert "CIFAR-100, 32×32, cifar_200ep, bfloat16    129     0" in out
    assert "wall time by the number of H100s" in out
