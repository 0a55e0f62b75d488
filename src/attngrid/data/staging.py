"""Copies of datasets on a node's own disk, which a cluster's shared one is slow beside."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from attngrid.data.prepare import read_report, report_file
from attngrid.data.registry import find_dataset


def staged(name: str, folder: Path, scratch: Path, say: Callable[[str], None]) -> Path:
    """Copy a dataset to a node's own disk, once, and name the folder that it is then in.

    Any number of processes may ask at once: one copies, the others wait. What is there is taken
    for the dataset while sizes and times are those of the original. Where there is no room, or an
    image folder names its own path, the original is read.

    Args:
        name: the dataset's.
        folder: holds the datasets.
        scratch: on the node's own disk.
        say: told why nothing was copied.
    """
    dataset = find_dataset(name)
    wanted = [folder / file for file in dataset.files]
    if dataset.folder is not None or not wanted:
        return folder
    if dataset.prepare is not None:
        # an index of images is one of these; what lies elsewhere stays there
        watched = (read_report(name, folder) or {}).get("watched", {})
        wanted += [folder / path for path in watched if not Path(path).is_absolute()]
        wanted.append(report_file(name, folder))  # last: it vouches for the others
        wanted = list(dict.fromkeys(wanted))
    into = scratch / "attngrid"
    try:
        into.mkdir(parents=True, exist_ok=True)
        with FileLock(into / f"{find_dataset(name).label}.lock"):
            missing = [
                file for file in wanted if not _is_copy(file, into / file.relative_to(folder))
            ]
            size = sum(part.stat().st_size for file in missing for part in _files(file))
            if size > (free := shutil.disk_usage(into).free):
                say(f"{name}: not copied to {into}: {size:,} bytes, and {free:,} are free")
                return folder
            for file in missing:
                _copy(file, into / file.relative_to(folder))
    except OSError as error:
        say(f"{name}: not copied to {into}: {error}")
        return folder
    return into


def _files(file: Path) -> Iterator[Path]:
    if file.is_dir():
        yield from (part for part in file.rglob("*") if part.is_file())
    elif file.is_file():
        yield file


def _is_copy(file: Path, copy: Path) -> bool:
    """By size and time; of a folder, which is renamed into place when it is whole, by time."""
    if not copy.exists():
        return False
    here, there = file.stat(), copy.stat()
    same_size = file.is_dir() or here.st_size == there.st_size
    return same_size and here.st_mtime_ns == there.st_mtime_ns


def _copy(file: Path, to: Path) -> None:
    """With its times, renamed into place; a killed copy is begun again."""
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.part")
    for old in (part, to):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    if file.is_dir():
        shutil.copytree(file, part)
    else:
        shutil.copy2(file, part)
    part.rename(to)
