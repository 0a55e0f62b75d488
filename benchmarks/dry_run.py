"""What a large grid costs before its first job: 10,000 cells within 12 s and 1.5 GB.

    python benchmarks/dry_run.py [--json FILE] [--cells 10000] [--rounds 5]

A dry run of a CIFAR-100 study of so many cells, in an empty folder, once for this machine and once
for a Slurm cluster, in turns. Time and peak memory are those that the system notes when Snakemake
ends. It ends non-zero where a bound is not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sides import about, headline, quartiles, report, table

from attngrid.core.hardware import peak_memory_mb

ROOT = Path(__file__).resolve().parent.parent
BOUND_S, BOUND_GB = 12.0, 1.5
SIDES = {"this machine": (), "Slurm": ("--profile", str(ROOT / "slurm"))}


def study(cells: int) -> dict[str, object]:
    """CIFAR-100's study with as many seeds as give so many cells."""
    attentions = ["none", "se", "cbam", "csm"]
    block = {
        "dataset": "cifar100",
        "backbones": ["resnet18", "resnet50"],
        "recipes": ["cifar_30ep"],
    }
    seeds = list(range(cells // 8))
    return {"study": "large", "grid": [block | {"attentions": attentions, "seeds": seeds}]}


def dry_run(folder: Path, options: tuple[str, ...]) -> tuple[float, float]:
    """Wall time in seconds and peak memory in GB of a dry run."""
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "all", *options]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "large.json"]
    with (folder / "log").open("wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
    if status:
        sys.exit((folder / "log").read_text("utf-8"))
    return wall_s, peak_memory_mb(used.ru_maxrss) / 1e3


def main() -> int:
    """Measure, print, compare with the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    run = about(cells=options.cells, rounds=options.rounds)
    print(headline(run))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "large.json").write_text(json.dumps(study(options.cells)), "utf-8")
        for number in range(1 + options.rounds):
            for side, arguments in SIDES.items():
                took = dry_run(folder, arguments)
                if number:  # the first warms the files up
                    taken[side].append(took)
    rows, missed = [], False
    for side, runs in taken.items():
        low, median, high = quartiles([wall_s for wall_s, _ in runs])
        peak_gb = max(gb for _, gb in runs)
        rows.append({"for": side, "s": median, "from": low, "to": high, "GB": peak_gb})
        missed |= median > BOUND_S or peak_gb > BOUND_GB
    print(table(rows, {"for": "", "s": ".1f", "from": ".1f", "to": ".1f", "GB": ".2f"}))
    report(options.json, run, rows=rows)
    print(f"at most {BOUND_S:.0f} s and {BOUND_GB} GB{': MISSED' if missed else ''}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
