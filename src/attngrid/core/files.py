"""Paths of the project's files, atomic writes, and reading YAML and JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from attngrid.core.errors import ConfigError


def home() -> Path:
    """The checkout of this project.

    This is the working folder, or ``$ATTNGRID_HOME`` (the workflow sets it for a study in another
    folder), or the checkout from which the package is installed.
    """
    if Path("workflow/rules").is_dir():
        return Path()
    return Path(os.environ.get("ATTNGRID_HOME") or Path(__file__).resolve().parents[3])


def set_home(checkout: object) -> None:
    """Set the checkout for this process and its child processes."""
    os.environ["ATTNGRID_HOME"] = str(checkout)


def shipped(file: str | Path) -> Path:
    """A file in the working folder; if it is missing there, the same file of the checkout."""
    in_checkout = home() / file
    return in_checkout if not Path(file).exists() and in_checkout.exists() else Path(file)


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write a temporary file, flush it to disk and rename it to ``file``; create its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # the process id is in the name because two processes may write the same file
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def modified_ns(file: Path) -> int:
    """Modification time in ns since 1970; 0 for a missing file."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def read_yaml(file: str | os.PathLike[str]) -> Any:
    """Parse a YAML (or JSON) file safely.

    Raises:
        ConfigError: the file is missing or not valid; the message names file and line.
    """
    try:
        text = Path(file).read_text("utf-8")
        # YAML 1.1 reads JSON's 1e-05 as a string
        return json.loads(text) if Path(file).suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", error)
        raise ConfigError(f"{file}{where}: not valid YAML: {problem}") from None
