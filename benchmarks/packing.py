"""Small cells side by side, a thread each, against one after another with all threads.

    python benchmarks/packing.py [--json FILE] [--cells 6] [--rounds 5]

trains a quarter-width ResNet-18 on the digits: ``beside`` starts as many cells at a time as there
are cores, with one thread each; ``after`` one after the other, each with all cores. A round is as
many cells of both; printed are medians and quartiles of the time it takes, with the start of each
process, as a study has it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import DEVNULL, run
from tempfile import TemporaryDirectory

from sides import about, headline, quartiles, report

from attngrid.core.hardware import processors
from attngrid.study.schema import load_study

GAIN = 1.2  # from which it is the default


def study(threads: int, cells: int) -> str:
    """Small cells as text, JSON being YAML."""
    block = {"dataset": "digits", "backbones": ["resnet18"], "attentions": ["none"]}
    return json.dumps(
        {
            "study": f"packing{threads}",
            "grid": [
                {
                    **block,
                    "recipes": ["demo_6ep"],
                    "seeds": list(range(cells)),
                    "options": {"width": 0.25},
                }
            ],
            "compute": {"device": "cpu", "threads": threads},
            "keep": {"weights": "none"},
        }
    )


def seconds(folder: Path, threads: int, beside: int, cells: int) -> float:
    """To train all cells, so many at a time."""
    file = folder / f"packing{threads}.yaml"
    file.write_text(study(threads, cells))
    ids = list(load_study(file).trainings)

    def train(cell: str) -> None:
        command = ["-m", "attngrid.cli", "train", file.name, cell, "--record", f"{cell}.json"]
        run([sys.executable, *command], cwd=folder, check=True, stderr=DEVNULL)

    start = time.perf_counter()
    with ThreadPoolExecutor(beside) as pool:
        list(pool.map(train, ids))
    return time.perf_counter() - start


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cells", type=int, default=2 * processors())
    options = parser.parse_args()
    cores, run_on = processors(), about(cells=options.cells, rounds=options.rounds)
    sides: dict[str, list[float]] = {"beside": [], "after": []}
    for _ in range(options.rounds):
        for side, (threads, beside) in {"beside": (1, cores), "after": (cores, 1)}.items():
            with TemporaryDirectory() as new:  # what has a record is not trained again
                sides[side].append(seconds(Path(new), threads, beside, options.cells))
    found = {name: quartiles(values) for name, values in sides.items()}
    gains = [b / a for a, b in zip(sides["beside"], sides["after"], strict=True)]
    gain = quartiles(gains)
    print(headline(run_on))
    for name, (low, median, high) in found.items():
        print(f"{name:>7}: {median:6.1f} s for {options.cells} cells ({low:.1f}-{high:.1f})")
    print(f"side by side is {gain[1]:.2f} times as fast ({gain[0]:.2f}-{gain[2]:.2f})")
    report(options.json, run_on, seconds=found, gain=gain)
    return int(gain[1] < GAIN)


if __name__ == "__main__":
    sys.exit(main())
