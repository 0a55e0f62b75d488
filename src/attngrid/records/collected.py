"""Which configuration and code the collected frames of a study belong to."""

from __future__ import annotations

from pathlib import Path

from attngrid.records.staleness import code_digest
from attngrid.study.schema import Study


def collected(study: Study) -> Path:
    """An empty file that exists while the frames hold all cells of this configuration.

    Its name contains the code's digest, because records may become stale under other code.
    """
    return study.snapshot.with_suffix(f".{code_digest()[:8]}.collected")


def latest(study: Study) -> Path:
    """The file with the name of the ``collected`` file that the frames belong to.

    It is absent while frames are written, and after an import.
    """
    return study.snapshot.with_name("latest")


def prepare_collection(study: Study) -> None:
    """Write the study's snapshot, and make Snakemake collect again where frames are outdated.

    If the frames belong to another configuration, the snapshot gets a new modification time, so
    that Snakemake updates everything that depends on it. Call this before Snakemake builds its
    DAG: if the ``collected`` file disappeared later, a run that has just made it would fail.
    """
    study.write_snapshot()
    found = latest(study).read_text("utf-8") if latest(study).is_file() else None
    if found != (marker := collected(study)).name:
        marker.unlink(missing_ok=True)
        if found is not None:
            study.snapshot.touch()
