"""What each attention module adds to a training step.

    python benchmarks/attention.py [--device cuda] [--images imagenet] [--json FILE] [--threads 2]
        [--starts 2] [--rounds 3] [--attentions se cbam] [--uncompiled]

trains a ResNet-18 with CIFAR's stem, batch 64 (on a GPU 128), or a ResNet-50 at 224×224, in
bfloat16, or in float32 where the device lacks that, by ``attngrid.training.loop.train``: without
attention, and with the module as a long training has it, compiled; with ``--uncompiled`` on a CPU
also with the module uncompiled. On a GPU the whole network is compiled, or nothing if asked. What
the compiler made before it finds again; what not, it makes first, some minutes in all. Each side is
a process of its own, a round is a sample of the baseline and of the module, then of the baseline
and the next module: a shared machine may change its speed within seconds. Where a process happens
to lie in memory counts for as much as a module does, so on a CPU all are started more than once.
Printed are medians and quartiles of the added time. It ends non-zero where a module adds more than
its bound.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ours import train
from setting import Setting, add_options, chosen
from sides import Side, headline, interleave, quartiles, report, table

# Percent that a module may add.
BOUNDS = {
    "cpu": {"se": 8, "maf": 8, "cbam": 20, "maf_c": 20, "srap": 20},
    "cuda": {"se": 3, "maf": 5, "cbam": 8, "srap": 10},
}
EAGER = {"compile": False}


def switches(device: str, *, uncompiled: bool) -> dict[str, dict[str, Any]]:
    """Of each side, the baseline's first."""
    if device == "cuda":  # what fails to compile is to be no figure of what is compiled
        all_of_them = {"compile": not uncompiled}
        return {"none": all_of_them, "ours": all_of_them}
    eager = {"eager": EAGER} if uncompiled else {}
    return {"none": {}, "ours": {"compile": "attention"}, **eager}


def measure(
    setting: Setting,
    attentions: Sequence[str],
    performance: Mapping[str, dict[str, Any]],
    starts: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """The table's rows: percents of the baseline's step just before, of the same round."""
    names = list(performance)[1:]
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(starts):

        def side(attention: str, name: str) -> Side:
            what = f"{attention}, {name}"
            return Side(what, train, setting, attention, setting.precision, performance[name])

        baseline = side("none", "none")
        sides = {(a, name): side(a, name) for a in attentions for name in names}
        turns = [one for a in attentions for one in (baseline, *(sides[a, name] for name in names))]
        interleave(turns, rounds, one_by_one=setting.device == "cuda")
        for key, one in sides.items():
            seconds[key] += one.seconds
        for place, attention in enumerate(attentions):
            seconds[attention, "none"] += baseline.seconds[place :: len(attentions)]
    rows = []
    for attention in attentions:
        none = seconds[attention, "none"]
        if any(len(seconds[attention, name]) != starts * rounds for name in performance):
            continue  # a process has ended, which it has said
        row: dict[str, Any] = {"attention": attention}
        row["none_ms"] = quartiles([1e3 * s / setting.steps for s in none])
        for name in names:
            pairs = zip(seconds[attention, name], none, strict=True)
            row[f"{name}_adds_percent"] = quartiles([100 * (a / b - 1) for a, b in pairs])
        rows.append(row)
    return rows


def main() -> int:
    """Measure, print, compare with the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    add_options(parser)
    parser.add_argument("--starts", type=int, help="of all processes: 2, on a GPU 1")
    parser.add_argument("--rounds", type=int, help="after each start: 3, on a GPU 5")
    parser.add_argument("--attentions", nargs="+", default=list(BOUNDS["cpu"]))
    parser.add_argument("--uncompiled", action="store_true", help="and with compile: false")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.device == "cpu" else 5)
    setting = chosen(options)
    performance = switches(setting.device, uncompiled=options.uncompiled)
    bounds = BOUNDS[setting.device]
    starts = options.starts or (2 if setting.device == "cpu" else 1)
    sampling = {"starts": starts, "rounds": options.rounds}
    run = setting.about(compiled=performance["ours"] != EAGER, **sampling)
    # sixteen processes of a gigabyte and a half are too many; and a GPU's baseline has an epoch
    few_at_once = "eager" in performance or setting.device == "cuda"
    together = [[one] for one in options.attentions] if few_at_once else [options.attentions]
    rows = [row for few in together for row in measure(setting, few, performance, **sampling)]
    print(headline(run))
    shown = [
        {
            "attention": row["attention"],
            "none, ms": row["none_ms"][1],
            "adds %": row["ours_adds_percent"][1],
            "from": row["ours_adds_percent"][0],
            "to": row["ours_adds_percent"][2],
            "bound": bounds.get(row["attention"]),
            **{f"{name} adds %": row[f"{name}_adds_percent"][1] for name in list(performance)[2:]},
        }
        for row in rows
    ]
    formats = {name: ".0f" if name == "bound" else ".1f" for name in shown[0]} | {"attention": ""}
    print(table(shown, formats))
    report(options.json, run, rows=rows)
    over = [
        row
        for row in rows
        if row["ours_adds_percent"][1] > bounds.get(row["attention"], float("inf"))
    ]
    return int(bool(over) or len(rows) < len(options.attentions))


if __name__ == "__main__":
    sys.exit(main())
