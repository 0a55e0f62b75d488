"""Claims and verdicts: statistics compared with formulas, verdicts from made-up records."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from attngrid.analysis import comparison
from attngrid.analysis.claims import CLAIMS, Claim, Claims, load_claims, load_study_claims
from attngrid.analysis.comparison import compare, holm, seeds_to_find, seeds_to_rule_out
from attngrid.analysis.frames import (
    CELL_COLUMNS,
    all_cells,
    collect,
    read_frame,
    write_results,
)
from attngrid.analysis.reference import read_published
from attngrid.analysis.verdicts import as_printed, judge_claims, write_claims
from attngrid.cli.main import main
from attngrid.core.errors import ConfigError, RecordError
from attngrid.core.validation import validate
from attngrid.render.claims import claims_table, summary_table
from attngrid.render.layout import write_table
from attngrid.render.tables import build_table
from attngrid.render.verdicts import study_claims
from attngrid.study.cell import Cell
from attngrid.study.schema import Study
from conftest import TINY
from made_up import ROOT, cells_with, compile_latex, fake_record, needs_latex


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


# The statistics.


@pytest.mark.filterwarnings("error")
def test_a_sample_that_does_not_vary_is_compared_without_a_warning() -> None:
    same = 98.59154929577464
    rounded = {0: same, 1: same, 2: float(np.nextafter(same, 100))}
    found = compare(rounded, {0: 90.0, 1: 98.0, 2: 97.3}, 0.5)
    # the statistic of a one-sample test, with the variable sample's degrees of freedom
    assert found.p == pytest.approx(stats.ttest_1samp([90.0, 98.0, 97.3], same).pvalue)


def test_welch_equals_the_formula() -> None:
    """The t statistic, Welch–Satterthwaite degrees of freedom, p and interval by hand."""
    a, b = [76.1, 76.4, 75.9, 76.3], [75.1, 75.2, 75.5]
    found = compare(by_seed(*a), by_seed(*b), 0.3)
    va, vb = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    gain, se = statistics.mean(a) - statistics.mean(b), math.sqrt(va + vb)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    assert found.test == "welch"
    assert found.gain == pytest.approx(gain)
    assert found.p == pytest.approx(2 * stats.t.sf(gain / se, df))
    half = stats.t.ppf(0.975, df) * se
    assert (found.low, found.high) == pytest.approx((gain - half, gain + half))
    # two one-sided tests: the larger p of "not below 0.3" and "not above -0.3"
    inside = max(stats.t.cdf((gain - 0.3) / se, df), stats.t.sf((gain + 0.3) / se, df))
    assert found.p_equivalent == pytest.approx(inside)
    assert found.bootstrap_low is None


def test_holm_equals_the_textbook() -> None:
    """p = 0.01, 0.04, 0.03, 0.005: times 4 for the smallest, then 3, 2, 1, never decreasing."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # an untested claim enlarges the family and stays untested
    assert holm([0.01, None, 0.04]) == [pytest.approx(0.03), None, pytest.approx(0.08)]


@pytest.mark.parametrize(("effect", "n"), [(0.2, 394), (0.5, 64), (0.8, 26)])
def test_sample_sizes_equal_cohens_table(effect: float, n: int) -> None:
    """Cohen's table: two samples, power 0.8, two-sided 0.05 (0.2: 393 by a normal distribution)."""
    assert seeds_to_find(effect, 1.0, 0.05, 0.8, "welch") == n


def test_seeds_to_rule_out_have_the_requested_power() -> None:
    n = seeds_to_rule_out(1.0, 1.0, 0.05, 0.8, "welch")
    # 2 (z₀.₉₅ + z₀.₉)² = 17.1 by the normal distribution
    assert n == 18
    random = np.random.default_rng(0)
    drawn = random.normal(size=(20_000, 2, n))
    gain = drawn[:, 0].mean(1) - drawn[:, 1].mean(1)
    se = np.sqrt(drawn.var(axis=2, ddof=1).sum(1) / n)
    critical = stats.t.ppf(0.95, 2 * n - 2)
    power = ((gain + 1) / se > critical) & ((gain - 1) / se < -critical)
    assert power.mean() == pytest.approx(0.8, abs=0.015)
    assert seeds_to_rule_out(0.001, 1.0, 0.05, 0.8, "welch") is None


