"""Where the project's own files are, and writing so that a crash never leaves half a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from attngrid.core.errors import ConfigError


def home() -> Path:
    """The checkout of this project: the folder one is in, or the one that runs the workflow.

    A study may live in a folder of its own; its Snakefile names the checkout. Without one, it is
    the checkout that the package is installed from, if it is.
    """
    if Path("workflow/rules").is_dir():
        return Path()
    return Path(os.environ.get("ATTNGRID_HOME") or Path(__file__).resolve().parents[3])


def set_home(checkout: object) -> None:
    """Tell this process, and those it starts, where the checkout is."""
    os.environ["ATTNGRID_HOME"] = str(checkout)


def shipped(file: str | Path) -> Path:
    """A file that the project ships, unless the folder one is in has one of that name."""
    there = home() / file
    return there if not Path(file).exists() and there.exists() else Path(file)


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
    # the new name, too, survives a loss of power
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def keep_as(file: Path, kept: Path) -> None:
    """Give a file a second name, in place of what had it, so that the first may be written over.

    The first name is never without a file, which whoever packs or asks for a training's state
    would take for no checkpoint; only a filesystem without hard links moves it.
    """
    kept.unlink(missing_ok=True)
    try:
        os.link(file, kept)
    except OSError:
        file.replace(kept)


def modified_ns(file: Path) -> int:
    """When a file was last written, in ns since 1970; 0 where there is none.

    In one call: between two, a training may end and remove its checkpoint.
    """
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def read_yaml(file: str | os.PathLike[str]) -> Any:
    """Parse a YAML (or JSON) file safely.

    Raises:
        ConfigError: no such file, or no YAML; the message names file and line.
    """
    try:
        text = Path(file).read_text("utf-8")
        # YAML 1.1 takes JSON's 1e-05 for a word
        return json.loads(text) if Path(file).suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", error)
        raise ConfigError(f"{file}{where}: not valid YAML: {problem}") from None
