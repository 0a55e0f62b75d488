"""A study's records, logs and checkpoints in a few small files, for the way to another machine."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from attngrid.cell import Cell
from attngrid.config import Study
from attngrid.errors import AttngridError, RecordError
from attngrid.files import write_atomically
from attngrid.training.record import reached, read_status

FILES, MIB = 8, 16
# What a pack is made of: archives of all that is small, and checkpoints in parts.
ARCHIVE = re.compile(r"records(-\d+)?\.tar\.xz")
PART = re.compile(r"([a-z0-9][a-z0-9_-]*)\.([A-Za-z0-9._+-]+)\.ckpt\.(\d+)of(\d+)")
MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_-]*/(study\.json|(records|trials|status|logs)/"
    r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*\.(json|attempts|log))"
)
# Of a member; a record of 1,000 epochs has a quarter of this. Of a longer log it is the end.
LARGEST = 2**20


@dataclass(frozen=True)
class Packed:
    """What a pack has.

    Attributes:
        records: how many.
        taken: the cells whose checkpoints it has.
        left: those whose checkpoints it has no room for, which stay where they are.
        files: names and sizes in bytes.
    """

    records: int
    taken: list[Cell]
    left: list[Cell]
    files: dict[str, int]


def pack(study: Study, folder: Path, files: int = FILES, mib: float = MIB) -> Packed:
    """Put a study's records, logs and states into a folder, and the checkpoints that fit.

    Those come by how far their trainings are, the most advanced first, in parts where one is
    larger than a file may be. An earlier pack in the folder is replaced.

    Args:
        study: whose.
        folder: a new or empty one, or one with a pack.
        files: how many there may be at most.
        mib: of 2**20 bytes a file may have at most so many.

    Raises:
        AttngridError: something else is in the folder; records and logs alone are more than fits.
    """
    limit = int(mib * 2**20)
    others = [f.name for f in folder.glob("*") if not _is_packs(f.name)]
    if others:
        raise AttngridError(f"{folder}: has {min(others)}, which is no pack's; nothing was packed")
    cells = [*study.trials.values(), *study.trainings.values()]
    small = dict(_small(study, cells))
    archives = _archives(sorted(small.items()), limit)
    if len(archives) > files:
        raise AttngridError(
            f"{folder}: records and logs alone are {len(archives)} files of at most {mib:g} MiB, "
            f"and {files} are allowed; nothing was packed"
        )
    for file in folder.glob("*"):
        file.unlink()
    written: dict[str, int] = {}

    def write(name: str, content: bytes) -> None:
        write_atomically(folder / name, content)
        written[name] = len(content)

    for number, content in enumerate(archives, 1):
        write("records.tar.xz" if len(archives) == 1 else f"records-{number}.tar.xz", content)
    taken: list[Cell] = []
    left: list[Cell] = []
    for cell in sorted(filter(_goes_on, cells), key=_advance, reverse=True):
        content = cell.checkpoint.read_bytes()
        parts = [content[at : at + limit] for at in range(0, len(content), limit)]
        if len(written) + len(parts) > files:
            left.append(cell)
            continue
        for number, part in enumerate(parts, 1):
            write(f"{study.study}.{cell.id}.ckpt.{number}of{len(parts)}", part)
        taken.append(cell)
    records = sum(name.split("/")[1] in ("records", "trials") for name in small)
    return Packed(records, taken, left, written)


def _is_packs(name: str) -> bool:
    unfinished = name.startswith(".") and name.endswith(".tmp")  # of one that was killed
    return bool(ARCHIVE.fullmatch(name) or PART.fullmatch(name) or unfinished)


def _goes_on(cell: Cell) -> bool:
    return cell.checkpoint.is_file() and not cell.record.is_file()


def _advance(cell: Cell) -> tuple[float, float]:
    """How far a training is, then how new its checkpoint."""
    return (
        reached(cell.status).get("epoch", 0) / cell.recipe.epochs,
        cell.checkpoint.stat().st_mtime,
    )


def _small(study: Study, cells: Sequence[Cell]) -> Iterator[tuple[str, bytes]]:
    """Names within the pack, and contents."""
    name = study.study
    yield f"{name}/study.json", study.resolved().encode()
    for cell in cells:
        if cell.record.is_file():
            yield f"{name}/{cell.record.parent.name}/{cell.record.name}", cell.record.read_bytes()
        elif status := read_status(cell.status):  # one that was killed no longer runs
            yield f"{name}/status/{cell.status.name}", json.dumps(status).encode()
        if cell.attempts.is_file():
            yield f"{name}/status/{cell.attempts.name}", cell.attempts.read_bytes()
    for file in Path("logs", name).glob("*.log"):
        yield f"{name}/logs/{file.name}", file.read_bytes()[-LARGEST:]


def _archives(files: Sequence[tuple[str, bytes]], limit: int) -> list[bytes]:
    """As few archives as halving makes, none larger than the limit unless one file is."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = stream.getvalue()
    if len(content) <= limit:
        return [content]
    if len(files) == 1:
        raise AttngridError(f"{files[0][0]}: is larger than a file may be; nothing was packed")
    half = len(files) // 2
    return [*_archives(files[:half], limit), *_archives(files[half:], limit)]


def unpack(folder: Path, into: Path) -> None:
    """Unpack the archives of a pack: ``<study>/records/...`` and so on, all of them or none.

    Raises:
        RecordError: no archive, or a member that no pack has; the message names both.
    """
    for archive in sorted(f for f in folder.glob("*") if ARCHIVE.fullmatch(f.name)):
        try:
            with tarfile.open(archive, "r:xz") as tar:
                for member in tar:
                    sound = member.isreg() and member.size <= LARGEST
                    if not (sound and MEMBER.fullmatch(member.name)):
                        raise RecordError(
                            f"{archive}: has {member.name!r}, which no pack has; nothing of it "
                            "is used"
                        )
                tar.extractall(into, filter="data")
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise RecordError(f"{archive}: no readable archive ({error})") from error


def checkpoints(folder: Path) -> Iterator[tuple[str, str, list[Path], int]]:
    """The checkpoints of a pack: study, cell's id, the parts that are there, of how many."""
    found: dict[tuple[str, str, int], dict[int, Path]] = {}
    for file in sorted(folder.glob("*")):
        if match := PART.fullmatch(file.name):
            study, id, number, of = match.groups()
            found.setdefault((study, id, int(of)), {})[int(number)] = file
    for (study, id, of), parts in found.items():
        yield study, id, [parts[number] for number in sorted(parts)], of
