"""Estimated hours, and the options for Slurm, without a Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from statsmodels.stats.power import TTestIndPower

from attngrid.cli.main import main
from attngrid.core.errors import ConfigError
from attngrid.core.validation import validate
from attngrid.data.registry import find_dataset
from attngrid.study import cluster as cluster_module
from attngrid.study.cluster import Cluster, require_plain
from attngrid.study.plan import Planner, number, summary, time_left
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
    cluster_module._sinfo.cache_clear()
    assert Cluster().limit() == Cluster(partition="free").limit(ask=True) == 1440
    for partition, minutes in {None: 30, "short": 30, "long,free": 1440, "long,short": 30}.items():
        assert Cluster(partition=partition).limit(ask=True) == minutes


def test_a_sinfo_that_does_not_answer_is_asked_again_and_then_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guessed limit above the partition's would leave jobs in the queue for ever."""
    sinfo = tmp_path / "sinfo"
    sinfo.write_text(f"#!/bin/sh\necho x >>{tmp_path}/calls\necho 'no contact' >&2\nexit 1\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(cluster_module, "SINFO_PAUSES_S", (0, 0, 0))
    cluster_module._sinfo.cache_clear()
    with pytest.raises(ConfigError, match=r"sinfo, .*: no contact; .* set time_limit in"):
        Cluster().limit(ask=True)
    assert (tmp_path / "calls").read_text().count("x") == 3


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


def test_reading_images_decides_where_it_is_slower_than_the_network() -> None:
    """ImageNet for 100 epochs, each with its test images, at 270 images a second and worker."""
    study = load_study(ROOT / "config/imagenet.yaml")
    cells = {c.backbone: c for c in study.cells if c.attention == "none"}
    images = 100 * (1_281_167 + 50_000)

    def seconds(workers: int, gpus: int = 1, **more: Any) -> float:
        compute = {"workers": workers, "gpus": gpus, "precision": "bfloat16", "threads": 8}
        content = study.model_dump(mode="json") | {"compute": compute}
        planner = Planner(validate(Study, content, "imagenet.yaml"), gpu="H100", **more)
        found = planner.estimate(cells["resnet18"])
        assert found.source == "reading images"
        # GPU hours are those of all GPUs of a cell
        assert found.hours == found.seconds * gpus / 3600
        return found.seconds

    for workers in (1, 4, 8):
        assert seconds(workers) == pytest.approx(images / (270 * workers))
    assert seconds(4, gpus=4) == pytest.approx(images / (270 * 16))
    # three workers at most run on three cores
    assert seconds(4, cores=3) == pytest.approx(images / (270 * 3))
    # without workers, the network waits for the images: its minimum is 20 ms a step
    network_s = 100 * (1_281_167 * 0.02 + 50_000 * 0.02 / 3) / 256
    assert seconds(0) == pytest.approx(images / 270 + network_s)
    # the network of ResNeXt-101 is slower
    assert Planner(study, gpu="A100").estimate(cells["resnext101_32x4d"]).source == "from MACs"


def test_the_wall_time_of_a_job_is_long_enough_to_read_the_images() -> None:
    """ResNet-18 on an H100: the network takes 2.8 h, and reading the images 11.4 h."""
    study = load_study(ROOT / "config/imagenet.yaml")
    cell = next(c for c in study.cells if (c.backbone, c.attention) == ("resnet18", "none"))
    planner = Planner(study, gpu="H100")
    assert planner.runtime(cell.id) >= 100 * 1_331_167 / (270 * 12) / 60


def test_a_record_with_other_workers_or_gpus_gives_no_time(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0] |= {"dataset": "imagenet", "recipes": ["imagenet_100ep"], "options": {}}
    tiny |= {"compute": {"device": "auto", "workers": 8}, "recipes": {}}
    study = validate(Study, tiny, "tiny.yaml")
    first = next(iter(study.trainings.values()))
    first.record.parent.mkdir(parents=True)
    run = {"device": "cuda", "device_name": "A100", "wall_s": 7200, "processes": 1, "workers": 8}
    for change, source in (({}, "measured"), ({"workers": 16}, ""), ({"processes": 4}, "")):
        first.record.write_text(json.dumps({"run": run | change}))
        assert (Planner(study).estimate(first).source == "measured") == (source == "measured")


def test_measured_times_replace_estimates_from_macs(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny["compute"] = {"device": "auto"}
    study = validate(Study, tiny, "tiny.yaml")
    assert "4 cells, 0 done; GPU hours not known yet" in summary(Planner(study))
    first = next(iter(study.trainings.values()))
    first.record.parent.mkdir(parents=True)
    run = {"device": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "wall_s": 7200}
    first.record.write_text(json.dumps({"run": run}))
    # known for the other seed of this model, unknown for the two cells of the other model
    known = "4 cells, 1 done; about 2 GPU hours left ({}: 1 measured, 2 unknown)"
    assert known.format("h100") in summary(Planner(study, gpu="h100"))
    assert "GPU hours not known" in summary(Planner(study, gpu="A100"))
    first.record.write_text(json.dumps({"run": run | {"device_name": "NVIDIA L40S"}}))
    assert known.format("L40S") in summary(Planner(study, gpu="L40S"))
    assert "GPU hours not known" in summary(Planner(study, gpu="L4"))


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


# Tiers, and what they can decide


def test_tiers_add_seeds_and_change_no_cell() -> None:
    """The cells of the ImageNet grid before it had tiers: seed 0 of 95 networks."""
    study = load_study(ROOT / "config/imagenet.yaml")
    content = study.model_dump(mode="json", exclude={"tier"})
    content["grid"] = [
        {**block, "seeds": [0]} for block in content["grid"] if "1" in block["seeds"]
    ]
    plain = validate(Study, content, "imagenet.yaml")
    assert [*study.trainings] == [*plain.trainings]
    assert len(study.trainings) == 95
    every = validate(Study, study.model_dump(mode="json", exclude={"tier"}), "imagenet.yaml")
    assert [*every.trainings][:95] == [*plain.trainings]
    assert every.tiers == [1, 2, 3]
    tier2 = set(every.cells_to(2)) - set(every.cells_to(1))
    assert {(cell.backbone, cell.seed) for cell in tier2} == {("resnet50", 1), ("resnet50", 2)}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seeds", {}, r"grid\.0\.seeds: found {}; needs at least 1 item"),
        ("seeds", {0: [1]}, r"grid\.0\.seeds\.0: found 0; needs to be greater than 0"),
        ("seeds", {"a": [1]}, r"grid\.0\.seeds\.a: found 'a'; needs to be a valid integer"),
        ("seeds", {2: []}, r"grid\.0\.seeds\.2: found \[\]; needs at least 1 item"),
        ("tier", 2, r"tier: found 2; the grid has \[1\]"),
    ],
)
def test_a_wrong_tier_is_one_line_of_error(
    tiny: dict[str, Any], key: str, value: Any, message: str
) -> None:
    (tiny if key == "tier" else tiny["grid"][0])[key] = value
    with pytest.raises(ConfigError, match=rf"^tiny\.yaml: {message}$"):
        validate(Study, tiny, "tiny.yaml")


