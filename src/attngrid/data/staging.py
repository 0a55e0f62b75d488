"""Copies of datasets on a node's own disk, which is faster than a cluster's shared one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from attngrid.data.prepare import read_report, report_file
from attngrid.data.registry import find_dataset

log = logging.getLogger(__name__)


def stage(name: str, folder: Path, scratch: Path) -> Path:
    """Copy a dataset to a node's own disk and return the data folder to read it from.

    Several processes may ask at once: one copies, the others wait. A copy with the size and time
    of its original is used again. The original is used, with a warning, if there is no room, and
    silently for an image folder outside the data folder.

    Args:
        name: of the dataset.
        folder: the data folder.
        scratch: a folder on the node's own disk.
    """
    dataset = find_dataset(name)
    files = [folder / file for file in dataset.files]
    if dataset.folder is not None or not files:
        return folder
    if dataset.prepare is not None:
        # the index of images is one of the watched files; files outside the data folder stay there
        watched = (read_report(name, folder) or {}).get("watched", {})
        files += [folder / path for path in watched if not Path(path).is_absolute()]
        files.append(report_file(name, folder))  # last, since it vouches for the others
        files = list(dict.fromkeys(files))
    target = scratch / "attngrid"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(target / f"{dataset.label}.lock"):
            copies = {file: target / file.relative_to(folder) for file in files}
            missing = {file: copy for file, copy in copies.items() if not _is_copy(file, copy)}
            size = sum(part.stat().st_size for file in missing for part in _files_in(file))
            if size > (free := shutil.disk_usage(target).free):
                log.warning(
                    "%s: not copied to %s: %s bytes, and %s are free",
                    *(name, target, f"{size:,}", f"{free:,}"),
                )
                return folder
            for file, copy in missing.items():
                _copy(file, copy)
    except OSError as error:
        log.warning("%s: not copied to %s: %s", name, target, error)
        return folder
    return target


def _files_in(path: Path) -> Iterator[Path]:
    return filter(Path.is_file, path.rglob("*") if path.is_dir() else [path])


def _is_copy(file: Path, copy: Path) -> bool:
    """Whether size and time agree; of a folder the time alone, since it is renamed when whole."""
    if not copy.exists():
        return False
    original, copied = file.stat(), copy.stat()
    same_size = file.is_dir() or original.st_size == copied.st_size
    return same_size and original.st_mtime_ns == copied.st_mtime_ns


def _copy(file: Path, copy: Path) -> None:
    """Copy a file or folder with its times beside the target, then rename it."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(f".{copy.name}.part")
    for old in (part, copy):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    if file.is_dir():
        shutil.copytree(file, part)
    else:
        shutil.copy2(file, part)
    part.rename(copy)
