"""A study's records, logs and checkpoints in a few small files, for the way to another machine."""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from attngrid.core.errors import AttngridError, RecordError
from attngrid.core.files import modified_ns, write_atomically
from attngrid.records.status import reached, read_status
from attngrid.study.cell import Cell
from attngrid.study.schema import Study

FILES, MIB = 8, 16
# What a pack is made of: archives of all that is small, and checkpoints in parts.
ARCHIVE = re.compile(r"records(-\d+)?\.tar\.xz")
PART = re.compile(r"([a-z0-9][a-z0-9_-]*)\.([A-Za-z0-9._+-]+)\.ckpt\.(\d+)of(\d+)")
MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_-]*/(records|trials|status|logs)/"
    r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*\.(json|attempts|log)"
)
MEASURED = ("records", "trials")
# Of a member, in bytes; a record of 1,000 epochs has a quarter of a MiB.
LARGEST = 2**24
# Of an archive's members together.
TOTAL = 2**28
# Of a longer log it is the end.
LOG = 2**20


@dataclass(frozen=True)
class Packed:
    """What a pack has.

    Attributes:
        records: how many.
        taken: the cells whose checkpoints it has.
        left: those whose checkpoints it has no room for, which stay where they are.
        dropped: cells whose checkpoints an earlier pack had, which this one has no room for.
        files: names and sizes in bytes.
    """

    records: int
    taken: list[Cell]
    left: list[Cell]
    dropped: list[str]
    files: dict[str, int]


def pack(study: Study, folder: Path, files: int = FILES, mib: float = MIB) -> Packed:
    """Put a study's records, logs and states into a folder, and the checkpoints that fit.

    Those come by how far their trainings are, the most advanced first, in parts where one is
    larger than a file may be. An earlier pack in the folder is replaced once all of the new one is
    written; each of its records is in the new one, too, and where there is room its checkpoints of
    cells that have neither record nor checkpoint here.

    Args:
        study: whose.
        folder: a new or empty one, or one with a pack.
        files: how many there may be at most.
        mib: of 2**20 bytes a file may have at most so many.

    Raises:
        AttngridError: something else is in the folder; its pack cannot be read, or has a record
            that is another one here; records and logs alone are more than fits.
    """
    limit = int(mib * 2**20)
    cells = [*study.trials.values(), *study.trainings.values()]
    small = dict(_small(study, cells))
    small |= _carried(study, folder, small)
    for name, content in small.items():
        if len(content) > LARGEST or not MEMBER.fullmatch(name):
            raise AttngridError(
                f"{name}: found {len(content):,} bytes; a pack has files of at most {LARGEST:,} "
                "with plain names; nothing was packed"
            )
    archives = _archives(sorted(small.items()), limit)
    if len(archives) > files:
        raise AttngridError(
            f"{folder}: records and logs alone are {len(archives)} files of at most {mib:g} MiB, "
            f"and {files} are allowed; nothing was packed"
        )
    made = {
        "records.tar.xz" if len(archives) == 1 else f"records-{number}.tar.xz": content
        for number, content in enumerate(archives, 1)
    }
    scratch = folder / f".{os.getpid()}.tmp"
    taken: list[Cell] = []
    left: list[Cell] = []
    try:
        for name, content in made.items():
            write_atomically(scratch / name, content)
        written = {name: len(content) for name, content in made.items()}
        for cell in sorted(filter(_goes_on, cells), key=_advance, reverse=True):
            try:
                content = cell.checkpoint.read_bytes()
            except FileNotFoundError:  # its training has ended since
                continue
            parts = [content[at : at + limit] for at in range(0, len(content), limit)]
            if len(written) + len(parts) > files:
                left.append(cell)
                continue
            for number, part in enumerate(parts, 1):
                name = f"{study.study}.{cell.id}.ckpt.{number}of{len(parts)}"
                write_atomically(scratch / name, part)
                written[name] = len(part)
            taken.append(cell)
        new = list(written)
        dropped = []
        for name, carried in _unknown_here(study, folder, small):
            if len(written) + len(carried) > files:
                dropped.append(name)
            else:
                written |= {part.name: part.stat().st_size for part in carried}
        # the records first: each of them is in the folder at every moment
        for name in new:
            (scratch / name).replace(folder / name)
        for file in folder.glob("*"):
            if file.name not in written and file != scratch:
                _remove(file)
    finally:
        _remove(scratch)
    records = sum(name.split("/")[1] in MEASURED for name in small)
    return Packed(records, taken, left, dropped, written)


def _carried(here: Study, folder: Path, small: Mapping[str, bytes]) -> dict[str, bytes]:
    """What the pack that is there has of cells without a record here: no pack loses any."""
    if folder.exists() and not folder.is_dir():
        raise AttngridError(f"{folder}: is no folder; nothing was packed")
    found = {}
    for file in sorted(folder.glob("*")):
        if not _is_packs(file):
            raise AttngridError(
                f"{folder}: has {file.name}, which is no pack's; nothing was packed"
            )
        if not ARCHIVE.fullmatch(file.name):
            continue
        try:
            members = read_archive(file)
        except RecordError as error:
            raise AttngridError(f"{error}; move it away; nothing was packed") from None
        for name, content in members.items():
            study, kind, file_name = name.split("/")
            if kind not in MEASURED:
                id = Path(file_name).stem
                gone = study == here.study and not here.has(id)
                if name not in small and not gone and not _measured(small, study, id):
                    found[name] = content
                continue
            if small.get(name, content) != content:
                raise AttngridError(
                    f"{file}: its {name} is another one than here; take another folder; "
                    "nothing was packed"
                )
            found[name] = content
    return found