def test_plan_says_what_each_tier_decides(capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds by statsmodels' power of the t-test, at 0.05 divided by the 32 claims of Table 4."""
    assert main(["plan", str(ROOT / "config/imagenet.yaml"), "--gpu", "H100"]) == 0
    out = capsys.readouterr().out
    rows = {
        line.split()[0]: line.split()
        for line in out.splitlines()
        if "/" in line.strip().split(" ")[0]
    }
    for backbone, gain in (("resnet50", 1.42), ("resnext50_32x4d", 0.94), ("resnet18", 0.19)):
        name, _, printed, std, seeds, *_ = rows[f"cbam_table4_se/{backbone}/top1_error"]
        assert (printed, std) == (f"+{gain}", "0.18"), name
        powers = [
            TTestIndPower().power(gain / 0.18, n, alpha=0.05 / 32)
            for n in (int(seeds) - 1, int(seeds))
        ]
        assert powers[0] < 0.8 <= powers[1]
    assert "arXiv:1706.02677, Table 2b" in out
    # one seed decides only printed top-1 errors: 24 of Table 4, 16 of Tables I and II, one of MAF
    assert "tier 1, of this grid: 95 cells, " in out
    assert " hours, can decide 41 of 131 claims\n" in out
    ends = {name: " ".join(row[-3:]) for name, row in rows.items()}
    assert ends["cbam_table4_values/*/top1_error"].endswith("in tier 1")
    assert ends["cbam_table4_values/*/top5_error"].endswith("in tier 2")
    assert ends["cbam_table4_se/resnet50/top1_error"].endswith("in tier 2")
    assert ends["cbam_table4_cbam/resnet18/top1_error"].endswith(" no")


def test_plan_tries_a_users_modules(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    source = "from torch import nn\nclass Mean(nn.Module):\n    def __init__(self, channels):\n"
    source += (
        "        super().__init__()\n    def forward(self, x):\n        return x.mean((2, 3))\n"
    )
    Path("mine.py").write_text(source)
    tiny["grid"][0]["attentions"] = ["none", "mine.py:Mean"]
    Path("study.yaml").write_text(yaml.safe_dump(tiny))
    assert main(["plan", "study.yaml"]) == 1
    error = capsys.readouterr().err
    assert "attention 'mine.py:Mean' in stage 1, at 4 channels: changes the shape" in error
    Path("mine.py").write_text(
        source.replace("x.mean((2, 3))", "\\\n            x + x[:, :, :1, 1:]")
    )
    assert main(["plan", "study.yaml"]) == 1
    error = capsys.readouterr().err
    assert "The size of tensor a" in error
    assert "(mine.py, line 7)" in error


def test_claims_about_models_that_the_grid_does_not_train_are_named(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    claim = {"kind": "better", "statement": "se wins", "family": "ours", "better": "se"}
    claims = [
        claim | {"id": "here", "backbones": ["resnet18"], "than": "none"},
        claim | {"id": "beats_bam", "backbones": ["resnet18"], "than": "bam"},
        claim | {"id": "deeper", "backbones": ["resnet34"], "than": "none"},
    ]
    families = {"ours": {"smallest_effect": 1.0, "why": "a test"}}
    Path("claims.yaml").write_text(yaml.safe_dump({"families": families, "claims": claims}))
    tiny["grid"][0]["attentions"] = ["none", "se"]
    Path("study.yaml").write_text(yaml.safe_dump(tiny | {"claims": "claims.yaml"}))
    assert main(["plan", "study.yaml"]) == 0
    out = capsys.readouterr().out
    told = "will not be judged, because the grid does not train"
    assert f"claims.yaml: beats_bam {told} resnet18 with bam\n" in out
    assert f"claims.yaml: deeper {told} resnet34 with se and resnet34 with none\n" in out
    assert out.count(told) == 2


def test_plan_lists_the_known_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "config/cifar100.yaml"), "--gpu", "abacus"]) == 1
    assert "unknown GPU 'abacus': known are A100" in capsys.readouterr().err
    assert main(["plan", str(ROOT / "config/cifar100.yaml"), "--gpu", "H100"]) == 0
    out = capsys.readouterr().out
    assert "254 cells, 0 done" in out
    assert "CIFAR-100, 32×32, cifar_200ep, bfloat16    137     0" in out
    assert "wall time by the number of H100s" in out


