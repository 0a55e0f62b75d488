"""The time that each attention module adds to a training step.

    python benchmarks/attention.py [--device cuda] [--images imagenet] [--json FILE] [--threads 2]
        [--starts 2] [--rounds 3] [--attentions se cbam] [--uncompiled]

It trains a ResNet-18 with CIFAR's stem and batch 64 (on a GPU 128), or a ResNet-50 at 224×224, with
``attngrid.training.loop.train``, without attention and with each module. The precision is bfloat16,
or float32 if the device has no bfloat16 instructions. On a CPU the modules are compiled, as in a
long training; ``--uncompiled`` also measures them uncompiled. On a GPU the whole network is
compiled, or nothing with ``--uncompiled``. Code that is not in the compiler's cache is compiled
first, which takes some minutes in all.

Each side has its own process. A round is a sample of the baseline and of the first module, then of
the baseline and of the next module, because a shared machine may change its speed within seconds.
The addresses that a process gets in memory change its speed as much as a module does, so on a CPU
all processes are started more than once. The output is the median and the quartiles of the added
time. The exit code is 1 if a module adds more than its bound.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ours import train
from setting import Setting, add_options, select_setting
from sides import Side, headline, interleave, quartiles, report, table

# Percent that a module may add.
BOUNDS = {
    "cpu": {"se": 8, "maf": 8, "cbam": 20, "maf_c": 20, "srap": 20},
    "cuda": {"se": 3, "maf": 5, "cbam": 8, "srap": 10},
}
EAGER = {"compile": False}


def performance_options(device: str, *, uncompiled: bool) -> dict[str, dict[str, Any]]:
    """The performance options of each side; the baseline comes first."""
    if device == "cuda":
        # true and not auto, so that a network that cannot be compiled is an error
        both = {"compile": not uncompiled}
        return {"none": both, "ours": both}
    eager = {"eager": EAGER} if uncompiled else {}
    return {"none": {}, "ours": {"compile": "attention"}, **eager}


def measure(
    setting: Setting,
    attentions: Sequence[str],
    performance: Mapping[str, dict[str, Any]],
    starts: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """The table's rows: added time in percent of the baseline's step just before."""
    names = list(performance)[1:]
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(starts):

        def side(attention: str, name: str) -> Side:
            label = f"{attention}, {name}"
            return Side(label, train, setting, attention, setting.precision, performance[name])

        baseline = side("none", "none")
        sides = {(a, name): side(a, name) for a in attentions for name in names}
        order = [one for a in attentions for one in (baseline, *(sides[a, name] for name in names))]
        interleave(order, rounds, one_by_one=setting.device == "cuda")
        for key, one in sides.items():
            seconds[key] += one.seconds
        for index, attention in enumerate(attentions):
            seconds[attention, "none"] += baseline.seconds[index :: len(attentions)]
    rows = []
    for attention in attentions:
        none = seconds[attention, "none"]
        if any(len(seconds[attention, name]) != starts * rounds for name in performance):
            continue  # a process ended early; Side has printed it
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
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    add_options(parser)
    parser.add_argument("--starts", type=int, help="starts of all processes (2, on a GPU 1)")
    parser.add_argument("--rounds", type=int, help="rounds after each start (3, on a GPU 5)")
    parser.add_argument("--attentions", nargs="+", default=list(BOUNDS["cpu"]))
    parser.add_argument("--uncompiled", action="store_true", help="also with compile: false")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.device == "cpu" else 5)
    setting = select_setting(options)
    performance = performance_options(setting.device, uncompiled=options.uncompiled)
    bounds = BOUNDS[setting.device]
    starts = options.starts or (2 if setting.device == "cpu" else 1)
    sampling = {"starts": starts, "rounds": options.rounds}
    run = setting.describe(compiled=performance["ours"] != EAGER, **sampling)
    # One module at a time where all processes would need too much memory (1.5 GB each), and on a
    # GPU, where the baseline's samples must fit into one epoch.
    one_at_a_time = "eager" in performance or setting.device == "cuda"
    groups = [[one] for one in options.attentions] if one_at_a_time else [options.attentions]
    rows = [row for group in groups for row in measure(setting, group, performance, **sampling)]
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
