"""What a user types for a study or a cell, and what it stands for."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.core.files import read_yaml
from attngrid.core.validation import STUDY_NAME
from attngrid.study.cell import Cell
from attngrid.study.paths import results_folder
from attngrid.study.schema import Study

# The configuration that Snakemake reads, in a checkout and in a study folder.
DEFAULTS = (Path("config/config.yaml"), Path("study.yaml"))


def find_study_file(text: str | None) -> Path:
    """The configuration that a file's or a study's name stands for; None is the default.

    Raises:
        ConfigError: no default here, or two files with one study's name.
        UnknownNameError: no study of this name.
    """
    if text is None:
        for file in DEFAULTS:
            if file.is_file():
                return file
        raise ConfigError(f"STUDY is missing: there is no {' and no '.join(map(str, DEFAULTS))}")
    if not re.fullmatch(STUDY_NAME, text) or Path(text).is_file():
        return Path(text)
    studies: dict[str, list[Path]] = {}
    for file in (*sorted(Path("config").glob("*.yaml")), Path("study.yaml")):
        with suppress(ConfigError):
            content = read_yaml(file)
            if isinstance(content, dict) and "study" in content:
                studies.setdefault(str(content["study"]), []).append(file)
    for file in sorted(results_folder().glob("*/study.json")):
        studies.setdefault(file.parent.name, [file])
    if text not in studies:
        raise UnknownNameError("study", text, studies)
    if len(studies[text]) > 1:
        files = " and ".join(map(str, studies[text]))
        raise ConfigError(f"study {text!r}: found in {files}; give one of these files")
    return studies[text][0]


def find_cell(study: Study, prefix: str) -> Cell:
    """The cell or tuning trial of an id, or of the beginning of one id.

    Raises:
        ConfigError: several ids begin so; UnknownNameError: none does.
    """
    found = [id for id in (*study.trainings, *study.trials) if id.startswith(prefix)]
    if len(found) > 1 and not study.has(prefix):
        shown = ", ".join(found[:8]) + (" and more" if len(found) > 8 else "")
        raise ConfigError(f"cell {prefix!r} of {study.study}: {len(found)} ids begin so: {shown}")
    return study.training(found[0] if len(found) == 1 else prefix)