def test_seeds_are_paired_only_if_they_correlate() -> None:
    random = np.random.default_rng(1)
    shared, own = random.normal(size=12), random.normal(size=(2, 12))
    alike = [by_seed(*(shared + 0.2 * noise)) for noise in own]
    apart = [by_seed(*noise) for noise in own]
    found = compare(*alike, 0.1, test="by_correlation")
    assert found.test == "paired"
    paired = stats.ttest_rel(*(list(sample.values()) for sample in alike))
    assert found.p == pytest.approx(paired.pvalue)
    assert found.correlation == pytest.approx(np.corrcoef(*(shared + 0.2 * own))[0, 1])
    assert compare(*alike, 0.1).test == "welch"
    assert compare(*apart, 0.1, test="by_correlation").test == "welch"
    few = [{seed: sample[seed] for seed in range(9)} for sample in alike]
    nine = compare(*few, 0.1, test="by_correlation")
    assert (nine.test, nine.correlation, nine.bootstrap_low) == ("welch", None, None)
    assert found.bootstrap_low is not None
    assert found.bootstrap_low < found.gain < found.bootstrap_high  # type: ignore[operator]


@pytest.mark.slow
def test_choosing_the_test_by_the_correlation_keeps_the_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interval = SimpleNamespace(confidence_interval=(0.0, 0.0))
    monkeypatch.setattr(
        stats, "bootstrap", lambda *args, **more: interval
    )  # the bootstrap takes most of the time
    correlation = 0.4  # at ten seeds, some samples are paired and some are not
    random = np.random.default_rng(2)
    shared, own = random.normal(size=(1500, 10)), random.normal(size=(1500, 2, 10))
    drawn = math.sqrt(correlation) * shared[:, None] + math.sqrt(1 - correlation) * own
    comparison_of = [
        compare(by_seed(*a[:10]), by_seed(*b[:10]), 0.1, test="by_correlation").p for a, b in drawn
    ]
    share = np.mean([p is not None and p < 0.05 for p in comparison_of])
    assert share < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.parametrize("values", [[[5.0], [4.0, 4.1]], [[5.0, 5.0], [4.0, 4.0]]])
def test_without_a_standard_deviation_there_is_no_test(values: list[list[float]]) -> None:
    found = compare(*(by_seed(*sample) for sample in values), 0.1)
    assert found.gain == pytest.approx(0.95 if len(values[0]) == 1 else 1.0)
    assert (found.p, found.low, found.std) == (None, None, None)


def test_a_printed_run_is_compared_by_the_prediction_interval() -> None:
    ours = [73.0, 73.2, 72.9, 73.3]
    found = comparison.compare_to_figure(by_seed(*ours), 73.128, statistics.stdev(ours), 3)
    # the textbook prediction interval
    half = stats.t.ppf(0.975, 3) * statistics.stdev(ours) * math.sqrt(1 + 1 / 4)
    gain = statistics.mean(ours) - 73.128
    assert (found.low, found.high) == pytest.approx((gain - half, gain + half))


