"""What the published figures say by themselves: arithmetic on them, and on our counts."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from statistics import NormalDist

from attngrid.analysis.frames import read_frame
from attngrid.core.errors import AttngridError
from attngrid.core.files import shipped
from attngrid.study.labels import attention_label, backbone_label

Printed = dict[tuple[str, str], dict[str, Decimal]]
IMAGES = {"imagenet": 50_000, "cifar100": 10_000}  # that a figure is measured on
# bottlenecks of ResNet-50 by stage, their output channels, and the side of their maps at 224×224
RESNET50 = ((3, 256, 56), (4, 512, 28), (6, 1024, 14), (3, 2048, 7))


@dataclass(frozen=True)
class Line:
    """One figure of a finding.

    Attributes:
        finding: what it belongs to; a key of ``FINDINGS``.
        key: its name within the finding, letters only.
        quantity: what it is, in words.
        arithmetic: how it comes about, from figures that are printed or counted.
        value: the result, as text.
    """

    finding: str
    key: str
    quantity: str
    arithmetic: str
    value: str


FINDINGS = {
    "accuracies": (
        "CSM's Table III beside public figures",
        "The accuracies that Table III prints for CIFAR-100 are above public top-1 accuracies "
        "of the same networks and near their top-5 accuracies. The paper does not say which of "
        "the two it prints, nor with which recipe. The public figures are one run each, of 200 "
        "epochs.",
    ),
    "gains": (
        "The gains of Table III",
        "Table III prints one gain for four networks. The last line says how often four gains "
        "of one true size would round to the same tenth if they scattered as the drawing of "
        "10,000 test images scatters two independent networks. Networks tested on the same "
        "images scatter less, and seeds add to it, so that this is a scale and no test.",
    ),
    "neighbours": (
        "CSM's Table II beside CBAM's Table 4",
        "Rows of the same network: the baselines and SE, and CSM beside CBAM, as the difference "
        "of the printed errors. Both are of ImageNet-1K, single crop; one standard error of the "
        "drawing of its 50,000 validation images is given for scale.",
    ),
    "stride": (
        "The stride behind Table 4's 3.858 GFLOPs",
        "Where a bottleneck strides decides ResNet-50's count. The printed figure is that of a "
        "stride on the first 1×1 convolution; checkpoints of the same authors' repository have "
        "it on the 3×3.",
    ),
    "resnext": (
        "ResNeXt-50 in CBAM's Table 4",
        "The one of sixteen comparisons with CBAM in that table in which SE has the smaller error.",
    ),
    "small": (
        "Gains of Table 4 beside the drawing of the test images",
        "A gain is small here if it is below one standard error that 50,000 validation images "
        "give the difference of two independent networks. Networks tested on the same images "
        "differ less by chance, so that this is a scale and no test.",
    ),
    "halved": (
        "Multiply-accumulates called FLOPs",
        "Table 4's GFLOPs are multiply-accumulates. The counting script of the SRAP authors "
        "halves them and calls the result FLOPs; where a multiply-gradient_accumulation_steps is two operations "
        "it is four times as many.",
    ),
    "csm": (
        "What CSM adds to ResNet-50 as its text defines it",
        "Three 1×1 convolutions of C channels to C with bias, the product of every position "
        "with every other, twice, and the channel gate, in every block.",
    ),
    "srap": (
        "What SRAP adds to the MobileNets",
        "Counted at the places that its authors' code has it, on the expanded channels.",
    ),
    "selection": (
        "The best of the epochs in MAF's published log",
        "Its authors' code keeps the epoch with the best accuracy on the validation set. In the "
        "log that they publish, which the printed accuracy is from, it is the last one.",
    ),
}


def audit(
    reference: Path = Path("reference"), complexity: Path = Path("results/complexity.csv")
) -> list[Line]:
    """All findings, computed from the published CSVs and the counts.

    Args:
        reference: the folder of the published CSVs.
        complexity: the counts at the papers' full size.

    Raises:
        AttngridError: a network that has not been counted, or is not in its table.
    """
    try:
        return _audit(reference, complexity)
    except KeyError as error:
        raise AttngridError(
            f"the audit wants {error} in {complexity} and the CSVs of {reference}: "
            "`snakemake --cores all complexity` counts what is in config/complexity.yaml"
        ) from None


def _audit(reference: Path, complexity: Path) -> list[Line]:
    table4 = _printed(reference / "cbam_table4.csv")
    table2 = _printed(reference / "csm_table2.csv")
    table3 = _printed(reference / "csm_table3.csv")
    public = _printed(reference / "public_cifar100.csv")
    counts = _counts(complexity)
    return [
        *_accuracies(table3, public),
        *_gains(table3),
        *_neighbours(table2, table4),
        *_stride(table4, counts),
        *_resnext(table4),
        *_small(table4),
        *_halved(counts),
        *_csm(counts),
        *_srap(counts),
        *_selection(reference / "maf_c_mobilenet_v1_imagenet_curve.csv"),
    ]


def _accuracies(table3: Printed, public: Printed) -> Iterator[Line]:
    for backbone in ("resnet18", "resnet34", "resnet50"):
        figures = public[backbone, "none"]
        for key, name in (("one", "top-1"), ("five", "top-5")):
            accuracy = 100 - figures[f"top{name[-1]}_error"]
            printed = table3[backbone, "none"]["accuracy"]
            yield Line(
                "accuracies",
                _letters(backbone) + key,
                f"{backbone_label(backbone)}: above the public {name} accuracy, points",
                f"{printed} - (100 - {figures[f'top{name[-1]}_error']}) = {printed} - {accuracy}",
                f"{printed - accuracy:+}",
            )


def _gains(table3: Printed) -> Iterator[Line]:
    backbones = list(dict.fromkeys(backbone for backbone, _ in table3))
    for backbone in backbones:
        a, b = (table3[backbone, name]["accuracy"] for name in ("csm", "none"))
        name = f"{backbone_label(backbone)}: gain, points"
        yield Line("gains", _letters(backbone), name, f"{a} - {b}", f"{a - b:+}")
    share = float(sum(row["accuracy"] for row in table3.values())) / len(table3) / 100
    scatter = 100 * math.sqrt(2 * share * (1 - share) / IMAGES["cifar100"])
    yield Line(
        "gains",
        "scatter",
        "standard error of a gain by 10,000 images, points",
        f"100 × √(2 × {share:.4f} × {1 - share:.4f} / 10000)",
        f"{scatter:.2f}",
    )
    normal = NormalDist(0, scatter)
    bins = [(k - 0.5, k + 0.5) for k in range(-100, 101)]
    same = sum((normal.cdf(high / 10) - normal.cdf(low / 10)) ** 4 for low, high in bins)
    yield Line(
        "gains",
        "same",
        "four such gains round to one tenth, once in",
        f"1 / Σ over tenths of (their share at σ = {scatter:.2f})⁴",
        f"{1 / same:.0f}",
    )


def _neighbours(table2: Printed, table4: Printed) -> Iterator[Line]:
    distances = []
    for (backbone, attention), row in table2.items():
        other = "cbam" if attention == "csm" else attention
        for metric in ("top1_error", "top5_error"):
            ours, theirs = row[metric], table4[backbone, other][metric]
            distances.append(ours - theirs)
            yield Line(
                "neighbours",
                _letters(backbone) + attention + ("one" if "1" in metric else "five"),
                f"{backbone_label(backbone)}, {attention_label(attention)} less "
                f"{attention_label(other)}, {metric[:3]}-{metric[3]} error, points",
                f"{ours} - {theirs}",
                f"{ours - theirs:+}",
            )
    sizes = [abs(distance) for distance in distances]
    yield Line(
        "neighbours",
        "mean",
        "mean distance, points",
        f"{sum(sizes)} / {len(sizes)}",
        f"{sum(sizes) / len(sizes):.3f}",
    )
    yield Line("neighbours", "largest", "largest distance, points", "", f"{max(sizes)}")
    error = float(table4["resnet50", "none"]["top1_error"]) / 100
    standard = 100 * math.sqrt(error * (1 - error) / IMAGES["imagenet"])
    yield Line(
        "neighbours",
        "standard",
        "standard error of one figure by 50,000 images, points",
        f"100 × √({error:.4f} × {1 - error:.4f} / 50000)",
        f"{standard:.2f}",
    )


def _stride(table4: Printed, counts: dict[tuple[str, str], dict[str, int]]) -> Iterator[Line]:
    printed = table4["resnet50", "none"]["gflops"]
    names = {"resnet50": ("first", "first 1×1"), "resnet50_v1.5": ("middle", "3×3")}
    for backbone, (key, where) in names.items():
        macs = counts[backbone, "none"]["macs"]
        yield Line(
            "stride",
            key,
            f"stride on the {where}: GMACs, printed {printed}",
            f"{macs} / 10⁹",
            f"{macs / 1e9:.3f}",
        )


def _resnext(table4: Printed) -> Iterator[Line]:
    cbam, se = (table4["resnext50_32x4d", name]["top1_error"] for name in ("cbam", "se"))
    difference = cbam - se
    yield Line("resnext", "points", "CBAM less SE, points", f"{cbam} - {se}", f"{difference:+}")
    images = difference / 100 * IMAGES["imagenet"]
    quantity = "the same in validation images"
    yield Line("resnext", "images", quantity, f"{difference} / 100 × 50000", f"{images:.0f}")


def _small(table4: Printed) -> Iterator[Line]:
    backbones = list(dict.fromkeys(backbone for backbone, _ in table4))
    for key, better, than in (("se", "se", "none"), ("cbam", "cbam", "se")):
        small = []
        for backbone in backbones:
            a, b = (float(table4[backbone, name]["top1_error"]) / 100 for name in (better, than))
            standard = math.sqrt((a * (1 - a) + b * (1 - b)) / IMAGES["imagenet"])
            small.append(b - a < standard)
        yield Line(
            "small",
            key,
            f"{attention_label(better)} over {attention_label(than)}: small top-1 gains of "
            f"{len(backbones)}",
            "gain < 100 × √((e₁(1 - e₁) + e₂(1 - e₂)) / 50000)",
            str(sum(small)),
        )


def _halved(counts: dict[tuple[str, str], dict[str, int]]) -> Iterator[Line]:
    macs = counts["mobilenet_v1", "srap"]["macs"]
    name = "MobileNetV1 + SRAP, 224×224"
    for key, quantity, factor in (
        ("macs", "multiply-accumulates, millions", 1.0),
        ("halved", "halved, as the script's FLOPs, millions", 0.5),
        ("operations", "two operations each, millions", 2.0),
    ):
        arithmetic = f"{macs} × {factor:g} / 10⁶"
        yield Line("halved", key, f"{name}: {quantity}", arithmetic, f"{macs * factor / 1e6:.1f}")


def _csm(counts: dict[tuple[str, str], dict[str, int]]) -> Iterator[Line]:
    ours, base = counts["resnet50", "csm"], counts["resnet50", "none"]
    params = sum(blocks * (3 * (c * c + c) + _gate(c)) for blocks, c, _ in RESNET50)
    macs = sum(
        blocks * (3 * side**2 * c * c + 2 * side**4 * c + 2 * c * (c // 16))
        for blocks, c, side in RESNET50
    )
    yield Line(
        "csm",
        "params",
        "parameters added, millions",
        "Σ blocks × (3(C² + C) + 2C·C/16 + C/16 + C)",
        f"{params / 1e6:.2f}",
    )
    yield Line(
        "csm",
        "countedparams",
        "the same as counted, millions",
        f"({ours['params']} - {base['params']}) / 10⁶",
        f"{(ours['params'] - base['params']) / 1e6:.2f}",
    )
    yield Line(
        "csm",
        "macs",
        "GMACs added",
        "Σ blocks × (3NC² + 2N²C + 2C·C/16), N = H·W",
        f"{macs / 1e9:.2f}",
    )
    yield Line(
        "csm",
        "countedmacs",
        "the same as counted, GMACs",
        f"({ours['macs']} - {base['macs']}) / 10⁹",
        f"{(ours['macs'] - base['macs']) / 1e9:.2f}",
    )
    for name, unit in (("params", "parameters"), ("macs", "multiply-accumulates")):
        yield Line(
            "csm",
            f"times{name}",
            f"{unit}, times the baseline's",
            f"{ours[name]} / {base[name]}",
            f"{ours[name] / base[name]:.2f}",
        )


def _gate(channels: int) -> int:
    """Parameters of a channel gate with biases at r = 16."""
    hidden = channels // 16
    return 2 * channels * hidden + hidden + channels


def _srap(counts: dict[tuple[str, str], dict[str, int]]) -> Iterator[Line]:
    for backbone in ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large"):
        ours, base = (counts[backbone, name]["params"] for name in ("srap", "none"))
        yield Line(
            "srap",
            _letters(backbone),
            f"{backbone_label(backbone)}: parameters added, %",
            f"100 × ({ours} - {base}) / {base}",
            f"{100 * (ours - base) / base:+.1f}",
        )


def _selection(file: Path) -> Iterator[Line]:
    with shipped(file).open(encoding="utf-8", newline="") as stream:
        log = [Decimal(row["val_top1_accuracy"]) for row in csv.DictReader(stream)]
    best = max(log)
    epoch = log.index(best) + 1
    what = "top-1 accuracy, %"
    yield Line("selection", "best", f"best epoch, {epoch} of {len(log)}: {what}", "", str(best))
    yield Line("selection", "last", f"last epoch: {what}", "", str(log[-1]))
    gain = best - log[-1]
    yield Line("selection", "gain", "by the choice, points", f"{best} - {log[-1]}", f"{gain:+}")


def _letters(name: str) -> str:
    """A name in letters, as a LaTeX macro can have it: ``resnet18`` is ``resneteighteen``."""
    words = {"18": "eighteen", "34": "thirtyfour", "50": "fifty", "1.5": "onefive"}
    words |= {"1": "one", "2": "two", "3": "three"}
    for digits, word in words.items():
        name = name.replace(digits, word)
    return "".join(character for character in name if character.isalpha())


def _printed(file: Path) -> Printed:
    """A published CSV's figures, exactly as printed, by backbone and attention."""
    with shipped(file).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    texts = {"backbone", "attention", "source"}
    return {
        (row["backbone"], row["attention"]): {
            name: Decimal(value) for name, value in row.items() if name not in texts
        }
        for row in rows
    }


def _counts(file: Path) -> dict[tuple[str, str], dict[str, int]]:
    """The counts at 224×224 and 1,000 classes, by backbone and attention."""
    frame = read_frame(shipped(file))
    frame = frame[
        (frame["input_size"] == 224) & (frame["num_classes"] == 1000) & (frame["options"] == "")
    ]
    return {
        (row["backbone"], row["attention"]): {name: int(row[name]) for name in ("params", "macs")}
        for row in frame.to_dict("records")
    }
