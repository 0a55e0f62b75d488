"""Cost measurement: known waits and memory are measured, and no measured row is lost."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from attngrid.cli.main import main
from attngrid.core.errors import UnknownNameError
from attngrid.core.validation import validate
from attngrid.measure.complexity import Model
from attngrid.measure.cost import Network, models_to_measure, time_rounds
from attngrid.measure.cost_file import COLUMNS, MACHINE, identity, keep_cost, read_costs
from attngrid.render.cost import added_macs, draw_costs
from attngrid.render.description import load_description
from attngrid.render.tables import build_table
from attngrid.study.counted import CostGrid, CountedGrid
from cli.test_imports import imported
from made_up import ROOT, enter_study_folder

WAIT_S, MEGABYTES, BATCH = 0.03, 200, 4

# It has two sites for modules: a forward pass waits at both, or holds memory at one.
BACKBONE = """
import torch
from torch import nn
from attngrid.models.placement import Sites

class Two(nn.Module):
    def __init__(self, sites: Sites, *, num_classes: int, stem: str, width: float):
        super().__init__()
        self.stages = nn.Sequential(
            nn.Conv2d(3, 4, 3), sites.any_block(4, 1, stages=2),
            nn.Conv2d(4, 4, 3), sites.any_block(4, 2, stages=2),
        )
        self.classifier = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.classifier(self.stages(x).mean((2, 3)))
"""
MODULES = f"""
import os, time
import torch
from torch import nn

class Waits(nn.Module):
    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x):
        time.sleep({WAIT_S / 2})
        return x

class Holds(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        if not self.training or x.shape[2] < 10:
            return x
        return x + 0 * (self.scale * torch.ones({MEGABYTES} * 250_000)).sum()  # kept for backward

class Raises(nn.Module):
    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x):
        if len(x) == {BATCH}:
            raise ValueError("no such thing\\nand more")
        return x

class Dies(Raises):
    def forward(self, x):
        if len(x) == {BATCH}:
            os._exit(9)
        return x

class Hangs(Raises):
    def forward(self, x):
        if len(x) == {BATCH}:
            open("hangs", "w").close()
            time.sleep(1000)
        return x
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter_study_folder(tmp_path, monkeypatch)
    Path("config").symlink_to(ROOT / "config")
    Path("two.py").write_text(BACKBONE)
    Path("modules.py").write_text(MODULES)
    return tmp_path


def grid(*attentions: str) -> list[str]:
    """Write a configuration of these modules; return the command that measures it."""
    names = [name if name == "none" else f"modules.py:{name}" for name in attentions]
    block = {"backbones": ["two.py:Two"], "attentions": names}
    size = {"stem": "cifar", "num_classes": 10, "input_size": 12}
    content = {"models": [block | size], "device": "cpu", "batch": BATCH, "seconds": 0}
    Path("cost.yaml").write_text(yaml.safe_dump(content))
    return ["cost", "cost.yaml", "--threads", "1"]


def rows() -> dict[str, dict[str, str]]:
    return {row["attention"].rpartition(":")[2]: row for row in read_costs()}


class Slow:
    """A fake network whose first call is slow."""

    def __init__(self, device: str) -> None:
        self.device, self.requested = torch.device(device), list[int]()

    def seconds(self, name: str, calls: int) -> float:
        self.requested.append(calls)
        return 0.7 if len(self.requested) == 1 else 0.01


@pytest.mark.parametrize(("device", "first"), [("cpu", 1), ("cuda", 3)])
def test_a_slow_first_call_does_not_change_the_number_of_calls_of_a_sample(
    device: str, first: int
) -> None:
    networks = [Slow(device), Slow(device)]
    networks[1].seconds("training", 1)  # its first, slow call
    networks[1].requested[:] = [1, 1]
    time_rounds(networks, "training", CostGrid(rounds=5, seconds=0))  # type: ignore[arg-type]
    assert networks[0].requested == [first, 1, *[20] * 5]
    assert networks[1].requested == [1, 1, first, 1, *[20] * 5]