# Verdicts, from records.


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """CSM's Table III on CIFAR-100 without records, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("reference", "workflow"):
        Path(folder).symlink_to(ROOT / folder)
    Path("results").mkdir()
    Path("results/complexity.csv").symlink_to(ROOT / "results/complexity.csv")
    tiny["grid"][0] |= {
        "dataset": "cifar100",
        "backbones": ["resnet18", "resnet34"],
        "attentions": ["none", "csm", "csm_sam_first"],
        "recipes": ["cifar_200ep"],
        "seeds": list(range(12)),
        "options": {},
    }
    tiny |= {"recipes": {}, "tables": ["csm_table3"], "figures": []}
    return validate(Study, tiny, "tiny.yaml")


def records(study: Study, backbone: str, attention: str, *errors: float) -> list[Cell]:
    own = cells_with(study, attention, backbone)
    for cell, error in zip(own, errors, strict=False):
        fake_record(cell, error)
    return own


def verdicts(study: Study, **kwargs: Any) -> pd.DataFrame:
    claims, found = load_claims()
    return judge_claims(claims, found, collect(study).cells, **kwargs).set_index("claim")


TABLE3 = "csm_table3/resnet18/top1_accuracy"


@pytest.mark.parametrize(
    ("baseline", "csm", "verdict"),
    [
        ([24.0, 24.1, 24.2, 24.3], [22.6, 22.7, 22.8, 22.9], "confirmed"),
        ([22.6, 22.7, 22.8, 22.9], [24.0, 24.1, 24.2, 24.3], "contradicted"),
        ([24.0, 24.02, 24.04, 24.06], [24.01, 24.03, 24.05, 24.05], "equivalent"),
        ([24.0, 24.4, 24.8, 25.2], [23.9, 24.2, 24.7, 25.0], "underpowered"),
        ([24.0], [22.0], "underpowered"),
        ([24.0, 24.1], [], "not run"),
    ],
)
def test_each_verdict_has_its_records(
    study: Study, baseline: list[float], csm: list[float], verdict: str
) -> None:
    records(study, "resnet18", "none", *baseline)
    records(study, "resnet18", "csm", *csm)
    row = verdicts(study).loc[TABLE3]
    assert row["verdict"] == verdict
    assert (row["condition"] == "") == (verdict == "not run")
    if len(csm) < 2:
        return
    # Table III has four claims: Holm's first step
    p = stats.ttest_ind(baseline, csm, equal_var=False).pvalue
    assert row["p"] == pytest.approx(p)
    assert row["p_holm"] == pytest.approx(min(1, 4 * p))
    if verdict == "underpowered":
        deviation = math.sqrt((statistics.variance(baseline) + statistics.variance(csm)) / 2)
        power = seeds_to_find(1.4, deviation, 0.05 / 4, 0.8, "welch")
        assert (row["seeds_needed"], row["seeds_show"]) == (power, "+1.4")


def test_a_significant_gain_below_the_smallest_effect_is_equivalent(study: Study) -> None:
    records(study, "resnet18", "none", *(24.0 + 0.01 * i for i in range(12)))
    records(study, "resnet18", "csm", *(23.9 + 0.01 * i for i in range(12)))
    row = verdicts(study).loc[TABLE3]
    assert row["p_holm"] < 0.05
    assert (row["verdict"], row["gain"]) == ("equivalent", pytest.approx(0.1))


def test_a_single_seed_uses_the_pooled_deviation_of_its_condition(study: Study) -> None:
    """It is pooled over two models of three seeds; before, it is the published one, of 5 runs."""
    records(study, "resnet18", "none", 24.0)
    records(study, "resnet18", "csm", 23.9)
    row = verdicts(study).loc[TABLE3]
    assert row["seeds_needed"] == seeds_to_find(1.4, 0.31, 0.05 / 4, 0.8, "welch")
    assert "arXiv:1708.04552" in row["deviation_source"]
    records(study, "resnet34", "none", 23.0, 24.0, 25.0)
    records(study, "resnet34", "csm", 22.0, 22.4, 22.8)
    pooled = math.sqrt((1.0 + 0.16) / 2)
    row = verdicts(study).loc[TABLE3]
    assert row["deviation"] == pytest.approx(pooled)
    assert row["deviation_source"] == "6 of our trainings"
    needed = seeds_to_find(1.4, pooled, 0.05 / 4, 0.8, "welch")
    assert row["seeds_needed"] == needed


def test_the_standard_errors_of_seeds_and_images_are_separate(study: Study) -> None:
    """355 test images with 24 % and 22 % errors; standard deviations over two seeds."""
    records(study, "resnet18", "none", 23.0, 25.0)
    records(study, "resnet18", "csm", 21.5, 22.5)
    row = verdicts(study).loc[TABLE3]
    images = 100 * math.sqrt(0.24 * 0.76 / 355 + 0.22 * 0.78 / 355)
    assert row["se_images"] == pytest.approx(images)
    assert row["se_seeds"] == pytest.approx(math.sqrt((2.0 + 0.5) / 2))


def test_other_data_or_options_are_judged_only_as_a_reduced_setting(
    tiny: dict[str, Any], study: Study
) -> None:
    tiny["grid"][0]["options"] = {"classes": 20}
    reduced = validate(Study, tiny, "tiny.yaml")
    records(reduced, "resnet18", "none", 24.0, 24.1, 24.2)
    records(reduced, "resnet18", "csm", 22.0, 22.1, 22.2)
    assert verdicts(reduced).loc[TABLE3, "verdict"] == "not run"
    row = verdicts(reduced, reduced=True).loc[TABLE3]
    assert (row["verdict"], row["scope"]) == ("confirmed", "reduced setting")
    shown = claims_table(verdicts(reduced, reduced=True).reset_index(), "tiny")
    assert "reduced setting" in shown.caption
    assert "first 20 classes" in shown.caption  # once, as all rows share it


def test_each_recipe_is_judged_separately(tiny: dict[str, Any], study: Study) -> None:
    tiny["grid"][0]["recipes"] = ["cifar_200ep", "cifar_30ep"]
    both = validate(Study, tiny, "tiny.yaml")
    for cell in both.cells:
        if cell.backbone == "resnet18" and cell.attention != "csm_sam_first" and cell.seed < 4:
            sign = 1 if cell.recipe_name == "cifar_200ep" else -1
            better = sign if cell.attention == "csm" else 0
            fake_record(cell, 24.0 - better + 0.1 * cell.seed)
    rows = verdicts(both).loc[TABLE3]
    assert rows["verdict"].tolist() == ["confirmed", "contradicted"]


def test_an_order_holds_if_every_step_does(study: Study, tiny: dict[str, Any]) -> None:
    tiny["grid"][0] |= {
        "dataset": "imagenet",
        "backbones": ["resnet50"],
        "attentions": ["none", "sam", "cam", "csm"],
        "recipes": ["imagenet_100ep"],
        "seeds": [0, 1, 2, 3],
    }
    ordered = validate(Study, tiny, "tiny.yaml")
    means = {"none": 25.0, "sam": 24.0, "cam": 23.0, "csm": 22.0}
    for name, mean in means.items():
        records(ordered, "resnet50", name, *(mean + 0.05 * i for i in range(4)))
    name = "csm_table1_order/resnet50/top1_error"
    assert verdicts(ordered).loc[name, "verdict"] == "confirmed"
    records(ordered, "resnet50", "cam", *(24.5 + 0.05 * i for i in range(4)))
    rows = verdicts(ordered)
    assert rows.loc[name, "verdict"] == "contradicted"
    assert rows.loc["csm_table1_cam/resnet50/top1_error", "verdict"] == "contradicted"
    assert rows.loc["csm_table1_sam/resnet50/top1_error", "verdict"] == "confirmed"


VALUE = "csm_table3_values/resnet18/none/top1_accuracy"


def test_one_run_is_inside_or_outside_the_interval_of_a_printed_figure(study: Study) -> None:
    """Table III prints 91.7; five published runs of ResNet-18 have the deviation 0.31."""
    half = 2.7764 * 0.31 * math.sqrt(2)  # t(0.975, 4) from a table
    for accuracy, verdict in ((91.7 + half - 0.01, "inside"), (91.7 - half - 0.01, "outside")):
        records(study, "resnet18", "none", 100 - accuracy)
        row = verdicts(study).loc[VALUE]
        assert (row["verdict"], row["n"], row["p_holm"]) == (verdict, "1", None)
        assert row["gain_high"] - row["gain"] == pytest.approx(half, rel=1e-4)
        assert "5 runs of ResNet-18 with cifar_200ep: DeVries" in row["deviation_source"]
    shown = claims_table(verdicts(study).reset_index())
    cells = {row.label: [value.text for value in row.values] for row in shown.rows}
    assert cells["ResNet-18, top-1 accuracy"][-1] == "outside, σ = 0.31"
    assert "σ = 0.31: 5 runs of ResNet-18" in shown.caption


def test_a_printed_figure_without_a_known_deviation_is_underpowered(
    tiny: dict[str, Any], study: Study
) -> None:
    """No deviation of a top-5 error is published; two seeds of any model measure one."""
    tiny["grid"][0] |= {
        "dataset": "imagenet",
        "backbones": ["resnet50", "resnet34"],
        "attentions": ["none"],
        "recipes": ["imagenet_100ep"],
        "seeds": [0, 1],
    }
    imagenet = validate(Study, tiny, "tiny.yaml")
    records(imagenet, "resnet50", "none", 15.0)  # the top-5 error is half of it
    top5 = "cbam_table4_values/resnet50/none/top5_error"
    assert verdicts(imagenet).loc[top5, "verdict"] == "underpowered"
    records(imagenet, "resnet34", "none", 17.0, 17.2)
    row = verdicts(imagenet).loc[top5]
    # Table 4 prints 7.50; two runs 0.1 apart have the deviation 0.1/√2, and t(0.975, 1) is 12.706
    assert row["verdict"] == "inside"
    assert row["gain_high"] == pytest.approx(12.706 * 0.1, rel=1e-3)


def test_a_printed_figure_is_not_compared_with_other_data(
    tiny: dict[str, Any], study: Study
) -> None:
    tiny["grid"][0]["options"] = {"classes": 20}
    reduced = validate(Study, tiny, "tiny.yaml")
    records(reduced, "resnet18", "none", 24.0, 24.1, 24.2)
    assert verdicts(reduced, reduced=True).loc[VALUE, "verdict"] == "not run"


def other_study(tiny: dict[str, Any], name: str, **compute: Any) -> Study:
    return validate(Study, tiny | {"study": name, "compute": compute}, "tiny.yaml")


def test_studies_that_differ_only_in_threads_are_not_merged(
    tiny: dict[str, Any], study: Study
) -> None:
    """The other study's errors are five points higher; none is dropped, none is pooled."""
    others = other_study(tiny, "others", device="cpu", threads=4)
    for one, shift in ((study, 0.0), (others, 5.0)):
        records(one, "resnet18", "none", *(24.0 + shift + 0.1 * seed for seed in range(3)))
        records(one, "resnet18", "csm", *(22.0 + shift + 0.1 * seed for seed in range(3)))
        write_results(one, collect(one))
    claims, found = load_claims()
    rows = judge_claims(claims, found, all_cells()).set_index("claim").loc[TABLE3]
    assert sorted(rows["condition"].str.rpartition(", ")[2]) == ["threads 1", "threads 4"]
    assert sorted(rows["mean"]) == ["72.9000 70.9000", "77.9000 75.9000"]
    assert {len(records.split()) for records in rows["records"]} == {6}


