"""Where a site keeps images, results and scratch files: one ``site.yaml`` for all studies."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from pydantic import Field

from attngrid.core.errors import ConfigError
from attngrid.core.types import Strict

FILE = "site.yaml"


class Site(Strict):
    """A site's folders; ``$NAMES`` of the environment are filled in where a job runs."""

    data: str = Field("data", description="holds the datasets, cifar-100-python/ and so on")
    results: str = Field("results", description="holds a folder for each study")
    scratch: str | None = Field(
        None, description="on a node's own disk: datasets are copied there before they are read"
    )


def site() -> Site:
    """What the file that ``$ATTNGRID_SITE`` names says, or else ``site.yaml``, or the defaults.

    Raises:
        ConfigError: a file that is named and not there, an unknown key or a wrong type.
    """
    file = _file()
    return _read(file, file.stat().st_mtime_ns) if file.is_file() else Site()


def data_folder() -> Path:
    """The folder that holds the datasets."""
    return _filled("data", site().data)


def results_folder() -> Path:
    """The folder that holds a folder for each study."""
    return _filled("results", site().results)


def scratch_folder() -> Path | None:
    """The folder on this node's own disk, if the site has one."""
    scratch = site().scratch
    return None if scratch is None else _filled("scratch", scratch)


def _file() -> Path:
    named = os.environ.get("ATTNGRID_SITE")
    if named and not Path(named).is_file():
        raise ConfigError(f"ATTNGRID_SITE: found {named!r}; there is no such file")
    return Path(named or FILE).absolute()


@lru_cache(maxsize=8)
def _read(file: Path, changed: int) -> Site:
    from attngrid.core.files import read_yaml  # it reads this module
    from attngrid.core.validation import validate  # it reads this module

    return validate(Site, read_yaml(file) or {}, file)


def _filled(key: str, value: str) -> Path:
    path = os.path.expandvars(value)
    if "$" in path:
        raise ConfigError(f"{_file()}: {key}: found {value!r}, in which a variable is not set")
    return Path(path).expanduser()
