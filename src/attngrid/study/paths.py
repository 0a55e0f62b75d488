"""A site's folders for images and results; one ``site.yaml`` serves all studies."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from attngrid.core.errors import ConfigError
from attngrid.core.types import Strict
from attngrid.core.validation import read_settings, settings_file


class Site(Strict):
    """A site's folders. Each job expands environment variables such as ``$SCRATCH``."""

    data: str = Field("data", description="folder of the datasets, cifar-100-python/ and so on")
    results: str = Field("results", description="folder of the results, a subfolder for each study")


def site() -> Site:
    """The settings in ``$ATTNGRID_SITE`` or ``site.yaml``; the defaults without a file."""
    return read_settings(Site, settings_file("ATTNGRID_SITE", Path("site.yaml")).absolute())


def data_folder() -> Path:
    """The folder of the datasets."""
    return _expanded("data", site().data)


def results_folder() -> Path:
    """The folder of the results, with one subfolder for each study."""
    return _expanded("results", site().results)


def _expanded(key: str, value: str) -> Path:
    path = os.path.expandvars(value)
    if "$" in path:
        raise ConfigError(f"site.yaml: {key}: found {value!r}, but a variable in it is not set")
    return Path(path).expanduser()
