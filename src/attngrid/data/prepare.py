"""Checking a dataset's files once, with a report of what was found.

The report ``<data folder>/.attngrid/<dataset>.json`` holds counts, checksums, and the sizes and
times of what was checked. As long as sizes and times agree, nothing is checked again.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock

from attngrid.core.errors import DataError
from attngrid.core.files import write_atomically
from attngrid.data.registry import find_dataset, short_name

# Subfolder of the data folder for reports, indices, locks and downloads.
STATE_FOLDER = ".attngrid"


@dataclass(frozen=True)
class Summary:
    """What a dataset's ``prepare`` function found.

    Attributes:
        source: URL or folder of the images.
        images: number of images by split.
        classes: number of classes.
        watched: size in bytes and modification time in ns of each file and folder that was checked.
        checksums: ``md5:...`` by file.
        ignored: number of files that are not images.
    """

    source: str
    images: Mapping[str, int]
    classes: int
    watched: Mapping[str, tuple[int, int]]
    checksums: Mapping[str, str] = field(default_factory=dict)
    ignored: int = 0


def report_file(name: str, folder: Path) -> Path:
    """The file of a dataset's report."""
    short = re.sub(r"[^A-Za-z0-9._]+", "_", short_name(name))
    return folder / STATE_FOLDER / f"{short}.json"


def prepare(
    name: str, folder: Path, *, download: bool = False, thorough: bool = False
) -> dict[str, Any] | None:
    """Check a dataset and unpack its archives, unless its report says that this was done.

    Several processes may call this at once: one works, the others wait.

    Args:
        name: as ``find_dataset`` takes it.
        folder: the data folder.
        download: fetch missing files.
        thorough: decode every image of a dataset whose images stay in files.

    Returns:
        The report; None for a dataset without files to check.

    Raises:
        DataError: missing or damaged files; the message says what to do. Nothing is deleted.
    """
    dataset = find_dataset(name)
    if dataset.prepare is None:
        return None
    if (report := read_report(name, folder, thorough=thorough)) is not None:
        return report
    file = report_file(name, folder)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            # another process may have finished while this one waited
            if (report := read_report(name, folder, thorough=thorough)) is not None:
                return report
            module, _, function = dataset.prepare.rpartition(":")
            check = getattr(importlib.import_module(module), function)
            summary: Summary = check(name, folder, download=download, thorough=thorough)
            report = {
                "dataset": name,
                "checked": datetime.now(UTC).isoformat(timespec="seconds"),
                "thorough": thorough,
                "attngrid": _version(),
                "folder": _absolute_folder(name),
                **asdict(summary),
            }
            write_atomically(file, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        where = error.filename or folder
        raise DataError(
            f"{dataset.label} could not be prepared: {where}: {error.strerror or error}. Nothing "
            f"was deleted; {folder} must be writable and have room (a link in it may lead to "
            "images that are not)"
        ) from error
    return json.loads(file.read_text("utf-8"))  # type: ignore[no-any-return]


def read_report(name: str, folder: Path, *, thorough: bool = False) -> dict[str, Any] | None:
    """The report of a dataset that has not changed since; None if it has to be checked."""
    try:
        report: dict[str, Any] = json.loads(report_file(name, folder).read_text("utf-8"))
        watched = {path: tuple(size_time) for path, size_time in report["watched"].items()}
        unchanged = watched == sizes_and_times(folder, watched)
        unchanged = unchanged and report["folder"] == _absolute_folder(name)
        return report if unchanged and (report["thorough"] or not thorough) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing, or written by another version


def sizes_and_times(folder: Path, paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Size in bytes (0 for a folder) and modification time in ns of paths in the data folder.

    Raises:
        OSError: a path that does not exist.
    """
    found = {}
    for path in paths:
        stat = (folder / path).stat()
        size = 0 if (folder / path).is_dir() else stat.st_size
        found[path] = (size, stat.st_mtime_ns)
    return found


@contextmanager
def unfinished_folder(name: str, folder: Path) -> Iterator[Path]:
    """An empty temporary folder on the data folder's disk, removed at the end."""
    unfinished = report_file(name, folder).with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def move_into_place(file: Path, target: Path) -> None:
    """Flush a finished file to disk and rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    file.replace(target)


def _version() -> str:
    try:
        return version("attngrid")
    except PackageNotFoundError:  # run from its sources
        return "unknown"


def _absolute_folder(name: str) -> str | None:
    folder = find_dataset(name).folder
    return None if folder is None else str(Path(folder).absolute())