def _unknown_here(
    study: Study, folder: Path, small: Mapping[str, bytes]
) -> Iterator[tuple[str, list[Path]]]:
    """The whole checkpoints of a folder's pack, of cells that may go on, but not from here."""
    for name, id, parts, of in checkpoints(folder):
        if len(parts) < of or _measured(small, name, id):
            continue
        if name == study.study and (not study.has(id) or study.training(id).checkpoint.is_file()):
            continue
        yield f"{name}.{id}", parts


def _measured(small: Mapping[str, bytes], study: str, id: str) -> bool:
    return any(f"{study}/{kind}/{id}.json" in small for kind in MEASURED)


def _remove(path: Path) -> None:
    if path.is_dir():
        rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_packs(file: Path) -> bool:
    if file.is_dir():  # of one that was killed
        return bool(re.fullmatch(r"\.\d+\.tmp", file.name))
    return bool(ARCHIVE.fullmatch(file.name) or PART.fullmatch(file.name))


def _goes_on(cell: Cell) -> bool:
    return cell.checkpoint.is_file() and not cell.record.is_file()


def _advance(cell: Cell) -> tuple[float, int]:
    """How far a training is, then how new its checkpoint."""
    epochs = reached(cell.status).get("epoch", 0) / cell.recipe.epochs
    return epochs, modified_ns(cell.checkpoint)


def _small(study: Study, cells: Sequence[Cell]) -> Iterator[tuple[str, bytes]]:
    """Names within the pack, and contents."""
    name = study.study
    for cell in cells:
        status = None if cell.record.is_file() else read_status(cell.status)
        if status is not None:  # one that was killed no longer runs
            yield f"{name}/status/{cell.status.name}", json.dumps(status).encode()
        if cell.attempts.is_file():
            yield f"{name}/status/{cell.attempts.name}", cell.attempts.read_bytes()
    # those of other configurations, too: they were measured
    for kind in MEASURED:
        for file in (study.results / kind).glob("*.json"):
            yield f"{name}/{kind}/{file.name}", file.read_bytes()
    for file in Path("logs", name).glob("*.log"):
        member = f"{name}/logs/{file.name}"
        if MEMBER.fullmatch(member):
            yield member, file.read_bytes()[-LOG:]


def _archives(files: Sequence[tuple[str, bytes]], limit: int) -> list[bytes]:
    """As few archives as halving makes, none larger than the limit or unpacked than ``TOTAL``.

    Raises:
        AttngridError: one file alone is larger.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = stream.getvalue()
    if len(content) <= limit and sum(len(content) for _, content in files) <= TOTAL // 2:
        return [content]
    if len(files) < 2:
        name = files[0][0] if files else "no record at all"
        raise AttngridError(
            f"{name}: takes {len(content):,} bytes packed, and a file may have {limit:,}; nothing "
            "was packed"
        )
    half = len(files) // 2
    return [*_archives(files[:half], limit), *_archives(files[half:], limit)]


def read_archive(archive: Path) -> dict[str, bytes]:
    """The members of an archive of a pack, by their names: all of them, or an error.

    Raises:
        RecordError: no sound archive, or a member that no pack has; the message names both.
    """
    members = {}
    try:
        with lzma.open(archive) as stream:
            content = stream.read(TOTAL + 1)  # to its end, where its checksum is
        if len(content) > TOTAL:
            raise RecordError(f"{archive}: unpacks to more than {TOTAL >> 20} MiB; it is not used")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                sound = member.isreg() and member.size <= LARGEST
                file = tar.extractfile(member) if sound else None
                if file is None or not MEMBER.fullmatch(member.name):
                    raise RecordError(
                        f"{archive}: has {member.name!r}, which no pack has; nothing of it is used"
                    )
                members[member.name] = file.read()
            # tarfile takes a damaged header for the archive's end
            if content[tar.offset :].strip(b"\0"):
                raise tarfile.ReadError(f"damaged behind its member {len(members)}")
    except (lzma.LZMAError, tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise RecordError(f"{archive}: no readable archive ({error})") from error
    return members


def archives(folder: Path) -> list[Path]:
    """The archives of the pack in a folder."""
    return sorted(file for file in folder.glob("*") if ARCHIVE.fullmatch(file.name))


def checkpoints(folder: Path) -> Iterator[tuple[str, str, list[Path], int]]:
    """The checkpoints of a pack: study, cell's id, the parts that are there, of how many."""
    found: dict[tuple[str, str, int], dict[int, Path]] = {}
    for file in sorted(folder.glob("*")):
        if file.is_file() and (match := PART.fullmatch(file.name)):
            study, id, number, of = match.groups()
            found.setdefault((study, id, int(of)), {})[int(number)] = file
    for (study, id, of), parts in found.items():
        yield study, id, [parts[number] for number in sorted(parts)], of
