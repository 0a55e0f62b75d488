"""Processor time of a grid besides its training loops: at most 6 core-seconds a cell.

    python benchmarks/startup.py [--json FILE] [--study config/config.yaml] [--rounds 5]

It runs a study (by default the demo) in a temporary folder, as `make demo` does. The system reports
the processor time (user and system) of each `attngrid` command when it ends. From a training's time
the benchmark subtracts `loop_cpu_s` of its record: the epochs with their tests. The time of the
whole run minus that of all commands is Snakemake's, with bash and tee. It is divided by the number
of cells. So is the time of the other commands, which count, collect and render.

The modules are imported once before the run, to fill the file cache. The benchmark also times
`attngrid --help`. The exit code is 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from sides import headline, machine_info, quartiles, report

from attngrid.records.record import read_record
from attngrid.study.schema import load_study

ROOT = Path(__file__).resolve().parent.parent
BOUND_S, SHARE, HELP_S = 6.0, 0.08, 0.3
MINUTE = 60.0

# It comes before `attngrid` in PATH, calls it, and writes down its processor time.
WRAPPER = """#!{python} -IS
import json, os, sys
pid = os.posix_spawn({command!r}, [{command!r}, *sys.argv[1:]], os.environ)
_, status, used = os.wait4(pid, 0)
cpu_s = used.ru_utime + used.ru_stime
with open(f"{{os.path.dirname(__file__)}}/{{os.getpid()}}.json", "w") as stream:
    json.dump({{"arguments": sys.argv[1:], "cpu_s": cpu_s}}, stream)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def children_s() -> float:
    """Processor time of the child processes that have ended, with their own children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_grid(study: Path, folder: Path) -> tuple[float, float, list[dict[str, Any]]]:
    """Run a study's workflow in an empty folder.

    Returns:
        Processor time and wall time of the whole run in seconds, and each command's processor time.
    """
    command = Path(sys.executable).parent / "attngrid"
    notes = folder / ".commands"
    notes.mkdir()
    wrapper = notes / "attngrid"
    wrapper.write_text(WRAPPER.format(python=sys.executable, command=str(command)), "utf-8")
    wrapper.chmod(0o755)
    path = os.pathsep.join([str(notes), str(command.parent), os.environ["PATH"]])
    before, start = children_s(), time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--cores", "all", "--directory", str(folder)),
            *("--snakefile", str(ROOT / "Snakefile"), "--configfile", str(study)),
        ],
        check=True,
        env=os.environ | {"PATH": path},
        stdout=subprocess.DEVNULL,
    )
    took = children_s() - before, time.perf_counter() - start
    return *took, [json.loads(file.read_text("utf-8")) for file in sorted(notes.glob("*.json"))]


def cells_of(folder: Path, commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each training's processor time: of its loop, and of its process outside the loop."""
    cells = []
    for command in commands:
        if command["arguments"][0] != "train":
            continue
        _, _, cell = command["arguments"]
        (record,) = folder.glob(f"results/*/records/{cell}.json")
        loop_s = read_record(record).run["loop_cpu_s"]
        outside_s = command["cpu_s"] - loop_s
        cells.append({"id": record.stem, "loop_s": loop_s, "outside_s": outside_s})
    return sorted(cells, key=lambda cell: str(cell["id"]))


def help_s() -> float:
    """Wall time of `attngrid --help`."""
    command = [str(Path(sys.executable).parent / "attngrid"), "--help"]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Measure, print, compare with the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--study", type=Path, default=ROOT / "config" / "config.yaml")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of `attngrid --help`")
    options = parser.parse_args()
    study = load_study(options.study)
    run = machine_info(study=study.study, python=platform.python_version())
    print(headline(run))

    helps = quartiles([help_s() for _ in range(1 + options.rounds)][1:])
    with tempfile.TemporaryDirectory() as folder:
        warm = [sys.executable, "-c", "import attngrid.training.run, attngrid.render.figures"]
        subprocess.run(warm, check=True)
        all_s, wall_s, commands = run_grid(options.study.resolve(), Path(folder))
        cells = cells_of(Path(folder), commands)
    others: dict[str, float] = defaultdict(float)
    for command in commands:
        if command["arguments"][0] != "train":
            others[command["arguments"][0]] += command["cpu_s"]
    snakemake_s = all_s - sum(command["cpu_s"] for command in commands)

    print(f"{'outside, s':>12}{'loop, s':>12}  cell")
    for cell in cells:
        print(f"{cell['outside_s']:12.2f}{cell['loop_s']:12.2f}  {cell['id']}")
    low, median, high = quartiles([cell["outside_s"] for cell in cells])
    per_cell = median + snakemake_s / len(cells)
    rest = sum(others.values()) / len(cells)
    missed = per_cell > BOUND_S, (per_cell + rest) / MINUTE > SHARE, helps[1] > HELP_S
    marks = ["  MISSED" if miss else "" for miss in missed]
    print(f"\n{study.study}: {len(cells)} trainings in {wall_s:.0f} s; core-seconds a cell")
    print(f"  outside its loop      {median:.2f} ({low:.2f}-{high:.2f})")
    print(f"  Snakemake's own share {snakemake_s / len(cells):.2f} ({snakemake_s:.1f} in all)")
    print(f"  together              {per_cell:.2f}, at most {BOUND_S}{marks[0]}")
    names = ", ".join(f"{name} {cpu_s:.1f}" for name, cpu_s in sorted(others.items()))
    print(f"  the other commands    {rest:.2f} (in all: {names})")
    print(
        f"with them {(per_cell + rest) / MINUTE:.1%} of one-minute cells, at most {SHARE:.0%}"
        f"{marks[1]}"
    )
    print(
        f"attngrid --help: {helps[1]:.3f} s ({helps[0]:.3f}-{helps[2]:.3f}), at most {HELP_S}"
        f"{marks[2]}"
    )
    report(
        options.json,
        run | {"wall_s": wall_s},
        cells=cells,
        outside_s=[low, median, high],
        snakemake_s=snakemake_s,
        per_cell_s=per_cell,
        other_commands_s=others,
        share_of_minute_cells=(per_cell + rest) / MINUTE,
        help_s=helps,
    )
    return int(any(missed))


if __name__ == "__main__":
    sys.exit(main())