def test_a_recipe_of_one_name_and_two_contents_makes_two_conditions(
    tiny: dict[str, Any], study: Study
) -> None:
    recipe = {
        "epochs": 1,
        "batch_size": 64,
        "learning_rate": 0.1,
        "schedule": {"kind": "one_cycle"},
    }
    tiny["grid"][0]["recipes"] = ["mine"]
    one = validate(Study, tiny | {"recipes": {"mine": recipe}}, "tiny.yaml")
    tiny["study"] = "others"
    other = validate(Study, tiny | {"recipes": {"mine": recipe | {"epochs": 2}}}, "tiny.yaml")
    for each in (one, other):
        records(each, "resnet18", "none", 24.0, 24.1)
        write_results(each, collect(each))
    cells = all_cells()
    assert cells.groupby("condition")["condition_digest"].nunique().tolist() == [1, 1]


def test_compiled_and_eager_trainings_are_not_pooled(study: Study) -> None:
    """Two of four seeds were compiled, so each condition has two."""
    for name, error in (("none", 24.0), ("csm", 22.0)):
        for cell in records(study, "resnet18", name, *(error + 0.1 * i for i in range(4)))[:4]:
            record = json.loads(cell.record.read_text())
            record["run"]["performance"] = {"compile": cell.seed < 2}
            cell.record.write_text(json.dumps(record))
    rows = verdicts(study).loc[TABLE3]
    assert rows["n"].tolist() == ["2 2", "2 2"]
    endings = [condition.split(", ")[-1] for condition in rows["condition"]]
    assert sorted(endings) == ["compiled", "not compiled"]
    summary = collect(study).summary
    assert summary[(summary["attention"] == "csm") & (summary["n"] > 0)]["n"].tolist() == [2, 2]


