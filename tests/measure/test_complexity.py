"""Counts compared with CBAM's printed Table 4, with torch's counter, and with hand counts."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from attngrid.analysis.frames import read_frame
from attngrid.core.errors import AttngridError
from attngrid.core.files import read_yaml
from attngrid.core.validation import validate
from attngrid.measure.complexity import Model, UncountedOperatorError, count, models_of_grid, table
from attngrid.study.cell import COUNTED, MODEL_KEY
from attngrid.study.counted import CountedGrid

ROOT = Path(__file__).resolve().parents[2]
NARROW = {"width": 0.0625}

with (ROOT / "reference/cbam_table4.csv").open(encoding="utf-8") as stream:
    TABLE_4 = list(csv.DictReader(stream))
with (ROOT / "results/complexity.csv").open(encoding="utf-8") as stream:
    COMMITTED = list(csv.DictReader(stream))


counted = cache(lambda *model: Model(*model).count())  # two tests check some of the models
FAST = [("resnet18", attention) for attention in ("none", "se", "cbam")]


def params(rows: Iterable[dict[str, str]]) -> list[Any]:
    """One test per row; only a few of ResNet-18 are not marked slow, since counting takes time."""
    return [
        pytest.param(
            row,
            id=f"{row['backbone']}-{row['attention']}",
            marks=[] if (row["backbone"], row["attention"]) in FAST else pytest.mark.slow,
        )
        for row in rows
    ]


def test_table4_has_24_rows() -> None:
    assert len(TABLE_4) == 24


@pytest.mark.parametrize("row", params(TABLE_4))
def test_table4_parameters_and_gflops_match_every_printed_digit(row: dict[str, str]) -> None:
    found = counted(row["backbone"], row["attention"], "imagenet", 1000, 224)
    assert f"{found['params'] / 1e6:.2f}" == row["params_m"]
    assert f"{found['macs'] / 1e9:.3f}" == row["gflops"]


# The cheapest row of each module and of each backbone
CHEAPEST = {
    f"{row['backbone']} {row['attention']}": row
    for key in ("attention", "backbone")
    for row in {r[key]: r for r in sorted(COMMITTED, key=lambda r: -float(r["macs"]))}.values()
}


@pytest.mark.parametrize("row", params(CHEAPEST.values()))
def test_a_committed_row_of_each_module_and_backbone_equals_a_new_count(
    row: dict[str, str],
) -> None:
    """The row has the counts of fvcore and of torch's counter."""
    size = int(row["num_classes"]), int(row["input_size"])
    found = counted(row["backbone"], row["attention"], row["stem"], *size)
    assert {name: str(value) for name, value in found.items()} == row


