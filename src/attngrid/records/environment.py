"""What a training runs on: versions, commit, device and operating system."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torchvision", "numpy", "scikit-learn")


def now() -> str:
    """The time as UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment(
    device_type: str, device_name: str, versions: Mapping[str, str | None]
) -> dict[str, Any]:
    """Versions of the code and its libraries, the device and the operating system.

    Args:
        device_type: ``cpu`` or ``cuda``.
        device_name: the processor's or the GPU's.
        versions: those of torch and CUDA, which this module does not import.
    """
    return {
        "attngrid": version("attngrid"),
        "commit": code_version(),
        "python": platform.python_version(),
        **versions,
        **{name.replace("-", "_"): _version(name) for name in LIBRARIES},
        "device": device_type,
        "device_name": device_name,
        "platform": platform.platform(),
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def code_version() -> str | None:
    """The commit of the checkout that this package runs from, with ``+changes`` if it is edited.

    Without a repository it is the environment variable ``ATTNGRID_COMMIT``, or None.
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