def test_a_measured_step_frees_the_gradients_of_the_previous_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The training loop does the same, so the measured memory is comparable."""
    small = Model("resnet18", "none", "cifar", 10, 8, {"width": 1 / 16})
    network = Network(small, CostGrid(device="cpu", batch=2), torch.device("cpu"))
    network.training()
    held: list[bool] = []
    forward = network.network

    def watched(images: torch.Tensor) -> torch.Tensor:
        held.extend(p.grad is not None for p in network.model.parameters())
        return forward(images)

    monkeypatch.setattr(network, "network", watched)
    network.training()
    assert held
    assert not any(held)


@pytest.mark.slow
def test_the_measurement_finds_a_known_wait_and_known_memory(folder: Path) -> None:
    assert main(grid("none", "Waits", "Holds")) == 0
    none, waits, holds = (rows()[name] for name in ("none", "Waits", "Holds"))
    assert float(waits["latency_ms"]) >= 1e3 * WAIT_S
    for name in ("inference", "training"):
        images_per_s = f"{name}_images_per_s"
        assert float(waits[images_per_s]) <= BATCH / WAIT_S
        assert float(none[images_per_s]) > float(waits[images_per_s])
    for name in ("latency", "inference", "training"):
        assert float(waits[f"{name}_ratio"]) > 1
        assert float(none[f"{name}_ratio"]) == 1
        assert float(waits[f"{name}_ratio_q1"]) <= float(waits[f"{name}_ratio"])
    # at 10×10 positions, one site holds the ones and their product: twice the memory
    held = float(holds["peak_memory_mb"]) - float(none["peak_memory_mb"])
    assert 2 * MEGABYTES * 0.95 < held < 2 * MEGABYTES * 1.5
    assert all(int(row["rounds"]) >= 5 for row in (none, waits, holds))


@pytest.mark.slow
def test_a_model_that_cannot_be_measured_is_named_and_the_others_are_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(grid("Raises", "Dies", "none")) == 1
    assert set(rows()) == {"none"}
    err = capsys.readouterr().err
    assert "Two + Raises, 12×12: ValueError: no such thing\n" in err
    assert "Two + Dies, 12×12: its process was ended" in err
    assert "2 models were not measured" in err


@pytest.mark.slow
def test_after_a_kill_rows_are_kept_no_process_is_left_and_the_next_run_continues(
    folder: Path,
) -> None:
    process = kill_while_measuring(grid("none", "Hangs"))
    try:
        process.wait(30)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    kept = Path("results/cost.csv").read_text("utf-8")
    assert [*rows()] == ["none"]
    assert main(grid("none", "Holds")) == 0
    assert Path("results/cost.csv").read_text("utf-8").startswith(kept)
    assert [*rows()] == ["none", "Holds"]


def kill_while_measuring(arguments: list[str]) -> psutil.Process:
    """Kill a run that measures ``Hangs``; return its measuring process."""
    command = [sys.executable, "-m", "attngrid.cli", *arguments]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 120
        while not Path("hangs").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert Path("hangs").exists()
        children = psutil.Process(run.pid).children(recursive=True)
        (process,) = (child for child in children if "spawn_main" in str(child.cmdline()))
        run.kill()
    assert isinstance(process, psutil.Process)
    return process


def row(attention: str = "none", **changes: Any) -> dict[str, Any]:
    """A row of another machine."""
    model = {"backbone": "resnet18", "attention": attention, "stem": "cifar", "num_classes": 100}
    machine = dict(zip(MACHINE, ("A GPU", "cuda", 8, "bfloat16", 64, "2.14.1", ""), strict=True))
    figures = dict.fromkeys(COLUMNS, 1.0)
    return {**figures, **model, "input_size": 32, "options": "", **machine, **changes}


@pytest.mark.slow
def test_a_machine_replaces_its_own_rows_only(folder: Path) -> None:
    other = row(attention="se", latency_ms="0.10000000000000001")
    keep_cost(other)
    before = Path("results/cost.csv").read_text("utf-8")
    assert main(grid("none")) == 0
    first = read_costs()[1]
    assert main([*grid("none"), "--again"]) == 0
    assert Path("results/cost.csv").read_text("utf-8").startswith(before)
    _, again = read_costs()
    assert identity(again) == identity(first)
    assert again["measured"] >= first["measured"]


def test_every_column_of_a_machine_separates_rows(folder: Path) -> None:
    for change in (
        {},
        {"device_name": "another"},
        {"threads": 4},
        {"precision": "float32"},
        {"batch": 32},
        {"torch": "2.15"},
        {"switches": "compile=True"},
    ):
        keep_cost(row(**change))
    assert len(read_costs()) == 7
    keep_cost(row(latency_ms=5.0))
    assert [r["latency_ms"] for r in read_costs()] == ["5.0", *["1.0"] * 6]


def table(name: str) -> Any:
    description = Path("workflow/tables") / f"{name}.yaml"
    import pandas as pd

    no_study = pd.DataFrame(columns=["backbone", "attention", "condition"])
    return build_table(None, no_study, description)


def test_machines_share_no_column_and_missing_measurements_are_dashes(folder: Path) -> None:
    keep_cost(row(latency_ms=0.5))
    keep_cost(row("se", latency_ms=0.75, latency_ratio=1.5, peak_memory_mb=2500.0))
    keep_cost(row(device_name="A CPU", device="cpu", precision="float32", latency_ms=80))
    cost_table = table("cost_cifar")
    groups = [title for title, _ in cost_table.groups]
    assert groups == [
        "Counted",
        "Measured: A GPU, bfloat16",
        "Measured: A CPU, float32",
    ]
    shared = "Counted: 32×32, 100 classes. Measured: 8 threads, batch 64, torch 2.14.1."
    assert cost_table.caption.endswith(shared)
    lines = {r.label: [value.text for value in r.values] for r in cost_table.rows}
    assert lines["ResNet-18"][2:4] == ["0.50", "1.00"]
    assert lines["ResNet-18"][9:11] == ["80.00", "1.00"]
    assert lines["ResNet-18 + SE"][2:4] == ["0.75", "1.50"]
    assert lines["ResNet-18 + SE"][8:] == ["2.50", *["--"] * 7]
    # cam is an alias of se
    assert lines["ResNet-18 + CAM (= SE)"][2:] == lines["ResNet-18 + SE"][2:]
    assert set(lines["ResNet-18 + CBAM"][2:]) == {"--"}


@pytest.mark.slow
def test_tables_and_figure_say_that_nothing_was_measured(folder: Path) -> None:
    assert imported("cost", "config/cost.yaml", "--render-only").isdisjoint({"torch", "scipy"})
    text = Path("tables/cost.md").read_text("utf-8")
    assert "Measured: nothing yet." in text
    figure = draw_costs([], {})
    assert [t.get_text() for axis in figure.axes for t in axis.texts] == ["nothing measured yet"]
    assert all(Path(f"figures/cost.{kind}").is_file() for kind in ("pdf", "png"))


def test_the_figure_has_a_panel_a_question_and_a_row_a_module(folder: Path) -> None:
    costs = [{k: str(v) for k, v in row(name).items()} for name in ("none", "se", "cbam", "csm_r8")]
    costs[1] |= {"training_ratio": "1.12", "training_ratio_q1": "1.1", "training_ratio_q3": "1.2"}
    with (ROOT / "results/complexity.csv").open(encoding="utf-8") as stream:
        macs = {
            r["attention"]: int(r["macs"])
            for r in csv.DictReader(stream)
            if (r["backbone"], r["stem"]) == ("resnet18", "cifar")
        }
    figure = draw_costs(costs, added_macs())
    *_, training = figure.axes
    assert len(figure.axes) == 3
    # variants such as csm_r8 are in the table only
    assert [label.get_text() for label in training.get_yticklabels()] == ["SE", "CBAM"]
    drawn = {m: [x.get_xydata()[0] for x in training.lines if x.get_marker() == m] for m in "o|"}
    assert [tuple(point) for point in drawn["o"]] == [(pytest.approx(12.0), 0), (0.0, 1)]
    expected = [100 * (macs[name] / macs["none"] - 1) for name in ("se", "cbam")]
    assert [point[0] for point in drawn["|"]] == pytest.approx(expected)
    quartiles = [list(x.get_xdata()) for x in training.lines if len(x.get_xdata()) == 2]
    assert pytest.approx([10.0, 20.0]) in quartiles


def test_the_figure_has_at_most_seven_machines_and_a_marker_for_each_family(folder: Path) -> None:
    costs = [
        {k: str(v) for k, v in row("se", device_name=f"GPU {n}", backbone=backbone).items()}
        for n in range(9)
        for backbone in ("resnet18", "resnet34", "mobilenet_v1", "wrn18_1.5")
        if n or backbone == "resnet18"
    ]
    figure = draw_costs(costs, added_macs())
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    families = ["added MACs", "ResNet", "MobileNet", "WRN"]
    assert labels == [*(f"GPU {n}" for n in range(1, 8)), *families]
    points = [line for line in figure.axes[0].lines if line.get_marker() not in ("|", "None")]
    assert len({line.get_color() for line in points}) == 7


def test_every_counted_model_is_measured_and_in_a_table_of_its_size() -> None:
    content = yaml.safe_load((ROOT / "config/complexity.yaml").read_text("utf-8"))
    counted = {
        (b, a, block.input_size)
        for block in validate(CountedGrid, content, "complexity.yaml").models
        for b in block.backbones
        for a in block.attentions
    }
    shown = set()
    for name in ("cost", "cost_cifar"):
        description = load_description(ROOT / f"workflow/tables/{name}.yaml")
        assert description.models is not None
        assert description.counted_at is not None
        size = description.counted_at.input_size
        shown |= {
            (b, a, size) for m in description.models for b in m.backbones for a in m.attentions
        }
    assert shown == counted
    measured = {(m.backbone, m.attention, m.input_size) for m in models_to_measure(CostGrid())}
    assert measured == {(b, "se" if a == "cam" else a, size) for b, a, size in counted}


def test_a_run_can_select_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = models_to_measure(
        CostGrid(
            backbones=("resnet50", "resnet18"), attentions=("none", "se"), datasets=("cifar100",)
        )
    )
    assert [(m.backbone, m.attention, m.input_size) for m in chosen] == [
        ("resnet18", "none", 32),
        ("resnet18", "se", 32),
        ("resnet50", "none", 32),
        ("resnet50", "se", 32),
    ]
    with pytest.raises(UnknownNameError, match="bam_product"):
        models_to_measure(CostGrid(attentions=("bam_product",)))
    assert main(["cost", "config/cost.yaml", "--attentions", "cbmm"]) == 1
    assert "config/cost.yaml: attentions.0: unknown attention 'cbmm'" in capsys.readouterr().err
