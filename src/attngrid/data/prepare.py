"""Download, unpack and check a dataset's files once.

The report ``<data folder>/.attngrid/<dataset>.json`` says what was found and when. It has sizes
and times of checked files (``watched``): while they stay the same, nothing is checked again.
"""

from __future__ import annotations

import hashlib
import json
import pkgutil
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from filelock import FileLock

from attngrid import __version__
from attngrid.core.errors import DataError
from attngrid.core.files import write_atomically
from attngrid.data.registry import find_dataset, short_name

# Subfolder of the data folder for reports, locks and unpacked archives.
STATE_FOLDER = ".attngrid"


def report_file(name: str, folder: Path) -> Path:
    """The file of a dataset's report."""
    short = short_name(name)
    safe = re.sub(r"[^A-Za-z0-9._]+", "_", short)
    if not re.fullmatch(r"[A-Za-z0-9._]+(:[A-Za-z0-9._]+){0,2}", short):
        # names that differ only in the replaced characters have different files
        safe += f"_{hashlib.sha256(short.encode()).hexdigest()[:8]}"
    return folder / STATE_FOLDER / f"{safe}.json"


def prepare(
    name: str, folder: Path, *, download: bool = False, thorough: bool = False
) -> dict[str, Any] | None:
    """Check a dataset and unpack its archives, unless its report says that this is done.

    Several processes may call this at once: one works, the others wait. ``download`` fetches
    missing files; ``thorough`` decodes every image of a dataset whose images stay in files.

    Returns:
        The report; None for a dataset without files to check.

    Raises:
        DataError: missing or damaged files; the message says what to do. Nothing is deleted.
    """
    dataset = find_dataset(name)
    if dataset.prepare is None:
        return None
    report = _read_report(name, folder, thorough)
    if report is not None:
        return report
    file = report_file(name, folder)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            # another process may have finished while this one waited
            report = _read_report(name, folder, thorough)
            if report is None:
                check = pkgutil.resolve_name(dataset.prepare)
                report = {
                    "dataset": name,
                    "classes": dataset.num_classes,
                    "checked": datetime.now(UTC).isoformat(timespec="seconds"),
                    "thorough": thorough,
                    "attngrid": __version__,
                    **check(name, folder, download=download, thorough=thorough),
                }
                write_atomically(file, json.dumps(report, indent=1) + "\n")
            return report
    except OSError as error:
        # torchvision's own errors have no strerror; their text says what is wrong
        known = f"{error.filename or folder}: {error.strerror}" if error.strerror else str(error)
        raise DataError(
            f"{dataset.label} could not be prepared: {known}. Nothing was deleted; {folder} must "
            "be writable and have free space (links in it may lead to read-only images)"
        ) from error


def _read_report(name: str, folder: Path, thorough: bool) -> dict[str, Any] | None:
    """The report of an unchanged dataset; None if the dataset must be checked."""
    image_folder = find_dataset(name).folder
    try:
        report: dict[str, Any] = json.loads(report_file(name, folder).read_text("utf-8"))
        unchanged = report["watched"] == sizes_and_times(folder, report["watched"])
        unchanged &= report["images"].keys() == {"train", "test"}
        if image_folder is not None:  # two folders of the same name share a report
            unchanged &= report["source"] == str(Path(image_folder).absolute())
        return report if unchanged and (report["thorough"] or not thorough) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing, or written by another version


def sizes_and_times(folder: Path, paths: Iterable[str]) -> dict[str, list[int]]:
    """Size in bytes (0 for a folder) and modification time in ns of paths in the data folder."""
    found = {}
    for path in paths:
        file = folder / path
        status = file.stat()
        found[path] = [0 if file.is_dir() else status.st_size, status.st_mtime_ns]
    return found


def fetch(file: Path, url: str, md5: str, *, download: bool) -> Path:
    """Find or download an archive, and check its MD5.

    Raises:
        DataError: the archive is missing or damaged.
    """
    from torchvision.datasets.utils import download_url

    by_hand = f"put the file of {url} (MD5 {md5}) at {file}"
    if not file.exists():
        if not download:
            raise DataError(
                f"there is no {file}. Set `data: {{download: true}}` to download it, or {by_hand}"
            )
        partial = file.with_name(f".{file.name}.part")
        try:
            download_url(url, str(partial.parent), partial.name, md5)
        except (RuntimeError, OSError, HTTPException) as error:  # RuntimeError: wrong MD5
            raise DataError(
                f"{url} could not be fetched to {partial} ({error}): run again, or {by_hand}"
            ) from error
        partial.replace(file)
    verify_md5(file, md5)
    return file


def verify_md5(file: Path, md5: str) -> str:
    """Check a file's MD5 and return it in the form of reports.

    Raises:
        DataError: the MD5 differs; the file is not deleted.
    """
    from torchvision.datasets.utils import calculate_md5

    if (found := calculate_md5(str(file))) != md5:
        raise DataError(
            f"{file} has the MD5 {found}, expected {md5}: it is damaged, incomplete, or another "
            "version. Nothing was deleted: move it away, then run again"
        )
    return f"md5:{md5}"


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
