"""Paths of the project's files, atomic writes, and reading YAML and JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from attngrid.core.errors import ConfigError


def home() -> Path:
    """The folder of the workflow, its tables and the published figures.

    This is the working folder if it is a checkout; else the copy in the installed package, or the
    checkout that an editable installation imports.
    """
    if Path("workflow/rules").is_dir():
        return Path()
    package = Path(__file__).resolve().parents[1]
    installed = package / "shipped"
    return installed if installed.is_dir() else package.parents[1]


def shipped(file: str | Path) -> Path:
    """A file in the working folder; if it is missing there, the same file in ``home()``."""
    at_home = home() / file
    return at_home if not Path(file).exists() and at_home.exists() else Path(file)


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