def test_two_different_records_of_a_seed_are_refused(tiny: dict[str, Any], study: Study) -> None:
    others = other_study(tiny, "others", **tiny["compute"])
    for one, shift in ((study, 0.0), (others, 0.5)):
        records(one, "resnet18", "none", 24.0 + shift, 24.1)
        records(one, "resnet18", "csm", 22.0, 22.1)
        write_results(one, collect(one))
    claims, found = load_claims()
    with pytest.raises(RecordError, match=r"found others/records/.*-s0-.* and tiny/records/.*-s0-"):
        judge_claims(claims, found, all_cells())
    # the same record in two studies counts once
    first = cells_with(study, "none", "resnet18")[0]
    shutil.copy(first.record, cells_with(others, "none", "resnet18")[0].record)
    write_results(others, collect(others))
    rows = judge_claims(claims, found, all_cells()).set_index("claim")
    assert rows.loc[TABLE3, "n"] == "2 2"


def test_a_baseline_counts_in_each_condition(tiny: dict[str, Any], study: Study) -> None:
    """A baseline has no reduction, so it is one cell in the conditions of both blocks."""
    block = tiny["grid"][0]
    tiny["grid"] = [block | {"options": {"reduction": 8}}, block]
    both = validate(Study, tiny, "tiny.yaml")
    for cell in both.trainings.values():
        if cell.backbone == "resnet18" and cell.seed < 3:
            fake_record(cell, 24.0 + 0.1 * cell.seed - 2 * (cell.attention == "csm"))
    assert verdicts(both).loc[TABLE3, "n"] == "3 3"


def test_an_edited_record_does_not_count(study: Study) -> None:
    cells = records(study, "resnet18", "none", 24.0, 24.1, 24.2)
    records(study, "resnet18", "csm", 22.0, 22.1, 22.2)
    record = json.loads(cells[0].record.read_text())
    record["config"]["digest"] = "0" * 64
    cells[0].record.write_text(json.dumps(record))
    row = verdicts(study).loc[TABLE3]
    assert row["n"] == "3 2"
    assert cells[0].id not in row["records"]


# Counts.


def test_table4s_48_counts_match_every_printed_digit() -> None:
    claims, found = load_claims()
    rows = judge_claims(claims, found, pd.DataFrame(columns=CELL_COLUMNS))
    printed = rows[rows["kind"] == "printed"]
    assert len(printed) == 48
    assert (printed["published"] == printed["counted"]).all()
    assert set(printed["verdict"]) == {"confirmed"}
    csm = rows[rows["claim"] == "csm_lightweight/resnet50/params"].iloc[0]
    assert (csm["verdict"], csm["counted"]) == ("contradicted", "88491992 25557032")
    tested = rows[~rows["kind"].isin(["printed", "cost"])]
    assert set(tested["verdict"]) == {"not run"}
    # a claim that was not run has no measured figure
    assert tested[["n", "mean", "gain", "p", "counted"]].replace("", pd.NA).isna().all(axis=None)


