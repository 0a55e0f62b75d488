"""A site's folders for images and results; one ``site.yaml`` serves all studies."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from attngrid.core.files import expand
from attngrid.core.types import Strict
from attngrid.core.validation import read_settings, settings_file


class Site(Strict):
    """A site's folders. Each job expands ``~`` and variables such as ``$SCRATCH``."""

    data: str = Field("data", description="folder of the datasets, cifar-100-python/ and so on")
    results: str = Field("results", description="folder of the results, a subfolder for each study")


def site() -> Site:
    """The settings in ``$ATTNGRID_SITE`` or ``site.yaml``; the defaults without a file."""
    return read_settings(Site, settings_file("ATTNGRID_SITE", Path("site.yaml")).absolute())


def data_folder() -> Path:
    """The folder of the datasets."""
    return expand(site().data, "site.yaml: data: ")


def results_folder() -> Path:
    """The folder of the results, with one subfolder for each study."""
    return expand(site().results, "site.yaml: results: ")
