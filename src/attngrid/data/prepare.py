"""Preparing a dataset: once, whoever asks, with a report of what was found.

The report, ``<data folder>/.attngrid/<dataset>.json``, holds the counts, the checksums and the
sizes and times of what was checked. While those are as they were, it is believed.
"""

from __future__ import annotations

import glob
import importlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from attngrid.core.errors import DataError
from attngrid.core.files import write_atomically
from attngrid.data.registry import DATASETS, find_dataset, short_name

# Beneath the data folder: reports, indices, locks, downloads.
OURS = ".attngrid"


@dataclass(frozen=True)
class Archive:
    """A file to be fetched: where it goes in the data folder, whence, and its MD5."""

    file: str
    url: str
    md5: str


@dataclass(frozen=True)
class Found:
    """What a dataset's own ``prepare`` found.

    Attributes:
        source: where the images are from.
        images: number in each split.
        classes: number.
        watched: size in bytes and time of each file or folder that must stay as it is.
        checksums: by file, ``md5:...``.
        ignored: number of files that are no images.
    """

    source: str
    images: Mapping[str, int]
    classes: int
    watched: Mapping[str, tuple[int, int]]
    checksums: Mapping[str, str] = field(default_factory=dict)
    ignored: int = 0


def report_file(name: str, folder: Path) -> Path:
    """Where the report on a dataset is."""
    short = re.sub(r"[^A-Za-z0-9._]+", "_", short_name(name))
    return folder / OURS / f"{short}.json"


