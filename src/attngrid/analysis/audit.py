"""Audit of the published figures: arithmetic on these figures and on our counts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from statistics import NormalDist
from typing import Any

import pandas as pd

from attngrid.analysis.frames import COMPLEXITY, read_counts
from attngrid.analysis.reference import REFERENCE, Model, read_published
from attngrid.core.errors import AttngridError
from attngrid.core.files import shipped
from attngrid.models.registry import attention_label
from attngrid.study.labels import backbone_label

Printed = dict[Model, dict[str, Decimal]]
Counts = dict[Model, dict[Any, Any]]
IMAGES = {"imagenet": 50_000, "cifar100": 10_000}  # test images
# bottlenecks of ResNet-50 by stage, their output channels, and the side of their maps at 224×224
RESNET50 = ((3, 256, 56), (4, 512, 28), (6, 1024, 14), (3, 2048, 7))


@dataclass(frozen=True)
class Line:
    """One figure of a finding."""

    finding: str  # its section of ``tables/audit.md``
    key: str  # name of the figure within the finding, letters only
    quantity: str
    arithmetic: str  # the formula, with printed or counted figures
    value: str


Figures = Iterator[tuple[str, str, str, str]]  # the fields of ``Line`` after ``finding``


def audit() -> list[Line]:
    """Compute all findings from the published CSVs and the counts at the papers' full size.

    Raises:
        AttngridError: a network is not in the counts or not in its published table.
    """

    def printed(name: str) -> Printed:
        texts = {"backbone", "attention", "source"}
        return {
            model: {key: Decimal(value) for key, value in row.items() if key not in texts}
            for model, row in read_published(f"{name}.csv", {}, "").items()
        }

    table2, table3 = printed("csm_table2"), printed("csm_table3")
    table4, public = printed("cbam_table4"), printed("public_cifar100")
    counts = read_counts(stem="imagenet", num_classes=1000, input_size=224)
    figures = {
        "accuracies": _accuracies(table3, public),
        "gains": _gains(table3),
        "neighbours": _neighbours(table2, table4),
        "stride": _stride(table4, counts),
        "resnext": _resnext(table4),
        "small": _small(table4),
        "halved": _halved(counts),
        "csm": _csm(counts),
        "srap": _srap(counts),
        "selection": _selection(),
    }
    try:
        return [Line(name, *figure) for name, found in figures.items() for figure in found]
    except KeyError as error:
        raise AttngridError(
            f"the audit needs {error} in {COMPLEXITY} and in the CSVs of {REFERENCE}; "
            "`snakemake --cores all complexity` counts the models of config/complexity.yaml"
        ) from None


def _accuracies(table3: Printed, public: Printed) -> Figures:
    for backbone in ("resnet18", "resnet34", "resnet50"):
        printed = table3[backbone, "none"]["accuracy"]
        for key, digit in (("one", 1), ("five", 5)):
            error = public[backbone, "none"][f"top{digit}_error"]
            accuracy = 100 - error
            yield (
                _letters(backbone) + key,
                f"{backbone_label(backbone)}: above the public top-{digit} accuracy, points",
                f"{printed} - (100 - {error}) = {printed} - {accuracy}",
                f"{printed - accuracy:+}",
            )


def _gains(table3: Printed) -> Figures:
    for backbone in dict.fromkeys(backbone for backbone, _ in table3):
        a, b = (table3[backbone, name]["accuracy"] for name in ("csm", "none"))
        yield _letters(backbone), f"{backbone_label(backbone)}: gain, points", *_difference(a, b)
    share = float(sum(row["accuracy"] for row in table3.values())) / len(table3) / 100
    scatter = 100 * math.sqrt(2 * share * (1 - share) / IMAGES["cifar100"])
    yield (
        "scatter",
        "standard error of a gain by 10,000 images, points",
        f"100 × √(2 × {share:.4f} × {1 - share:.4f} / 10000)",
        f"{scatter:.2f}",
    )
    normal = NormalDist(0, scatter)
    bins = [(k - 0.5, k + 0.5) for k in range(-100, 101)]
    same = sum((normal.cdf(high / 10) - normal.cdf(low / 10)) ** 4 for low, high in bins)
    yield (
        "same",
        "four such gains round to one tenth, once in",
        f"1 / Σ over tenths of (their share at σ = {scatter:.2f})⁴",
        f"{1 / same:.0f}",
    )


def _neighbours(table2: Printed, table4: Printed) -> Figures:
    sizes = []
    for (backbone, attention), row in table2.items():
        other = "cbam" if attention == "csm" else attention
        for digit, word in ((1, "one"), (5, "five")):
            metric = f"top{digit}_error"
            ours, theirs = row[metric], table4[backbone, other][metric]
            sizes.append(abs(ours - theirs))
            yield (
                _letters(backbone) + attention + word,
                f"{backbone_label(backbone)}, {attention_label(attention)} less "
                f"{attention_label(other)}, top-{digit} error, points",
                *_difference(ours, theirs),
            )
    total, n = sum(sizes), len(sizes)
    yield "mean", "mean distance, points", f"{total} / {n}", f"{total / n:.3f}"
    yield "largest", "largest distance, points", "", f"{max(sizes)}"
    error = float(table4["resnet50", "none"]["top1_error"]) / 100
    standard = 100 * math.sqrt(error * (1 - error) / IMAGES["imagenet"])
    quantity = "standard error of one figure by 50,000 images, points"
    arithmetic = f"100 × √({error:.4f} × {1 - error:.4f} / 50000)"
    yield "standard", quantity, arithmetic, f"{standard:.2f}"


def _stride(table4: Printed, counts: Counts) -> Figures:
    printed = table4["resnet50", "none"]["gflops"]
    names = {"resnet50": ("first", "first 1×1"), "resnet50_v1.5": ("middle", "3×3")}
    for backbone, (key, where) in names.items():
        macs = counts[backbone, "none"]["macs"]
        quantity = f"stride on the {where}: GMACs, printed {printed}"
        yield key, quantity, f"{macs} / 10⁹", f"{macs / 1e9:.3f}"


def _resnext(table4: Printed) -> Figures:
    cbam, se = (table4["resnext50_32x4d", name]["top1_error"] for name in ("cbam", "se"))
    yield "points", "CBAM less SE, points", *_difference(cbam, se)
    images = (cbam - se) / 100 * IMAGES["imagenet"]
    yield "images", "the same in validation images", f"{cbam - se} / 100 × 50000", f"{images:.0f}"


def _small(table4: Printed) -> Figures:
    backbones = list(dict.fromkeys(backbone for backbone, _ in table4))
    for better, than in (("se", "none"), ("cbam", "se")):
        small = 0
        for backbone in backbones:
            a, b = (float(table4[backbone, name]["top1_error"]) / 100 for name in (better, than))
            small += b - a < math.sqrt((a * (1 - a) + b * (1 - b)) / IMAGES["imagenet"])
        modules = f"{attention_label(better)} over {attention_label(than)}"
        quantity = f"{modules}: small top-1 gains of {len(backbones)}"
        arithmetic = "gain < 100 × √((e₁(1 - e₁) + e₂(1 - e₂)) / 50000)"
        yield better, quantity, arithmetic, str(small)


def _halved(counts: Counts) -> Figures:
    macs = counts["mobilenet_v1", "srap"]["macs"]
    for key, quantity, factor in (
        ("macs", "multiply-accumulates, millions", 1.0),
        ("halved", "halved, as the script's FLOPs, millions", 0.5),
        ("operations", "two operations each, millions", 2.0),
    ):
        quantity = f"MobileNetV1 + SRAP, 224×224: {quantity}"
        yield key, quantity, f"{macs} × {factor:g} / 10⁶", f"{macs * factor / 1e6:.1f}"


def _csm(counts: Counts) -> Figures:
    ours, base = counts["resnet50", "csm"], counts["resnet50", "none"]
    params = macs = 0
    for blocks, c, side in RESNET50:
        hidden, n = c // 16, side**2
        params += blocks * (3 * (c * c + c) + 2 * c * hidden + hidden + c)
        macs += blocks * (3 * n * c * c + 2 * n * n * c + 2 * c * hidden)
    formula = "Σ blocks × (3(C² + C) + 2C·C/16 + C/16 + C)"
    yield "params", "parameters added, millions", formula, f"{params / 1e6:.2f}"
    added = {name: ours[name] - base[name] for name in ("params", "macs")}
    counted = f"({ours['params']} - {base['params']}) / 10⁶"
    quantity = "the same as counted, millions"
    yield "countedparams", quantity, counted, f"{added['params'] / 1e6:.2f}"
    formula = "Σ blocks × (3NC² + 2N²C + 2C·C/16), N = H·W"
    yield "macs", "GMACs added", formula, f"{macs / 1e9:.2f}"
    counted = f"({ours['macs']} - {base['macs']}) / 10⁹"
    yield "countedmacs", "the same as counted, GMACs", counted, f"{added['macs'] / 1e9:.2f}"
    for name, unit in (("params", "parameters"), ("macs", "multiply-accumulates")):
        quantity, ratio = f"{unit}, times the baseline's", ours[name] / base[name]
        yield f"times{name}", quantity, f"{ours[name]} / {base[name]}", f"{ratio:.2f}"


def _srap(counts: Counts) -> Figures:
    for backbone in ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large"):
        ours, base = (counts[backbone, name]["params"] for name in ("srap", "none"))
        quantity = f"{backbone_label(backbone)}: parameters added, %"
        arithmetic = f"100 × ({ours} - {base}) / {base}"
        yield _letters(backbone), quantity, arithmetic, f"{100 * (ours - base) / base:+.1f}"


def _selection() -> Figures:
    frame = pd.read_csv(shipped(REFERENCE / "maf_c_mobilenet_v1_imagenet_curve.csv"), dtype=str)
    log = [Decimal(accuracy) for accuracy in frame["val_top1_accuracy"]]
    best, last = max(log), log[-1]
    what, epoch = "top-1 accuracy, %", log.index(best) + 1
    yield "best", f"best epoch, {epoch} of {len(log)}: {what}", "", str(best)
    yield "last", f"last epoch: {what}", "", str(last)
    yield "gain", "by the choice, points", *_difference(best, last)


def _difference(a: Decimal, b: Decimal) -> tuple[str, str]:
    """The arithmetic and the value of a difference."""
    return f"{a} - {b}", f"{a - b:+}"


def _letters(name: str) -> str:
    """A name in letters only, for a LaTeX macro: ``resnet18`` is ``resneteighteen``."""
    words = {"18": "eighteen", "34": "thirtyfour", "50": "fifty", "1.5": "onefive"}
    words |= {"1": "one", "2": "two", "3": "three"}
    for digits, word in words.items():
        name = name.replace(digits, word)
    return "".join(character for character in name if character.isalpha())
