"""`make soak-slurm`: time 500 tiny cells, four to a job, on a Slurm on this machine."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from slurm.conftest import TINY, Clone, Sandbox

CELLS = int(sys.argv[1]) if len(sys.argv) > 1 else 500


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(Path(folder) / "sandbox")
        sandbox.folder.mkdir()
        try:
            sandbox.up()
            clone = Clone(sandbox, Path(folder) / "clone", STEP_S="0")
            TINY["recipes"]["tiny"]["epochs"] = 1
            study = clone.counted_study(list(range(CELLS)))
            start = time.time()
            code = clone.start().wait(4 * 3600)
            wall_s = time.time() - start
        finally:
            sandbox.down()
        attempts = [len(made) for made in clone.attempts(study)]
        records = len(list(clone.file(study.results).glob("records/*.json")))
        print(clone.output())
        print(
            f"{CELLS} cells: {records} records, {sum(attempts)} attempts, exit status {code}, "
            f"{wall_s:.0f} s, {wall_s / CELLS:.2f} s a cell"
        )
        sys.exit(code or records != CELLS or sum(attempts) != CELLS)


if __name__ == "__main__":
    main()
