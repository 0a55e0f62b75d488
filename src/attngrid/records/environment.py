"""The current time, and the version of the code."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path


def now() -> str:
    """The current time in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def code_version() -> str | None:
    """The commit of this package's checkout, with ``+changes`` if files are edited.

    Outside a repository: the environment variable ``ATTNGRID_COMMIT``, or None.
    """
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
        return done.stdout.strip()

    try:
        # an installed copy inside another repository does not have that repository's commit
        git("ls-files", "--error-unmatch", Path(__file__).name)
        commit, edited = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "..")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("ATTNGRID_COMMIT") or None
    return f"{commit}+changes" if edited else commit
