"""The files of users' classes, kept beside the records of the cells that they trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attngrid.core.files import write_atomically
from attngrid.core.user_code import find_user_class
from attngrid.study.cell import Cell

# A user's class in a name, such as ``none_wide:my_file.py:MyClass``.
_USER_CLASS = re.compile(r"([^:]+\.py):(\w+)")


def kept_files(results: Path, config: Mapping[str, Any]) -> dict[str, Path]:
    """Where a study's ``results`` keep the files of a record's user classes, by role.

    The folder of each has the class's digest; the file has its own name and is a copy of the
    first version that was trained.
    """
    found = {}
    for role, sha256 in config["sha256"].items():
        if (match := _USER_CLASS.search(config[role])) is not None:
            name = f"{match[2]}-{sha256[:8]}"
            found[role] = results / "sources" / name / Path(match[1]).name
    return found


def kept_names(results: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The names of a record's user classes in the files that are kept of them, by role."""
    return {
        role: _USER_CLASS.sub(lambda match, file=file: f"{file}:{match[2]}", config[role])  # type: ignore[misc]
        for role, file in kept_files(results, config).items()
        if file.is_file()
    }


def keep_files(cell: Cell) -> None:
    """Copy the files of a cell's user classes into its study's results, once."""
    config = cell.config()
    for role, file in kept_files(cell.record.parents[1], config).items():
        match = _USER_CLASS.search(config[role])
        if match is not None and not file.is_file():
            user = find_user_class(role, match[0])
            if user.sha256 == config["sha256"][role]:  # else it was edited, and is not imported
                write_atomically(file, user.source)