@pytest.mark.parametrize(
    ("count", "printed", "ours"),
    [
        (25_557_032, "25.56", "25.56"),
        (25_565_000, "25.56", "25.57"),  # half up
        (25_564_999, "25.56", "25.56"),
        (25_557_032, "25.6", "25.6"),
    ],
)
def test_counts_are_rounded_half_up(count: int, printed: str, ours: str) -> None:
    assert as_printed(count, 1e6, printed) == ours


def test_a_different_count_contradicts_the_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    frame = read_frame(ROOT / "results/complexity.csv")
    where = (frame["backbone"] == "resnet18") & (frame["attention"] == "se")
    frame.loc[where & (frame["input_size"] == 224), "params"] += 10_000
    frame.to_csv("results/complexity.csv", index=False)
    claims, found = load_claims()
    empty = pd.DataFrame(columns=CELL_COLUMNS)
    rows = judge_claims(claims, found, empty).set_index("claim")
    row = rows.loc["cbam_table4_counts/resnet18/se/params"]
    published_and_counted = (row["published"], row["counted"], row["verdict"])
    assert published_and_counted == ("11.78", "11.79", "contradicted")


# The file of claims.


def test_the_claims_cover_the_papers_tables() -> None:
    _, found = load_claims()

    def of(block: str) -> list[Claim]:
        return [claim for claim in found if claim.block.id == block]

    table4 = pd.read_csv(ROOT / "reference/cbam_table4.csv", keep_default_na=False)
    assert len(of("cbam_table4_counts")) == 2 * len(table4)
    assert len(of("cbam_table4_se")) == len(of("cbam_table4_cbam")) == 2 * 8
    assert len(of("csm_table2_se")) == len(of("csm_table2_baseline")) == 2 * 4
    # CBAM's own table: SE is ahead on ResNeXt-50, 21.91 to 21.92
    against = [c.id for c in found if (c.published_gain or 0) < 0]
    assert against == ["cbam_table4_cbam/resnext50_32x4d/top1_error"]
    assert [c.published_gain for c in of("csm_table3")] == [1.4] * 4
    assert [c.published_gain for c in of("csm_table1_order")] == [0.26]
    assert len({claim.id for claim in found}) == len(found)


def changed(tmp_path: Path, change: Any) -> Path:
    content = yaml.safe_load((ROOT / CLAIMS).read_text("utf-8"))
    change({block["id"]: block for block in content["claims"]}, content)
    file = tmp_path / "claims.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("better", "sse", "unknown attention 'sse': did you mean se"),
        ("backbones", ["resnet51"], "unknown backbone 'resnet51'"),
        ("dataset", "cifar1000", "unknown dataset 'cifar1000'"),
        ("recipes", ["imagenet_90ep"], "unknown recipe 'imagenet_90ep'"),
        ("family", "cbam_table5", "unknown family 'cbam_table5'"),
        ("published", "cbam_table5.csv", "found 'cbam_table5.csv', reference has "),
        ("published", None, "published: is missing"),
        ("metrics", {"top1_error": "top_1"}, "column 'top_1'"),
        ("metrics", {"top2_error": "top1_error"}, "top2_error"),
        ("backbones", ["mobilenet_v1"], "has no row mobilenet_v1, se"),
        ("kind", "best", "kind"),
        ("id", "cbam_table4_cbam", "found 'cbam_table4_cbam' twice"),
        ("tset", "welch", "did you mean"),
    ],
)
def test_a_mistake_in_the_claims_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, expected: str
) -> None:
    monkeypatch.chdir(ROOT)
    file = changed(tmp_path, lambda by_id, _: by_id["cbam_table4_se"].update({key: value}))
    with pytest.raises(ConfigError) as error:
        load_claims(file)
    assert expected in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("figure", ["about 29", "", "nan", "29,6"])
def test_a_published_value_that_is_not_a_number_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "reference/csm_table1.csv").read_text("utf-8")
    reference = tmp_path / "reference"
    reference.mkdir()
    for file in (ROOT / "reference").glob("*.csv"):
        (reference / file.name).write_text(file.read_text("utf-8"))
    (reference / "csm_table1.csv").write_text(text.replace("23.47", f'"{figure}"'))
    with pytest.raises(ConfigError) as error:
        load_claims(ROOT / CLAIMS)
    named = ("csm_table1.csv: resnet50, sam", "csm_table1.csv, line 3")
    assert any(f"{row}, top1_error: found {figure!r}" in str(error.value) for row in named)


# What is rendered.