@pytest.mark.slow
def test_counts_do_not_depend_on_the_content_of_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deterministic mode fills new memory with NaN and with invalid indices."""
    model = Model("resnet18", "timm:bottleneck", "cifar", 10, 16, NARROW)
    expected = model.count()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.set_deterministic_debug_mode("warn")
    try:
        assert (torch.empty(3, dtype=torch.int64) > 2**60).all()
        counted = model.count()
    finally:
        torch.set_deterministic_debug_mode("default")
    assert counted == expected


def test_resnet50_with_the_stride_on_the_3x3_has_4_089_gmacs() -> None:
    (macs,) = (row["macs"] for row in COMMITTED if row["backbone"] == "resnet50_v1.5")
    assert f"{int(macs) / 1e9:.3f}" == "4.089"


def test_the_committed_table_has_every_model_and_torchs_counter_agrees() -> None:
    grid = validate(CountedGrid, read_yaml(ROOT / "config/complexity.yaml"), "complexity.yaml")
    expected = [[str(value) for value in model.key().values()] for model in models_of_grid(grid)]
    assert [[row[name] for name in MODEL_KEY] for row in COMMITTED] == expected
    assert all(int(row["torch_macs"]) == int(row["macs"]) > 0 for row in COMMITTED)


Counts = tuple[int, int]  # parameters, multiply-accumulates

# Output and expanded channels of each block of the MobileNets by stage, and the sides of the maps
PROJECTED = {
    "mobilenet_v1": [[64], [128] * 2, [256] * 2, [512] * 6, [1024] * 2],
    "mobilenet_v2": [[16], [24] * 2, [32] * 3, [64] * 4 + [96] * 3, [160] * 3 + [320]],
    "mobilenet_v3_large": [[16], [24] * 2, [40] * 3, [80] * 4 + [112] * 2, [160] * 3],
}
EXPANDED = {
    "mobilenet_v1": [[32], [64, 128], [128, 256], [256] + [512] * 5, [512, 1024]],
    "mobilenet_v2": [
        [32],
        [96, 144],
        [144, 192, 192],
        [192] + [384] * 4 + [576] * 2,
        [576] + [960] * 3,
    ],
    "mobilenet_v3_large": [
        [16],
        [64, 72],
        [72, 120, 120],
        [240, 200, 184, 184, 480, 672],
        [672, 960, 960],
    ],
}
WITH_SE = {
    "mobilenet_v3_large": [0, 0, 3, 2, 3]
}  # the number of last blocks with a module; otherwise all
SIDES = {"224": [112, 56, 28, 14, 7], "32": [32, 32, 16, 8, 4]}


def bam_branch(c: int, h: int, n: int) -> Counts:
    """A 1×1, two 3×3 and a 1×1 convolution with bias; three BatchNorms."""
    params = (c * h + h) + 2 * (9 * h * h + h) + (h + 1) + 3 * 2 * h
    return params, n * (c * h + 2 * 9 * h * h + h)


def mlp(squeezes: int, c: int, h: int, times: int = 1) -> Counts:
    return (squeezes * c * h + h) + (h * c + c), times * (squeezes * c * h + h * c)


def conv7(statistics: int, n: int) -> Counts:
    """A 7×7 convolution without bias, and its BatchNorm of one channel."""
    return 49 * statistics + 2, 49 * statistics * n


# for c channels, h = max(1, c // 16) hidden channels and n positions
ADDED: dict[str, Callable[[int, int, int], list[Counts]]] = {
    "se": lambda c, h, n: [mlp(1, c, h)],
    "cbam": lambda c, h, n: [mlp(1, c, h, times=2), conv7(2, n)],
    "maf": lambda c, h, n: [mlp(2, c, h)],
    "maf_c": lambda c, h, n: [mlp(2, c, h), conv7(2, n)],
    "bam": lambda c, h, n: [mlp(1, c, h), (2 * h, 0), bam_branch(c, h, n)],
    "maf_b": lambda c, h, n: [mlp(2, c, h), bam_branch(c, h, n)],
    "srap": lambda c, h, n: [mlp(1, c, h), conv7(2, n)],
    "srap_avg_max": lambda c, h, n: [mlp(1, c, h), conv7(2, n)],
    "srap_avg_max_std": lambda c, h, n: [mlp(1, c, h), conv7(3, n)],
}


def sites(backbone: str, attention: str) -> list[list[int]]:
    """The channels at each module, by stage."""
    if attention in ("bam", "maf_b"):
        return [stage[-1:] for stage in PROJECTED[backbone][:3]]
    stages = (EXPANDED if attention.startswith("srap") else PROJECTED)[backbone]
    last = WITH_SE.get(backbone, [len(stage) for stage in stages])
    return [stage[len(stage) - count :] for stage, count in zip(stages, last, strict=True)]


@pytest.mark.parametrize("size", SIDES)
@pytest.mark.parametrize("attention", ADDED)
@pytest.mark.parametrize("backbone", PROJECTED)
def test_the_counts_a_module_adds_to_a_mobilenet_follow_its_formula(
    backbone: str, attention: str, size: str
) -> None:
    """Checked on the committed rows: 224×224 with 1000 classes, 32×32 with 100 classes."""
    counted = {
        row["attention"]: (int(row["params"]), int(row["macs"]))
        for row in COMMITTED
        if (row["backbone"], row["input_size"]) == (backbone, size)
    }
    added = [
        counts
        for stage, side in zip(sites(backbone, attention), SIDES[size], strict=False)
        for c in stage
        for counts in ADDED[attention](c, max(1, c // 16), side * side)
    ]
    expected = [sum(column) for column in zip(*added, strict=True)]
    found = [
        with_it - without
        for with_it, without in zip(counted[attention], counted["none"], strict=True)
    ]
    assert found == expected


def test_an_unknown_operator_is_an_error_that_names_it() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(self.conv(x), 1)

    with pytest.raises(UncountedOperatorError, match="aten::cumsum"):
        count(Odd(), 8)


class Rows(nn.Module):
    """A layer that maps N×L×C, applied to the pixels of an image of 8×8."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv, self.layer = nn.Conv2d(3, 16, 1), layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.conv(x).flatten(2).transpose(1, 2)
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.layer(rows, rows, rows, need_weights=False)[0]
        return self.layer(rows)


