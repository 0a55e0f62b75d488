"""Counts against CBAM's printed Table 4, against torch's own counter, and by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import attngrid
from attngrid.cell import COUNTED
from attngrid.complexity import Model, UncountedOperatorError, count, models_of_grid, table
from attngrid.config import CountedGrid, read_yaml, validate
from attngrid.evidence.frames import read_frame

ROOT = Path(__file__).resolve().parent.parent

with (ROOT / "reference/cbam_table4.csv").open(encoding="utf-8") as stream:
    TABLE_4 = list(csv.DictReader(stream))


def row_id(row: dict[str, str]) -> str:
    return f"{row['backbone']}-{row['attention']}"


def test_table4_has_24_rows() -> None:
    assert len(TABLE_4) == 24


@pytest.mark.parametrize("row", TABLE_4, ids=row_id)
def test_table4_parameters_and_gflops_match_every_printed_digit(row: dict[str, str]) -> None:
    counted = Model(row["backbone"], row["attention"], "imagenet", 1000, 224).count()
    assert f"{counted['params'] / 1e6:.2f}" == row["params_m"]
    assert f"{counted['macs'] / 1e9:.3f}" == row["gflops"]


def test_stride_on_the_3x3_is_what_gives_4_089() -> None:
    counted = Model("resnet50_v1.5", "none", "imagenet", 1000, 224).count()
    assert f"{counted['macs'] / 1e9:.3f}" == "4.089"


@pytest.mark.slow
def test_torchs_counter_on_meta_agrees_on_every_model() -> None:
    """The committed table row by row; torch counts a multiply-accumulate as two."""
    grid = validate(CountedGrid, read_yaml(ROOT / "config/complexity.yaml"), "complexity.yaml")
    models = models_of_grid(grid)
    committed = read_frame(ROOT / "results/complexity.csv").to_dict("records")
    assert len(committed) == len(models)
    for model, row in zip(models, committed, strict=True):
        with torch.device("meta"):
            network = attngrid.create_model(
                model.backbone, model.attention, num_classes=model.num_classes, stem=model.stem
            ).eval()
            image = torch.zeros(1, 3, model.input_size, model.input_size)
        with FlopCounterMode(display=False) as counter:
            network(image)
        assert (row["backbone"], row["attention"]) == (model.backbone, model.attention)
        assert counter.get_total_flops() == 2 * row["macs"], (model.backbone, model.attention)
        assert row["torch_macs"] == row["macs"]
        assert sum(p.numel() for p in network.parameters()) == row["params"]


def test_both_attention_products_are_counted() -> None:
    """Three 1×1 convolutions and two products, by arithmetic."""
    channels, side = 16, 7
    positions = side * side
    model = nn.Sequential(
        nn.Conv2d(3, channels, 1, bias=False), attngrid.attention.find("sam").load()(channels)
    )
    expected = 3 * channels * positions  # the first convolution
    expected += 3 * channels**2 * positions  # B, C and D
    expected += 2 * positions**2 * channels  # B·C and s·D
    assert count(model, side)["macs"] == expected


def test_narrow_keys_cost_less() -> None:
    sizes = [
        Model("resnet18", name, "cifar", 100, 32).count()["macs"] for name in ("csm", "csm_r8")
    ]
    assert sizes[1] < sizes[0]


def test_an_operator_nobody_counts_is_an_error_that_names_it() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(self.conv(x), 1)

    with pytest.raises(UncountedOperatorError, match="aten::cumsum"):
        count(Odd(), 8)


def test_a_users_uncountable_module_stays_empty_and_is_named_the_papers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        return torch.cumsum(x, 1)\n"
    )
    models = [Model("resnet18", name, "cifar", 10, 16) for name in ("mine.py:Odd", "se")]
    told: list[Exception] = []
    odd, se = table(models, told.append).splitlines()[1:]
    assert odd == "resnet18,mine.py:Odd,cifar,10,16" + "," * (1 + len(COUNTED))
    assert se.startswith("resnet18,se,cifar,10,16,,11")
    (error,) = told
    assert "resnet18 + mine.py:Odd: nobody has said what aten::cumsum costs" in str(error)


def test_batch_norms_are_in_fvcores_total_only() -> None:
    counted = Model("resnet18", "none", "cifar", 10, 16).count()
    assert counted["fvcore_total"] > counted["macs"]


def test_the_columns_by_operator_add_up() -> None:
    for row in read_frame(ROOT / "results/complexity.csv").to_dict("records"):
        macs = row["conv_macs"] + row["linear_macs"] + row["product_macs"]
        assert row["macs"] == macs
        assert row["fvcore_total"] == macs + row["norm_flops"] + row["other_flops"]
        spatial = row["attention"].startswith(("sam", "csm"))
        assert (row["product_macs"] > 0) == spatial


def test_a_resnets_operators_by_hand() -> None:
    """ResNet-18 at 224×224: its classifier, and two a value that a batch norm puts out."""
    counted = Model("resnet18", "none", "imagenet", 1000, 224).count()
    assert counted["linear_macs"] == 512 * 1000
    shapes = [(64, 112)] + [(64, 56)] * 4 + [(128, 28)] * 5 + [(256, 14)] * 5 + [(512, 7)] * 5
    values = sum(channels * side**2 for channels, side in shapes)
    assert counted["norm_flops"] == 2 * values  # in evaluation: a scale and a shift