def test_a_claim_that_was_not_run_has_dashes(study: Study) -> None:
    table = claims_table(verdicts(study).reset_index())
    shown = {row.label: [value.text for value in row.values] for row in table.rows}
    assert shown["ResNet-18: CSM over baseline, top-1 accuracy"][1:] == ["+1.4", *["--"] * 4]
    assert shown["ResNet-50: CSM over baseline, parameters"][1:] == [
        "--",
        "+246.25 %",
        "--",
        "exact",
        "contradicted",
    ]
    assert shown["parameters and GFLOPs of 24 networks"][1:3] == [
        "48 figures",
        "48 of 48 to the last digit",
    ]


def test_the_command_writes_claims_of_a_study_and_of_all(
    study: Study, tiny: dict[str, Any]
) -> None:
    Path("tiny.json").write_text(json.dumps(tiny))
    records(study, "resnet18", "none", 24.0, 24.1, 24.2)
    records(study, "resnet18", "csm", 22.0, 22.1, 22.2)
    write_results(study, collect(study))
    assert main(["claims", "tiny.json"]) == 0
    for file in ("results/claims.csv", "results/tiny/claims.csv"):
        frame = read_frame(Path(file)).set_index("claim")
        assert frame.loc[TABLE3, "verdict"] == "confirmed"
        assert frame.loc[TABLE3, "gain"] == pytest.approx(2.0)
    assert "+2.00" in Path("tables/claims.md").read_text("utf-8")
    assert "1 confirmed, 3 not run" in Path("tables/claims_summary.md").read_text("utf-8")
    first = Path("results/claims.csv").read_bytes()
    assert main(["claims"]) == 0
    assert Path("results/claims.csv").read_bytes() == first


def test_nothing_about_all_studies_is_written_into_a_users_folder(
    study: Study, tiny: dict[str, Any]
) -> None:
    for link in ("workflow", "reference"):
        Path(link).unlink()
    Path("tiny.json").write_text(json.dumps(tiny))
    write_results(study, collect(study))
    assert main(["claims", "tiny.json"]) == 0
    assert {file.name.partition(".")[0] for file in Path("tables").iterdir()} == {"tiny"}
    assert not Path("results/claims.csv").exists()


def test_the_reports_verdicts_are_those_of_the_table(study: Study, tiny: dict[str, Any]) -> None:
    """The report reads them from the CSV, where a missing number makes a column one of floats."""
    Path("tiny.json").write_text(json.dumps(tiny))
    records(study, "resnet18", "none", 24.0, 25.0, 26.0)
    records(study, "resnet18", "csm", 23.9, 24.9, 25.9)
    write_results(study, collect(study))
    assert main(["claims", "tiny.json"]) == 0
    text = Path("tables/tiny.claims.md").read_text("utf-8")
    assert re.search(r"underpowered; \+0\.\d+ needs \d+ seeds", text)
    table = study_claims(study)
    assert table is not None
    for row in table.rows:
        assert " | ".join(value.text for value in row.values).replace("_", r"\_") in text


OWN_CLAIMS = """
families: {mine: {smallest_effect: 1.0, why: an example}}
claims:
  - id: beats_se
    kind: better
    statement: CSM beats SE
    family: mine
    backbones: [resnet18]
    better: csm
    than: se
  - id: beats_bam
    kind: better
    statement: CSM beats BAM
    family: mine
    backbones: [resnet18]
    better: csm
    than: bam
"""


