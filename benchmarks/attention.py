"""What each attention module adds to a training step, against none and against its literal form.

    python benchmarks/attention.py [--json FILE] [--threads 2] [--starts 2] [--rounds 3]
        [--attentions se cbam] [--uncompiled]

trains a ResNet-18 with CIFAR's stem, batch 64, in bfloat16, or in float32 where the processor
lacks that, by ``attngrid.training.loop.train``: without attention, with the module as a long
training has it, compiled, and with the module's literal form, operator by operator; if asked, with
the module uncompiled, too. What the compiler made before it finds again; what not, it makes first,
some minutes in all. Each side is a process of its own, a round is a step of the baseline, of the
module and of its literal form, then of the baseline and the next module: a shared machine may
change its speed within seconds. Where a process happens to lie in memory counts for as much as a
module does, so all are started more than once. Printed are medians and quartiles of the added time.
It ends non-zero where a module adds more than its bound, or is slower than its literal form by more
than the rounds' spread.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sides import Side, about, headline, interleave, quartiles, report, table
from training import BATCH, train, usual_precision

from attngrid.processor import processors

STEPS = 1
# Percent that a module may add, on the CPU.
BOUNDS = {"se": 8, "maf": 8, "cbam": 20, "maf_c": 20, "srap": 20}
# Switches of each side but the baseline.
EAGER = {"compile": False}
SIDES: dict[str, dict[str, Any]] = {
    "ours": {},
    "eager": EAGER,
    "literal": EAGER | {"attention": False},
}


def measure(
    attentions: Sequence[str], names: Sequence[str], threads: int, starts: int, rounds: int
) -> list[dict[str, Any]]:
    """The table's rows: percents of the baseline's step just before, of the same round."""
    precision = usual_precision()
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(starts):
        baseline = Side("none", train, "none", precision, {}, STEPS, threads)
        sides = {
            (attention, name): Side(name, train, attention, precision, SIDES[name], STEPS, threads)
            for attention in attentions
            for name in names
        }
        turns = [
            side
            for attention in attentions
            for side in (baseline, *(sides[attention, name] for name in names))
        ]
        interleave(turns, rounds)
        for key, side in sides.items():
            seconds[key] += side.seconds
        for place, attention in enumerate(attentions):
            seconds[attention, "none"] += baseline.seconds[place :: len(attentions)]
    rows = []
    for attention in attentions:
        none, ours = seconds[attention, "none"], seconds[attention, "ours"]
        row: dict[str, Any] = {"attention": attention}
        row["none_ms"] = quartiles([1e3 * s / STEPS for s in none])
        for name in names:
            pairs = zip(seconds[attention, name], none, strict=True)
            row[f"{name}_adds_percent"] = quartiles([100 * (a / b - 1) for a, b in pairs])
        pairs = zip(ours, seconds[attention, "literal"], strict=True)
        row["ours_of_literal"] = quartiles([a / b for a, b in pairs])
        rows.append(row)
    return rows


def main() -> int:
    """Measure, print, compare with the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--threads", type=int, default=processors())
    parser.add_argument("--starts", type=int, default=2, help="of all processes")
    parser.add_argument("--rounds", type=int, default=3, help="after each start")
    parser.add_argument("--attentions", nargs="+", default=list(BOUNDS))
    parser.add_argument("--uncompiled", action="store_true", help="and with compile: false")
    options = parser.parse_args()
    names = [name for name in SIDES if name != "eager" or options.uncompiled]
    sampling = {"starts": options.starts, "rounds": options.rounds}
    run = about(threads=options.threads, batch=BATCH, precision=usual_precision(), **sampling)
    # sixteen processes of a gigabyte and a half are too many
    together = [[one] for one in options.attentions] if options.uncompiled else [options.attentions]
    rows = [row for few in together for row in measure(few, names, options.threads, **sampling)]
    print(f"ResNet-18 with CIFAR's stem; {headline(run)}")
    shown = [
        {
            "attention": row["attention"],
            "none, ms": row["none_ms"][1],
            "adds %": row["ours_adds_percent"][1],
            "from": row["ours_adds_percent"][0],
            "to": row["ours_adds_percent"][2],
            "bound": BOUNDS.get(row["attention"]),
            **{f"{name} adds %": row[f"{name}_adds_percent"][1] for name in names[1:]},
        }
        for row in rows
    ]
    formats = {name: ".0f" if name == "bound" else ".1f" for name in shown[0]} | {"attention": ""}
    print(table(shown, formats))
    report(options.json, run, rows=rows)
    over = [
        row["attention"]
        for row in rows
        if row["ours_adds_percent"][1] > BOUNDS.get(row["attention"], float("inf"))
        or row["ours_of_literal"][0] > 1
    ]
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
