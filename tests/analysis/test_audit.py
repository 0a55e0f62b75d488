"""The audit of the published figures, compared with hand computations."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from attngrid.analysis.audit import audit
from attngrid.analysis.selection import selection
from attngrid.render.verdicts import write_audit
from made_up import ROOT


@pytest.fixture(scope="module")
def lines() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for line in audit():
        assert line.key not in found.setdefault(line.finding, {})
        found[line.finding][line.key] = line.value
    return found


def test_the_findings_equal_hand_computations(lines: dict[str, dict[str, str]]) -> None:
    """Computed from the papers' tables."""
    assert lines["accuracies"]["resneteighteenone"] == "+16.09"  # 91.7 - 75.61
    assert lines["accuracies"]["resnetfiftyfive"] == "-1.06"  # 92.9 - 93.96
    networks = [key for key in lines["gains"] if key not in ("scatter", "same")]
    assert [lines["gains"][key] for key in networks] == ["+1.4"] * 4
    assert lines["neighbours"]["resnetfiftycsmone"] == "+0.12"  # 22.78 - 22.66
    assert lines["neighbours"]["largest"] == "0.26"  # 6.57 - 6.31
    assert (lines["stride"]["first"], lines["stride"]["middle"]) == ("3.858", "4.089")
    assert lines["resnext"] == {"points": "+0.01", "images": "5"}
    assert lines["selection"]["best"] == "73.128"
    page = (ROOT / "workflow/templates/audit.md.j2").read_text("utf-8")
    assert set(lines) == set(re.findall(r'table\("(\w+)"\)', page))


def test_the_formula_of_csm_equals_the_counts(lines: dict[str, dict[str, str]]) -> None:
    csm = lines["csm"]
    assert csm["params"] == csm["countedparams"]
    assert csm["macs"] == csm["countedmacs"]


def test_every_value_equals_its_printed_arithmetic() -> None:
    """Lines of only numbers and operators are computed again from their text."""
    computed = 0
    for line in audit():
        text = line.arithmetic.rpartition("=")[2].replace("×", "*")
        text = text.replace("10⁶", "1e6").replace("10⁹", "1e9").replace("√", "sqrt")
        if not text or re.search(r"[^0-9e.()+*/ -]", text.replace("sqrt", "")):
            continue
        value = eval(text, {"sqrt": lambda x: x**0.5})
        decimals = len(line.value.partition(".")[2])
        assert round(value, decimals) == pytest.approx(float(line.value)), line
        computed += 1
    assert computed > 40


def test_the_committed_audit_is_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("reference", "workflow"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    shutil.copy(ROOT / "results/complexity.csv", "results")
    write_audit(audit())
    for name in ("results/audit.csv", "tables/audit.md", "tables/audit.tex"):
        assert Path(name).read_bytes() == (ROOT / name).read_bytes(), name


def test_the_best_epochs_gain_is_averaged_over_cells() -> None:
    cells = pd.DataFrame(
        {
            "id": ["a", "b", "c", "c", "d"],
            "dataset": ["cifar10"] * 2 + ["cifar100"] * 3,
            "backbone": ["resnet18"] * 5,
            "attention": ["none", "se", "none", "none", "se"],
            "condition": ["x", "x", "y", "y", "y"],
            "state": ["measured"] * 4 + ["failed"],
            "top1_error": [24.0, 25.0, 30.0, 30.0, 0.0],
            "best_top1_error": [23.5, 25.0, 29.0, 29.0, 0.0],
            "top5_error": [4.0, 5.0, 3.0, 3.0, 0.0],
            "best_top5_error": [4.5, 5.0, 3.0, 3.0, 0.0],
        }
    )
    rows = selection(cells).set_index(["condition", "metric"])
    x, every = rows.loc[("x", "top1_error")], rows.loc[("all", "top1_error")]
    assert (x["cells"], x["chosen"], x["mean"], x["largest"]) == (2, 1, 0.25, 0.5)
    # the epoch that is best in top-1 was chosen for both
    x_top5 = rows.loc[("x", "top5_error")]
    assert (x_top5["chosen"], x_top5["mean"]) == (1, -0.25)
    # 0.25 ± t(0.975, 1) · s / √2, s = 0.5 / √2
    assert x["high"] - x["mean"] == pytest.approx(12.706 * 0.25, rel=1e-3)
    assert (every["cells"], every["mean"]) == (3, 0.5)
    assert rows.loc[("y", "top1_error")][["low", "high"]].isna().all()  # a single model
    assert selection(cells[:0]).empty


def test_the_printed_accuracy_of_maf_is_the_last_line_of_its_authors_log() -> None:
    """The best top-5 accuracy, 91.374, is that of an earlier epoch."""
    log = pd.read_csv(ROOT / "reference/maf_c_mobilenet_v1_imagenet_curve.csv").iloc[-1]
    printed = pd.read_csv(ROOT / "reference/author_checkpoints.csv", keep_default_na=False)
    (maf,) = printed.query("attention == 'maf_c'").itertuples()
    assert (maf.epochs, maf.top1_accuracy, maf.top5_accuracy) == (
        log["epoch"],
        log["val_top1_accuracy"],
        log["val_top5_accuracy"],
    )


def test_the_best_epochs_interval_is_clustered_by_model_and_by_dataset() -> None:
    """With equal clusters it is the t-interval of the clusters' means."""
    gains = {"none": [0.1, 0.2], "se": [0.5, 0.6], "cbam": [0.9, 1.0]}
    lines = [
        {"dataset": dataset, "condition": dataset, "backbone": "resnet18", "attention": name}
        | {"id": f"{dataset}{name}{gain}", "state": "measured", "best_top1_error": 20.0}
        | {"top1_error": 20.0 + gain + more, "top5_error": 5.0, "best_top5_error": 5.0}
        for dataset, more in (("cifar10", 0.0), ("cifar100", 0.4))
        for name, both in gains.items()
        for gain in both
    ]
    rows = selection(pd.DataFrame(lines)).set_index(["condition", "metric"])
    for condition, means in (("cifar10", [0.15, 0.55, 0.95]), ("all", [0.55, 0.95])):
        row = rows.loc[(condition, "top1_error")]
        expected = stats.t.interval(0.95, len(means) - 1, np.mean(means), stats.sem(means))
        assert (row["low"], row["high"]) == pytest.approx(expected)