@pytest.mark.parametrize(
    ("layer", "macs_per_row"),
    [
        # queries, keys, values and output: 4·C²; scores and their product with the values: 2·L·C
        (nn.MultiheadAttention(16, 4, batch_first=True), 4 * 16**2 + 2 * 64 * 16),
        (
            nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True),
            4 * 16**2 + 2 * 64 * 16 + 2 * 16 * 32,
        ),
    ],
)
def test_torchs_transformer_layers_are_counted_by_their_equations(
    layer: nn.Module, macs_per_row: int
) -> None:
    assert count(Rows(layer), 8)["macs"] == 64 * (3 * 16 + macs_per_row)


FREE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "where": lambda x: torch.where(x > 0, x, 0),
    "maximum": lambda x: torch.maximum(x, -x),
    "softplus": functional.softplus,
    "mish": functional.mish,
    "prelu": lambda x: functional.prelu(x, torch.ones(1)),
    "flip": lambda x: x.flip(1),
    "normalize": functional.normalize,
    "logsumexp": lambda x: x.logsumexp(1),
    "var_mean": lambda x: torch.var_mean(x, 1)[0],
    "glu": lambda x: functional.glu(x, 1),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0),
    "roll": lambda x: x.roll(1, 2),
    "pixel_shuffle": lambda x: functional.pixel_shuffle(x, 2),
}


@pytest.mark.parametrize("name", FREE)
def test_operators_without_products_add_no_macs(name: str) -> None:
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = weight_norm(nn.Conv2d(3, 4, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return FREE[name](self.conv(x))

    assert count(Free(), 8)["macs"] == 3 * 4 * 8 * 8


def test_a_model_that_cannot_be_traced_is_an_error_that_says_why() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("scale")

    with pytest.raises(UncountedOperatorError, match="cannot trace it: KeyError: 'scale'"):
        count(Broken(), 8)


def test_a_users_module_that_cannot_be_counted_has_its_parameters_and_torchs_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
    models = [Model("resnet18", name, "cifar", 10, 16, NARROW) for name in ("mine.py:Odd", "se")]
    baseline = Model("resnet18", "none", "cifar", 10, 16, NARROW)
    text = table([*models, baseline], strict=False)
    odd, se, none = csv.DictReader(io.StringIO(text))
    assert se["params"] == "49284"
    # the module has no parameter and no product
    same = ("params", "torch_macs")
    assert [odd[name] for name in same] == [none[name] for name in same]
    assert {odd[name] for name in COUNTED if name not in same} == {""}
    assert "not counted: resnet18 + mine.py:Odd: cannot count aten::cumsum" in caplog.text
    with pytest.raises(AttngridError, match=r"mine.py:Odd: cannot count aten::cumsum"):
        table(models[:1], strict=True)


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


def test_operators_of_resnet18_equal_a_count_by_hand() -> None:
    """At 224×224: the MACs of the classifier, and two operations per output of a BatchNorm."""
    counted = Model("resnet18", "none", "imagenet", 1000, 224).count()
    assert counted["linear_macs"] == 512 * 1000
    shapes = [(64, 112)] + [(64, 56)] * 4 + [(128, 28)] * 5 + [(256, 14)] * 5 + [(512, 7)] * 5
    values = sum(channels * side**2 for channels, side in shapes)
    assert counted["norm_flops"] == 2 * values  # in evaluation: a scale and a shift
