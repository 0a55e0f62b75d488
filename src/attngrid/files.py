"""Writing files so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write beside, flush to disk, then rename over ``file``; folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # the process id keeps two writers of one file out of each other's way
    scratch = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