def test_the_time_left_of_a_run_follows_the_work_that_it_has_done(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell of ten times as many epochs is ten times as much work; older records are no work."""
    monkeypatch.chdir(tmp_path)
    tiny["recipes"]["long"] = tiny["recipes"]["tiny"] | {"epochs": 10}
    tiny["grid"][0] |= {"attentions": ["none"], "recipes": ["tiny", "long"], "seeds": [0, 1, 2]}
    study = validate(Study, tiny, "tiny.yaml")
    short = [cell for cell in study.cells if cell.recipe_name == "tiny"]
    short[0].record.parent.mkdir(parents=True)
    began = time.time() - 60
    assert time_left(Planner(study), began) is None
    for cell, age_s in zip(short, (100, 10, 5), strict=True):
        cell.record.touch()
        os.utime(cell.record, (time.time() - age_s,) * 2)
    # equal work for each cell until the models are counted: 2 cells in 60 s, 3 are left
    assert time_left(Planner(study), began) == pytest.approx(90, abs=1)
    counts = "backbone,attention,stem,num_classes,input_size,options,params,macs"
    row = ",".join(map(str, short[0].model_key))
    (study.results / "complexity.csv").write_text(f"{counts}\n{row},1000,1000000\n")
    # 2 of 1 epoch in 60 s, 3 of 10 epochs are left
    assert time_left(Planner(study), began) == pytest.approx(900, abs=10)
