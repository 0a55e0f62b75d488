"""The time of a large grid's dry run, compared with bare Snakemake.

    python benchmarks/dry_run.py [--json FILE] [--cells 10000] [--rounds 5]

It times dry runs of a CIFAR-100 study with this number of cells, for this machine and for a Slurm
cluster, and of a bare Snakefile with as many jobs of one rule. They run in turns, in one folder.
The system reports the peak memory when Snakemake ends. The exit code is 1 if the
study takes more than 1.5 times the bare time.
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
from typing import Any

from sides import headline, machine_info, quartiles, report, table

from attngrid.core.hardware import peak_memory_mb

ROOT = Path(__file__).resolve().parent.parent
BOUND = 1.5
STUDY = ("--snakefile", str(ROOT / "Snakefile"), "--configfile", "large.json")
SIDES = {
    "bare Snakemake": ("--snakefile", "bare.smk", "--quiet", "rules", "host"),
    "this machine": STUDY,
    "Slurm": (*STUDY, "--profile", str(ROOT / "slurm")),
}
BARE = """
rule all:
    input:
        expand("records/{{job}}.json", job=range({jobs})),


rule train:
    output:
        "records/{{job}}.json",
    shell:
        "train {{wildcards.job}} > {{output}}"
"""


def study(cells: int) -> dict[str, object]:
    """A CIFAR-100 study with this number of cells; the number of seeds follows from it."""
    block = {
        "dataset": "cifar100",
        "backbones": ["resnet18", "resnet50"],
        "attentions": ["none", "se", "cbam", "csm"],
        "recipes": ["cifar_30ep"],
        "seeds": list(range(cells // 8)),
    }
    return {"study": "large", "grid": [block]}


def dry_run(folder: Path, options: tuple[str, ...]) -> tuple[float, float]:
    """Wall time in seconds and peak memory in GB of a dry run."""
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "all", *options]
    with (folder / "log").open("wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
    if status:
        sys.exit((folder / "log").read_text("utf-8"))
    return wall_s, peak_memory_mb(used.ru_maxrss) / 1e3


def main() -> int:
    """Measure, print and compare with the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    run = machine_info(cells=options.cells, rounds=options.rounds)
    print(headline(run))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "large.json").write_text(json.dumps(study(options.cells)), "utf-8")
        (folder / "bare.smk").write_text(BARE.format(jobs=options.cells), "utf-8")
        for number in range(1 + options.rounds):
            for side, arguments in SIDES.items():
                took = dry_run(folder, arguments)
                if number:  # the first round fills the file cache
                    taken[side].append(took)
    rows: list[dict[str, Any]] = []
    bare_s = quartiles([wall_s for wall_s, _ in taken["bare Snakemake"]])[1]
    for side, runs in taken.items():
        low, median, high = quartiles([wall_s for wall_s, _ in runs])
        peak_gb = max(gb for _, gb in runs)
        rows.append(
            {"for": side, "s": median, "from": low, "to": high, "GB": peak_gb, "×": median / bare_s}
        )
    formats = {"for": "", "s": ".1f", "from": ".1f", "to": ".1f", "GB": ".2f", "×": ".2f"}
    print(table(rows, formats))
    report(options.json, run, rows=rows)
    missed = any(row["×"] > BOUND for row in rows)
    print(f"at most {BOUND} × bare Snakemake{': MISSED' if missed else ''}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