def prepare(
    name: str, folder: Path, *, download: bool = False, thorough: bool = False
) -> dict[str, Any] | None:
    """Make a dataset ready to be read, or find that it is.

    Safe to call from several processes at once: one works, the others wait for it.

    Args:
        name: as ``find_dataset`` takes it.
        folder: the data folder.
        download: fetch what is missing.
        thorough: decode every image, where the dataset's files are read one by one.

    Returns:
        The report; None for a dataset that needs no preparing.

    Raises:
        DataError: files missing or damaged; the message says what to do. Nothing was deleted.
    """
    from filelock import FileLock

    dataset = find_dataset(name)
    if dataset.prepare is None:
        return None
    file = report_file(name, folder)
    if (report := read_report(name, folder, thorough=thorough)) is not None:
        return report
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock"))
        with lock:
            # whoever held the lock has done it
            if (report := read_report(name, folder, thorough=thorough)) is not None:
                return report
            module, _, function = dataset.prepare.rpartition(":")
            work = getattr(importlib.import_module(module), function)
            found: Found = work(name, folder, download=download, thorough=thorough)
            report = {
                "dataset": name,
                "checked": datetime.now(UTC).isoformat(timespec="seconds"),
                "thorough": thorough,
                "attngrid": _version(),
                "folder": _folder(name),
                **asdict(found),
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
    """The report on a dataset that is as the report says; None where it has to be checked."""
    try:
        report: dict[str, Any] = json.loads(report_file(name, folder).read_text("utf-8"))
        watched = {path: tuple(size_time) for path, size_time in report["watched"].items()}
        same = watched == stats(folder, watched) and report["folder"] == _folder(name)
        return report if same and (report["thorough"] or not thorough) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # no report, or none that this version understands


def stats(folder: Path, paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Size in bytes (0 of a folder) and modification time in ns, of paths in the data folder.

    Raises:
        OSError: one that is not there.
    """
    found = {}
    for path in paths:
        stat = (folder / path).stat()
        size = 0 if (folder / path).is_dir() else stat.st_size
        found[path] = (size, stat.st_mtime_ns)
    return found


def checked(file: Path, md5: str) -> str:
    """The checksum of a file that is the official one, as reports write it.

    Raises:
        DataError: it is another one; it stays where it is.
    """
    from torchvision.datasets.utils import calculate_md5

    if (found := calculate_md5(str(file))) != md5:
        raise DataError(
            f"{file} has the MD5 {found}, expected {md5}: it is damaged, cut short, or another "
            "version. Nothing was deleted: move it away, then run again"
        )
    return f"md5:{md5}"


def link_archives(source: Path, folder: Path) -> None:
    """Have a folder's files, which are archives or parts of them, in the data folder, as links.

    Each lies where its dataset looks for it, the folder's own subfolders left aside.

    Raises:
        DataError: no such folder, or a data folder that takes no links.
    """
    try:
        for file in sorted(source.iterdir()):
            link = folder / _place(file.name)
            link.parent.mkdir(parents=True, exist_ok=True)
            if file.is_file() and not os.path.lexists(link):
                link.symlink_to(file.absolute())
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from error


def _place(name: str) -> Path:
    """Of an archive or a part of one, within the data folder."""
    for dataset in DATASETS.values():
        for archive in map(Path, dataset.archives):
            if name == archive.name or name.startswith(f"{archive.name}."):
                return archive.with_name(name)
    return Path(name)


def parts_of(file: Path) -> list[Path]:
    """Of an archive: ``NAME.00``, ``NAME.01`` and so on, as ``split -d`` makes them, by name."""
    parts = file.parent.glob(f"{glob.escape(file.name)}.*")
    return sorted(part for part in parts if part.suffix[1:].isdecimal() and part.is_file())


def fetch(archive: Archive, folder: Path, *, download: bool) -> Path:
    """An archive in the data folder, its checksum checked.

    It may be there in parts.

    Raises:
        DataError: not there and not to be had, or damaged.
    """
    file = folder / archive.file
    by_hand = f"put the file of {archive.url} (MD5 {archive.md5}) at {file}"
    if not file.exists():
        if parts := parts_of(file):
            _join(parts, file, archive.md5)
            return file
        if not download:
            raise DataError(
                f"there is no {file}. Set `data: {{download: true}}` to have it fetched, or "
                f"{by_hand}"
            )
        _download(archive, folder, by_hand)
    checked(file, archive.md5)
    return file


def _join(parts: Sequence[Path], file: Path, md5: str) -> None:
    partial = file.parent / OURS / "downloads" / file.name
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as whole:
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, whole)
    try:
        checked(partial, md5)
    except DataError:
        partial.unlink()
        names = ", ".join(part.name for part in parts)
        raise DataError(
            f"{file.parent}: {names} do not make {file.name} (MD5 {md5}): one is missing, damaged "
            "or of something else. Nothing was deleted"
        ) from None
    partial.replace(file)


def _download(archive: Archive, folder: Path, by_hand: str) -> None:
    from torchvision.datasets.utils import download_url

    file = folder / archive.file
    partial = folder / OURS / "downloads" / file.name
    try:
        download_url(archive.url, str(partial.parent), file.name, archive.md5)
    except RuntimeError as error:
        raise DataError(
            f"what {archive.url} gave has another MD5 than {archive.md5}; it is kept as "
            f"{partial}. Run again, or {by_hand}"
        ) from error
    except (OSError, HTTPException) as error:
        raise DataError(f"{archive.url} could not be fetched ({error}): {by_hand}") from error
    file.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(file)


def extract(archive: Path, into: Path) -> None:
    """Unpack a tar archive with Python's ``data`` filter: nothing gets out of the folder.

    Raises:
        DataError: no archive, or a member that the filter refuses.
    """
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(into, filter="data")
    except tarfile.FilterError as error:
        raise DataError(f"{archive}: {error}; nothing of this archive is used") from error
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive}: no readable tar archive ({error})") from error


@contextmanager
def scratch(name: str, folder: Path) -> Iterator[Path]:
    """A folder beside the data for what is unfinished; one a killed process left is removed."""
    beside = report_file(name, folder).with_suffix(".unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def move_into_place(file: Path, target: Path) -> None:
    """Flush a finished file of the scratch folder to disk and rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    file.replace(target)


def _folder(name: str) -> str | None:
    folder = find_dataset(name).folder
    return None if folder is None else str(Path(folder).absolute())


def _version() -> str:
    from attngrid import __version__

    return __version__
