"""The commands, code and numbers of the README and of ARTIFACT.md are right."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import attngrid
from attngrid.core.validation import validate
from attngrid.study.schema import Study, load_study
from made_up import ROOT

README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_the_module_of_the_readme_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "\nclass " in c]
    (tmp_path / "my_module.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    (line,) = [ln for ln in README.splitlines() if ln.strip().startswith("attentions: [")]
    tiny["grid"][0]["attentions"] = re.findall(r"[\w.:]+", line.partition("[")[2])
    cells = validate(Study, tiny, "config.yaml").cells
    assert len({cell.attention for cell in cells}) == 6
    for cell in cells:
        model = attngrid.create_model(**cell.model_arguments())
        assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_the_commands_name_files_and_targets_that_exist() -> None:
    for name in set(re.findall(r"config/\w+\.yaml", README)) - {"config/cluster.yaml"}:
        load_study(ROOT / name)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"\bmake ([a-z]+)\b(?=  |`)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for name in set(re.findall(r"`((?:docs|reference|workflow|src)/[\w./]+)`", README)):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\((docs/[\w./]+)\)", README):
        assert (ROOT / name).is_file(), name


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"\b[A-Z]{2,}_[A-Z]{2,}\b|TODO|XXX", README)


def test_the_counts_of_the_readme_are_the_counted_ones() -> None:
    from attngrid.analysis.frames import read_frame

    frame = read_frame(ROOT / "results/complexity.csv")
    frame = frame[(frame["backbone"] == "resnet50") & (frame["input_size"] == 224)]
    rows = frame.set_index("attention")
    before, after = rows.loc["none"], rows.loc["csm"]
    params = f"{before['params'] / 1e6:.2f} → {after['params'] / 1e6:.2f} M parameters"
    macs = f"{before['macs'] / 1e9:.2f} → {after['macs'] / 1e9:.2f} GMACs"
    assert f"{params}, {macs}" in README
    for name in ("imagenet", "cifar100"):
        study = load_study(ROOT / f"config/{name}.yaml")
        assert f"| `config/{name}.yaml` | {len(study.trainings)} |" in README


def finding(question: str) -> str:
    """The measured figures of a row of the README's findings."""
    (row,) = [line for line in README.splitlines() if line.startswith("|") and question in line]
    return row.split("|")[3].strip()


def test_the_findings_of_the_readme_are_the_recorded_ones() -> None:
    from attngrid.analysis.frames import read_frame

    claims = read_frame(ROOT / "results/claims.csv").set_index("claim")
    counts = claims[claims.index.str.startswith("cbam_table4_counts/")]
    equal = int((counts["counted"] == counts["published"]).sum())
    assert finding("of CBAM's Table 4") == f"{equal} of {len(counts)} figures, to the last digit"
    for claim, question in (
        ("cbam_lightweight", "CBAM lightweight"),
        ("srap_perceptron", "SRAP's single perceptron"),
    ):
        lines = claims[claims.index.str.startswith(f"{claim}/")]["counted"].str.split(expand=True)
        more = 100 * (lines[0].astype(float) / lines[1].astype(float) - 1)
        assert finding(question) == f"{more.min():+.2f} % to {more.max():+.2f} %"
    rows = read_frame(ROOT / "tables/cifar20.claims.csv").set_index("claim")
    for claim, question in (
        ("csm_figure6_cifar100/resnet18/top1_error", "Is channel attention first"),
        ("csm_table2_baseline/resnet18/top1_error", "Does CSM beat the baseline"),
        ("cbam_table4_se/resnet18/top1_error", "Does SE beat the baseline"),
    ):
        gain, low, high = rows.loc[claim, ["gain", "gain_low", "gain_high"]]
        signs = "" if low > 0 else "+"
        assert finding(question).replace("95 %: ", "") == (
            f"{gain:+.1f} points ({low:.1f} to {high:{signs}.1f})"
        )
    counted = read_frame(ROOT / "results/complexity.csv")
    counted = counted[counted["input_size"] == 224].pivot_table("macs", "backbone", "attention")
    cost = read_frame(ROOT / "results/cost.csv")
    cost = cost[(cost["attention"] == "cbam") & (cost["precision"] == "bfloat16")]
    cost = cost[~cost["backbone"].str.startswith("mobilenet")].set_index("backbone")
    macs = 100 * (counted["cbam"] / counted["none"] - 1)[cost.index].max()
    low, high = 100 * (cost["latency_ratio"] - 1).agg(["min", "max"])
    assert finding("mean little time") == (
        f"at most {math.ceil(macs * 10) / 10} % more MACs, {low:.0f} to {high:.0f} % more latency"
    )


def test_the_artifacts_commands_and_figures_are_there() -> None:
    import shlex

    from attngrid.analysis.frames import read_frame
    from attngrid.cli.main import parser

    text = (ROOT / "ARTIFACT.md").read_text("utf-8")
    for name in set(re.findall(r"`((?:config|docs|reference|results|tables)/[\w./]+\w)`", text)):
        assert (ROOT / name).is_file() or "demo" in name, name
    commands = re.findall(r"`(attngrid [^`]+)`", text)
    assert len(commands) >= 5
    for command in commands:
        parser().parse_args(shlex.split(command)[1:])
    rows = read_frame(ROOT / "results/claims.csv").set_index("claim")
    ours, than = rows.loc["csm_lightweight/resnet50/params", "counted"].split()
    assert f"{ours} against {than} parameters" in text
