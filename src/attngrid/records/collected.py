"""Which configuration and code the collected frames of a study belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from attngrid.core.files import write_atomically
from attngrid.records.staleness import code_digest
from attngrid.study.schema import Study

LATEST = Path("configs/latest")


def collected(study: Study) -> Path:
    """An empty file that exists while the frames hold all cells of this configuration.

    Its name contains the code's digest, because records may become stale under other code.
    """
    return study.snapshot.with_suffix(f".{code_digest()[:8]}.collected")


def latest(study: Study) -> Path:
    """Which ``collected`` file the frames belong to, and the SHA-256 of each frame.

    It is absent while frames are written, and after an import.
    """
    return study.results / LATEST


def write_latest(study: Study, frames: Iterable[Path]) -> None:
    """Write ``latest`` for frames that have just been written."""
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in frames]
    write_atomically(latest(study), "\n".join([collected(study).name, *lines]) + "\n")


def edited_frames(results: Path) -> list[Path]:
    """The frames in a study's results that differ from what was collected."""
    edited = []
    for line in _lines(results / LATEST)[1:]:
        digest, _, name = line.partition("  ")
        file = results / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            edited.append(file)
    return edited


def prepare_collection(study: Study) -> None:
    """Write the study's snapshot, and make Snakemake collect again where frames are outdated.

    If the frames belong to another configuration or were edited, the snapshot gets a new
    modification time, so that Snakemake updates everything that depends on it. Call this before
    Snakemake builds its DAG: if the ``collected`` file disappeared later, a run that has just made
    it would fail.
    """
    study.write_snapshot()
    marker, found = collected(study), _lines(latest(study))
    if found[:1] != [marker.name] or edited_frames(study.results):
        marker.unlink(missing_ok=True)
        if found:
            study.snapshot.touch()


def _lines(file: Path) -> list[str]:
    """The lines of a small file; none if there is no file."""
    return file.read_text("utf-8", "replace").splitlines() if file.is_file() else []
