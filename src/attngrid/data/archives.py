"""Archives of datasets: fetched, joined from parts, checked and unpacked."""

from __future__ import annotations

import glob
import os
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from attngrid.core.errors import DataError
from attngrid.data.prepare import STATE_FOLDER
from attngrid.data.registry import DATASETS


@dataclass(frozen=True)
class Archive:
    """An archive: its path in the data folder, its URL and its MD5."""

    file: str
    url: str
    md5: str


def fetch(archive: Archive, folder: Path, *, download: bool) -> Path:
    """Find an archive in the data folder, whole or in parts, or download it; check its MD5.

    Raises:
        DataError: missing or damaged.
    """
    file = folder / archive.file
    by_hand = f"put the file of {archive.url} (MD5 {archive.md5}) at {file}"
    if not file.exists():
        if parts := parts_of(file):
            _join(parts, _partial(folder, file), file, archive.md5)
            return file
        if not download:
            raise DataError(
                f"there is no {file}. Set `data: {{download: true}}` to have it fetched, or "
                f"{by_hand}"
            )
        _download(archive, _partial(folder, file), by_hand)
        file.parent.mkdir(parents=True, exist_ok=True)
        _partial(folder, file).replace(file)
    verify_md5(file, archive.md5)
    return file


def verify_md5(file: Path, md5: str) -> str:
    """Check a file's MD5 and return it as reports write it.

    Raises:
        DataError: another MD5; the file stays as it is.
    """
    from torchvision.datasets.utils import calculate_md5

    if (found := calculate_md5(str(file))) != md5:
        raise DataError(
            f"{file} has the MD5 {found}, expected {md5}: it is damaged, cut short, or another "
            "version. Nothing was deleted: move it away, then run again"
        )
    return f"md5:{md5}"


def extract(archive: Path, target: Path) -> None:
    """Unpack a tar archive; Python's ``data`` filter keeps every file inside the target folder.

    Raises:
        DataError: not a tar archive, or a member that the filter refuses.
    """
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    except tarfile.FilterError as error:
        raise DataError(f"{archive}: {error}; nothing of this archive is used") from error
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive}: not a readable tar archive ({error})") from error


def link_archives(source: Path, folder: Path) -> None:
    """Link the archives and parts of archives of a folder to where their datasets look for them.

    Raises:
        DataError: no such folder, or a data folder that takes no links.
    """
    places = {Path(file).name: Path(file) for d in DATASETS.values() for file in d.archives}
    try:
        for file in sorted(source.iterdir()):
            archive = places.get(file.name) or places.get(file.stem) or Path(file.name)
            link = folder / archive.with_name(file.name)
            link.parent.mkdir(parents=True, exist_ok=True)
            if file.is_file() and not os.path.lexists(link):
                link.symlink_to(file.absolute())
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from error


def parts_of(file: Path) -> list[Path]:
    """The parts of an archive in order: ``NAME.00``, ``NAME.01``, as ``split -d`` names them."""
    parts = file.parent.glob(f"{glob.escape(file.name)}.*")
    return sorted(part for part in parts if part.suffix[1:].isdecimal() and part.is_file())


def _partial(folder: Path, file: Path) -> Path:
    """Where a file is written until it is complete."""
    partial = folder / STATE_FOLDER / "downloads" / file.name
    partial.parent.mkdir(parents=True, exist_ok=True)
    return partial


def _join(parts: Sequence[Path], partial: Path, file: Path, md5: str) -> None:
    with partial.open("wb") as whole:
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, whole)
    try:
        verify_md5(partial, md5)
    except DataError:
        partial.unlink()
        names = ", ".join(part.name for part in parts)
        raise DataError(
            f"{file.parent}: {names} do not make {file.name} (MD5 {md5}): one is missing, damaged "
            "or of something else. Nothing was deleted"
        ) from None
    partial.replace(file)


def _download(archive: Archive, partial: Path, by_hand: str) -> None:
    from torchvision.datasets.utils import download_url

    try:
        download_url(archive.url, str(partial.parent), partial.name, archive.md5)
    except RuntimeError as error:
        raise DataError(
            f"the download of {archive.url} has another MD5 than {archive.md5}; it is kept as "
            f"{partial}. Run again, or {by_hand}"
        ) from error
    except (OSError, HTTPException) as error:
        raise DataError(f"{archive.url} could not be fetched ({error}): {by_hand}") from error