def test_a_study_with_its_own_claims_is_judged_by_these_alone(
    study: Study, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own recipe, dataset and options are those of its claims; nothing is about the papers."""
    Path("own.yaml").write_text(OWN_CLAIMS)
    tiny |= {"claims": "own.yaml", "recipes": TINY["recipes"]}
    tiny["grid"] = [TINY["grid"][0] | {"attentions": ["none", "se", "csm"], "seeds": [0, 1, 2]}]
    Path("tiny.json").write_text(json.dumps(tiny))
    own = validate(Study, tiny, "tiny.json")
    records(own, "resnet18", "se", 24.0, 24.1, 24.2)
    records(own, "resnet18", "csm", 20.0, 20.1, 20.2)
    write_results(own, collect(own))
    assert main(["claims", "tiny.json"]) == 0
    frame = read_frame(Path("results/tiny/claims.csv")).set_index("claim")
    won, other = (
        frame.loc["beats_se/resnet18/top1_error"],
        frame.loc["beats_bam/resnet18/top1_error"],
    )
    assert (won["verdict"], won["scope"], won["gain"]) == ("confirmed", "stated", 4.0)
    assert other["verdict"] == "not run"
    text = Path("tables/tiny.claims.md").read_text("utf-8")
    assert "This study's claims" in text
    # columns whose rows are equal are left out, so that the verdicts are in sight
    assert "| Statement | Condition | Figure | 95 % interval | n | Verdict |" in text
    assert "ResNet-18: CSM over SE" in text
    assert "papers" not in text
    assert [file.name for file in Path("tables").iterdir() if "tiny" not in file.name] == []
    assert not Path("results/claims.csv").exists()
    assert main(["plan", "tiny.json"]) == 0
    assert "beats_se/resnet18" in capsys.readouterr().out


def test_a_wrong_recipe_in_a_studys_claims_is_named(study: Study, tiny: dict[str, Any]) -> None:
    Path("own.yaml").write_text(
        OWN_CLAIMS.replace("better: csm\n", "better: csm\n    recipes: [tini]\n")
    )
    own = validate(Study, tiny | {"claims": "own.yaml", "recipes": TINY["recipes"]}, "t")
    with pytest.raises(ConfigError, match=r"own\.yaml: claims\.0\.recipes: .*'tini'.*tiny"):
        load_study_claims(own)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfbackbone, attention, top1_error\nresnet18, se, 29.41\n", "29.41"),
        (b"backbone,attention,top1_error\nresnet18,SEE,29.41\n", "line 2, attention: .*'SEE'"),
        (b"backbone,attention,top1_error\nresnet8,se,29.41\n", "line 2, backbone: .*'resnet8'"),
        (
            b"backbone,attention,top1_error\nresnet18,se,29.41\nresnet34,se,26;13\n",
            "line 3, top1_error: found '26;13'; needs a number",
        ),
        ("backbone,attention,top1_error,größe\n".encode("latin-1"), "byte 33 is not UTF-8"),
    ],
)
def test_a_users_published_figures_are_checked_by_row_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, expected: str
) -> None:
    """The first file is as Excel writes it, with spaces after the commas."""
    monkeypatch.chdir(tmp_path)
    Path("reference").mkdir()
    Path("reference/mine.csv").write_bytes(content)
    columns = {"columns.0.published": "top1_error"}
    if expected == "29.41":
        found = read_published("mine.csv", columns, "")
        assert found["resnet18", "se"]["top1_error"] == expected
        return
    with pytest.raises(ConfigError, match=rf"mine\.csv[,:] {expected}"):
        read_published("mine.csv", columns, "")


def test_only_a_significantly_best_model_is_bold(study: Study) -> None:
    records(study, "resnet18", "none", 24.0, 24.1, 24.2)
    records(study, "resnet18", "csm", 22.0, 22.1, 22.2)
    records(study, "resnet34", "none", 23.0, 23.4, 23.8)
    records(study, "resnet34", "csm", 22.9, 23.3, 23.7)
    file = ROOT / "workflow/tables/csm_table3.yaml"
    table = build_table(study, collect(study).summary, file)
    bold = [row.label for row in table.rows if any(value.bold for value in row.values)]
    assert bold == ["ResNet-18 + CSM"]
    write_table(table)
    tex = Path("tables/tiny.csm_table3.tex").read_text("utf-8")
    assert r"& \bfseries 77.90 &" in tex
    assert "**77.90 ± 0.10**" in Path("tables/tiny.csm_table3.md").read_text("utf-8")
    # a model with one seed has no interval, so nothing is bold
    third = records(study, "resnet18", "csm_sam_first", 30.0)
    assert len(third) == 12
    every = build_table(study, collect(study).summary, ROOT / "workflow/tables/grid.yaml")
    assert not any(value.bold for row in every.rows[:3] for value in row.values)


@needs_latex
@pytest.mark.slow
def test_bold_and_the_claims_compile(study: Study, tmp_path: Path) -> None:
    records(study, "resnet18", "none", 24.0, 24.1, 24.2)
    records(study, "resnet18", "csm", 22.0, 22.1, 22.2)
    write_table(
        build_table(study, collect(study).summary, ROOT / "workflow/tables/csm_table3.yaml")
    )
    rows = verdicts(study).reset_index()
    write_table(claims_table(rows))
    write_table(summary_table(rows))
    names = ["tiny.csm_table3", "claims", "claims_summary"]
    page = compile_latex(tmp_path, "\n".join(rf"\input{{tables/{name}.tex}}" for name in names))
    assert "77.90 ± 0.10" in page
    assert "contradicted" in page


def test_the_committed_verdicts_follow_from_the_committed_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    claims, found = load_claims()
    write_claims(tmp_path / "claims.csv", judge_claims(claims, found, all_cells()))
    assert (tmp_path / "claims.csv").read_text() == (ROOT / "results/claims.csv").read_text()


def test_every_column_is_explained() -> None:
    text = (ROOT / "docs/evidence.md").read_text("utf-8")
    columns = read_frame(ROOT / "results/claims.csv").columns
    assert {column for column in columns if f"`{column}`" not in text} == set()
    for key in {*Claims.model_fields} - {"claims"}:
        assert f"`{key}`" in text
