"""`make soak-slurm`: 500 tiny cells, four to a job, through a real Slurm here, and their time."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from slurm.conftest import TINY, Place, Sandbox

CELLS = int(sys.argv[1]) if len(sys.argv) > 1 else 500


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(Path(folder) / "sandbox")
        sandbox.folder.mkdir()
        try:
            sandbox.up()
            place = Place(sandbox, Path(folder) / "clone", STEP_S="0")
            TINY["recipes"]["tiny"]["epochs"] = 1
            study = place.counted(list(range(CELLS)))
            start = time.time()
            code = place.start().wait(4 * 3600)
            wall_s = time.time() - start
        finally:
            sandbox.down()
        attempts = [len(made) for made in place.attempts(study)]
        records = len(list(place.file(study.results).glob("records/*.json")))
        print(place.told())
        print(
            f"{CELLS} cells: {records} records, {sum(attempts)} attempts, exit status {code}, "
            f"{wall_s:.0f} s, {wall_s / CELLS:.2f} s a cell"
        )
        sys.exit(code or records != CELLS or sum(attempts) != CELLS)


if __name__ == "__main__":
    main()
