"""Records that were made elsewhere: what is filed, and what is refused by name."""

from __future__ import annotations

import errno
import io
import json
import lzma
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock

from attngrid.analysis.frames import load_results
from attngrid.cli.main import main
from attngrid.core.errors import RecordError
from attngrid.core.files import seal
from attngrid.records.staleness import stale_records
from attngrid.records.status import write_status
from attngrid.study.cell import Cell
from attngrid.study.schema import load_study
from attngrid.training.checkpoint import Checkpoints
from attngrid.training.pack import read_archive
from attngrid.training.run import run_cell
from conftest import TINY, jobs

Say = pytest.CaptureFixture[str]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study has been trained, all but its last cell."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
        study = load_study("tiny.yaml")
        for cell in list(study.trainings.values())[:-1]:
            run_cell(study, cell, cell.record)
    return folder


@pytest.fixture
def made(elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its records, to be changed at will, beside an empty folder to be in."""
    target = tmp_path / "made/tiny/records"
    shutil.copytree(elsewhere / "results/tiny/records", target)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    return target


def cells() -> list[Cell]:
    return list(load_study("tiny.yaml").trainings.values())


def change(file: Path, how: Change) -> None:
    content = json.loads(file.read_text())
    how(content)
    file.write_text(json.dumps(content))


def test_records_are_filed_as_they_are_and_once(made: Path, capsys: Say) -> None:
    assert main(["import", str(made.parents[1])]) == 0
    for cell in cells()[:-1]:
        assert cell.record.read_bytes() == (made / cell.record.name).read_bytes()
    assert "3 records filed, 0 were here, 0 refused" in capsys.readouterr().err
    before = {cell.record: cell.record.stat().st_mtime_ns for cell in cells()[:-1]}
    assert main(["import", str(made), "--study", "tiny.yaml"]) == 0
    assert "0 records filed, 3 were here, 0 refused" in capsys.readouterr().err
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_other_numbers_are_refused_by_name_and_the_rest_is_filed(made: Path, capsys: Say) -> None:
    first, second, third, _ = cells()
    first.record.parent.mkdir(parents=True)
    shutil.copy(made / first.record.name, first.record)

    def better(content: dict[str, Any]) -> None:
        metrics = content["metrics"]
        images = metrics["test_images"]
        for block, names in (
            (metrics, ("top1_error", "best_top1_error")),
            (metrics["curve"][0], ("test_top1_error",)),
        ):
            for name in names:
                wrong = round(block[name] * images / 100)
                block[name] = 100 * (wrong + 1) / images

    change(first.record, better)
    kept = first.record.read_bytes()
    assert main(["import", str(made)]) == 1
    told = capsys.readouterr()
    assert f"{made / first.record.name}: has other numbers than {first.record}: top-1" in told.err
    assert first.record.read_bytes() == kept
    assert set(told.out.splitlines()) == {f"filed {cell.record}" for cell in (second, third)}


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (lambda r: r["metrics"].update(top5_error=101.0), "metrics.top5_error: Input should be"),
        (lambda r: r["metrics"]["curve"][0].update(train_loss=float("nan")), "train_loss: Input"),
        (
            lambda r: r["metrics"]["curve"].append(dict(r["metrics"]["curve"][0], epoch=2)),
            "found 2",
        ),
        (lambda r: r["metrics"].pop("params"), "metrics.params: Field required"),
        (lambda r: r["config"].update(seed=7), "config: is not that of this cell"),
        (lambda r: r["config"].update(digest="0" * 64), "config: is not that of this cell"),
        (lambda r: r["config"]["recipe"].update(learning_rate=0.5), "config: is not that"),
        (lambda r: r["metrics"].update(test_images=10), "training and test images; needs"),
        (lambda r: r["run"].pop("device_name"), "run.device_name: is missing"),
        (lambda r: r["run"].update(wall_s=-1), "run.wall_s: found -1; needs seconds"),
        (lambda r: r["run"].update(wall_s=True), "run.wall_s: found True; needs seconds"),
        (lambda r: r["run"].update(wall_s=10**400), "; needs seconds"),
        (lambda r: r["run"].update(peak_memory_mb=float("nan")), "found NaN; needs finite"),
        (lambda r: r["run"].update(fingerprint={}), "run.fingerprint: needs code, losses"),
        (lambda r: r["run"]["fingerprint"].update(losses=None), "run.fingerprint: needs code"),
        (lambda r: r["config"]["recipe"].pop("name"), "config"),
        (lambda r: r["metrics"].update(best_top5_error=77.7), "are not the best epoch's"),
        (lambda r: r.update(notes=""), "notes: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_of_it_filed(
    made: Path, how: Change, why: str, capsys: Say
) -> None:
    first = cells()[0]
    change(made / first.record.name, how)
    assert main(["import", str(made)]) == 1
    told = capsys.readouterr().err
    assert f"{made / first.record.name}: " in told
    assert why in told
    assert not first.record.exists()
    assert cells()[1].record.is_file()


@pytest.mark.parametrize("error", [33.3, 1.0])
def test_an_error_is_a_number_of_images(made: Path, error: float, capsys: Say) -> None:
    """Of 359, that is; and it is not below the top-5 error."""
    first = cells()[0]

    def how(content: dict[str, Any]) -> None:
        metrics = content["metrics"]
        metrics.update(top1_error=error, best_top1_error=error)
        metrics["curve"][0]["test_top1_error"] = error

    change(made / first.record.name, how)
    assert main(["import", str(made)]) == 1
    told = capsys.readouterr().err
    assert "is no number of images" in told or "top-5 error above top-1 error" in told


def test_a_record_of_no_cell_and_one_of_another_configuration_are_told_apart(
    made: Path, capsys: Say
) -> None:
    study = yaml.safe_load(Path("tiny.yaml").read_text())
    study["recipes"]["tiny"]["learning_rate"] = 0.01
    Path("tiny.yaml").write_text(yaml.safe_dump(study))
    (made / "digits-mine-s0-00000000.json").write_text("{}")
    assert main(["import", str(made), "--study", "tiny.yaml"]) == 1
    told = capsys.readouterr().err
    assert told.count("is of another configuration of the cell that is digits-resnet18-") == 3
    assert "digits-mine-s0-00000000.json: is of no cell of tiny" in told
    assert not Path("results").exists()


def test_a_record_of_two_studies_goes_where_its_folder_says(made: Path, capsys: Say) -> None:
    study = yaml.safe_load(Path("tiny.yaml").read_text()) | {"study": "other"}
    Path("other.yaml").write_text(yaml.safe_dump(study))
    flat = made.parents[1] / "flat"
    flat.mkdir()
    shutil.copy(made / cells()[0].record.name, flat)
    assert main(["import", str(flat)]) == 1
    assert "is a cell of other and tiny; say which by --study" in capsys.readouterr().err
    assert main(["import", str(flat), "--study", "other.yaml"]) == 0
    assert main(["import", str(made)]) == 0
    assert {len(list(Path(f"results/{name}/records").iterdir())) for name in ("other", "tiny")} == {
        1,
        3,
    }


def test_code_that_computes_something_else_refuses_the_record(made: Path, capsys: Say) -> None:
    first = cells()[0]

    def how(content: dict[str, Any]) -> None:
        content["run"]["fingerprint"] |= {"code": "another", "losses": [9.0, 9.0, 9.0]}

    change(made / first.record.name, how)
    assert main(["import", str(made)]) == 1
    assert "does not compute what the code that made it did" in capsys.readouterr().err
    assert not first.record.exists()


def test_code_that_cannot_be_run_here_stops_nothing(
    made: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop without torch, or without a package that a module of the user's needs."""
    first, second, *_ = cells()
    for cell in (first, second):
        change(
            made / cell.record.name, lambda content: content["run"]["fingerprint"].update(code="")
        )

    def lacking(cell: Cell) -> list[float]:
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr("attngrid.records.staleness.losses_of", lacking)
    assert main(["import", str(made)]) == 0
    told = capsys.readouterr().err
    assert "not compared with this code: ModuleNotFoundError: No module named 'torch'" in told
    assert first.record.is_file()
    assert not stale_records(load_study("tiny.yaml"))


@pytest.mark.parametrize(
    "member",
    [
        "../escaped.json",
        "/tmp/escaped.json",
        "tiny/records/../../../escaped.json",
        "tiny/records/.hidden.json",
        "tiny/weights/escaped.json",
        "tiny/study.json",
        "tiny/records/escaped.sh",
        "link",
        "large",
    ],
)
def test_an_archive_with_anything_else_in_it_is_not_used(
    made: Path, member: str, capsys: Say
) -> None:
    folder = made.parents[1] / "pack"
    folder.mkdir()
    first = cells()[0]
    with tarfile.open(folder / "records.tar.xz", "w:xz") as tar:
        tar.add(made / first.record.name, f"tiny/records/{first.record.name}")
        info = tarfile.TarInfo(member)
        if member == "link":
            info.name, info.type, info.linkname = "tiny/records/a.json", tarfile.SYMTYPE, "/etc"
        if member == "large":
            info.name, info.size = "tiny/records/a.json", 2**24 + 1
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    assert main(["import", str(folder)]) == 1
    assert f"{folder / 'records.tar.xz'}: has " in capsys.readouterr().err
    assert not Path("results").exists()
    assert not list(made.parents[1].rglob("escaped*"))


def test_a_pack_damaged_anywhere_is_refused_and_stays(
    elsewhere: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    """No byte of an archive can change unseen, and what cannot be read is not packed over."""
    shutil.copytree(elsewhere, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert main(["pack", "tiny.yaml", str(tmp_path / "pack")]) == 0
    archive = tmp_path / "pack/records.tar.xz"
    sound = archive.read_bytes()
    draw = random.Random(0)
    for place in [*draw.sample(range(len(sound)), 40), len(sound) - 1]:
        archive.write_bytes(sound[:place] + bytes([sound[place] ^ 16]) + sound[place + 1 :])
        with pytest.raises(RecordError, match="no readable archive"):
            read_archive(archive)
    # a header damaged before it was packed would be the archive's end to tarfile
    content = bytearray(lzma.decompress(sound))
    second = content.index(b"tiny/", 512)
    content[second + 150] ^= 1
    archive.write_bytes(lzma.compress(bytes(content)))
    with pytest.raises(RecordError, match="damaged behind its member 1"):
        read_archive(archive)
    damaged = archive.read_bytes()
    capsys.readouterr()
    assert main(["pack", "tiny.yaml", str(tmp_path / "pack")]) == 1
    assert "move it away; nothing was packed" in capsys.readouterr().err
    assert archive.read_bytes() == damaged


def test_a_pack_keeps_the_records_of_the_one_that_it_replaces(
    elsewhere: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    pack = Path.cwd().parent / "pack"
    names = {f"tiny/records/{cell.record.name}" for cell in cells()[:-1]}
    monkeypatch.chdir(elsewhere)
    assert main(["pack", "tiny.yaml", str(pack)]) == 0
    monkeypatch.chdir(made.parents[1].parent / "here")
    assert main(["pack", "tiny.yaml", str(pack)]) == 0
    assert names <= read_archive(pack / "records.tar.xz").keys()
    assert "tiny: 3 records and 0 checkpoints in 1 files" in capsys.readouterr().err
    # another result of the same cell is no reason to lose either
    first = cells()[0]
    first.record.parent.mkdir(parents=True)
    first.record.write_text("{}")
    assert main(["pack", "tiny.yaml", str(pack)]) == 1
    told = capsys.readouterr().err
    assert f"its tiny/records/{first.record.name} is another one than here" in told
    assert names <= read_archive(pack / "records.tar.xz").keys()


def test_a_pack_keeps_the_checkpoints_of_cells_that_nothing_is_known_of_here(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    first, second, *_ = cells()
    pack = tmp_path / "pack"
    for cell in (first, second):
        Checkpoints(cell.checkpoint, cell.digest, 1.0).save({"weights": torch.randn(2**18)})
    write_status(first.status, "running", epoch=1, epochs=2)
    assert main(["pack", "tiny.yaml", str(pack)]) == 0
    before = {file.name: file.read_bytes() for file in pack.glob("*.ckpt.*")}
    assert len(before) == 2
    (tmp_path / "fresh").mkdir()
    monkeypatch.chdir(tmp_path / "fresh")
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    shutil.copytree(made, second.record.parent)
    first.record.unlink()
    # the second has its record here, and the first is not imported
    assert main(["pack", "tiny.yaml", str(pack)]) == 0
    assert {f.name: f.read_bytes() for f in pack.glob("*.ckpt.*")} == {
        name: content for name, content in before.items() if first.id in name
    }
    assert f"tiny/status/{first.status.name}" in read_archive(pack / "records.tar.xz")
    assert main(["import", str(pack)]) == 0
    assert first.checkpoint.is_file()
    # records come first
    first.checkpoint.unlink()
    assert main(["pack", "tiny.yaml", str(pack), "--files", "1"]) == 0
    told = capsys.readouterr().err
    assert f"no room for tiny.{first.id}.ckpt, which an earlier pack had: dropped" in told
    assert [file.name for file in pack.iterdir()] == ["records.tar.xz"]


def test_a_checkpoint_by_code_that_computes_something_else_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    first = cells()[0]
    other = {"code": "other", "losses": [9.0, 9.0, 9.0], "tolerance": [0.1, 0.1, 0.1]}
    Checkpoints(first.checkpoint, first.digest, 1.0, fingerprint=other).save({})
    assert main(["pack", "tiny.yaml", str(tmp_path / "pack")]) == 0
    (tmp_path / "fresh").mkdir()
    monkeypatch.chdir(tmp_path / "fresh")
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["import", str(tmp_path / "pack")]) == 1
    assert f"{first.id}.ckpt: this code does not compute what the" in capsys.readouterr().err
    assert not first.checkpoint.exists()


def test_a_full_disk_costs_no_pack(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    monkeypatch.chdir(elsewhere)
    assert main(["pack", "tiny.yaml", str(tmp_path / "pack")]) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "pack").iterdir()}

    def full(file: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr("attngrid.training.pack.write_atomically", full)
    assert main(["pack", "tiny.yaml", str(tmp_path / "pack")]) == 1
    assert "No space left on device; an earlier pack is there still" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "pack").iterdir()} == before


def test_a_record_of_a_cell_that_is_being_trained_waits(made: Path, capsys: Say) -> None:
    first = cells()[0]
    first.lock.parent.mkdir(parents=True)
    write_status(first.status, "running", epoch=0, epochs=1)
    with FileLock(first.lock):
        assert main(["import", str(made)]) == 1
    assert "is being trained here; import it again after that" in capsys.readouterr().err
    assert not first.record.exists()
    assert first.status.is_file()
    assert main(["import", str(made)]) == 0
    assert first.record.is_file()


def member(folder: Path, **files: bytes | str) -> Path:
    """A pack with these members, of an id and a kind of file each."""
    folder.mkdir()
    with tarfile.open(folder / "records.tar.xz", "w:xz") as tar:
        for name, content in files.items():
            raw = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return folder


def test_states_that_no_training_has_written_are_passed_over(made: Path, capsys: Say) -> None:
    """They are read by commands that must not end for them."""
    host = {"host": "elsewhere", "pid": 1}
    states = [
        host | {"state": "frob", "message": ""},
        host | {"state": "running", "message": "", "left_s": 1},
        host | {"state": "failed"},
        host | {"state": "failed", "message": "a bad day"},
    ]
    files = {}
    for cell, state in zip(cells(), states, strict=True):
        files[f"tiny/status/{cell.status.name}"] = json.dumps(state)
        files[f"tiny/status/{cell.attempts.name}"] = "[{}]"
    assert main(["import", str(member(made.parents[1] / "pack", **files))]) == 0
    capsys.readouterr()
    assert main(["status", "tiny.yaml"]) == 0
    told = capsys.readouterr().out
    assert "4 cells: 3 waiting, 1 failed" in told
    assert "a bad day" in told
    assert "no training of it is known on this machine" in told


def test_a_checkpoint_that_is_none_replaces_nothing(made: Path, capsys: Say) -> None:
    first, second, *_ = cells()
    first.checkpoint.parent.mkdir(parents=True)
    first.checkpoint.write_bytes(b"ours")
    state = {"host": "elsewhere", "pid": 1, "state": "waiting", "message": "", "epoch": 9}
    pack = member(
        made.parents[1] / "pack", **{f"tiny/status/{first.status.name}": json.dumps(state)}
    )
    (pack / f"tiny.{first.id}.ckpt.1of1").write_bytes(seal(b"junk") + b"junk")
    buffer = io.BytesIO()
    torch.save({"digest": "0" * 64}, buffer)
    (pack / f"tiny.{second.id}.ckpt.1of1").write_bytes(seal(buffer.getvalue()) + buffer.getvalue())
    assert main(["import", str(pack)]) == 1
    told = capsys.readouterr().err
    assert f"tiny.{first.id}.ckpt: is no checkpoint" in told
    assert f"tiny.{second.id}.ckpt: is of another cell: found the digest 0000" in told
    assert first.checkpoint.read_bytes() == b"ours"
    assert not second.checkpoint.exists()


def test_what_cannot_be_parsed_ends_no_import(made: Path, capsys: Say) -> None:
    first = cells()[0]
    (made / first.record.name).write_text("[" * 200_000)
    Path("number.yaml").write_text("42")
    Path("latin.yaml").write_bytes("study: é".encode("latin-1"))
    Path("mistake.yaml").write_text("study: mistake\ngird: []")
    assert main(["import", str(made)]) == 1
    told = capsys.readouterr()
    assert f"{made / first.record.name}: " in told.err
    assert "passed over: mistake.yaml: " in told.err
    assert len(told.out.splitlines()) == 2


@pytest.mark.parametrize("damage", ["a part is missing", "cut off", "an archive cut off"])
def test_a_damaged_pack_is_refused(
    elsewhere: Path, made: Path, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    home = Path.cwd()
    folder = home.parent / "pack"
    shutil.copytree(elsewhere, home.parent / "copy")
    monkeypatch.chdir(home.parent / "copy")
    last = cells()[-1]
    last.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    last.checkpoint.write_bytes(os.urandom(300_000))
    write_status(last.status, "waiting", "stopped", epoch=0, epochs=1)
    assert main(["pack", "tiny.yaml", str(folder), "--mib", "0.1"]) == 0
    parts = sorted(folder.glob("*.ckpt.*"))
    assert len(parts) == 3
    if damage == "a part is missing":
        parts[1].unlink()
    elif damage == "cut off":
        parts[2].write_bytes(parts[2].read_bytes()[:-1])
    else:
        archive = folder / "records.tar.xz"
        archive.write_bytes(archive.read_bytes()[:-100])
    monkeypatch.chdir(home)
    capsys.readouterr()
    assert main(["import", str(folder), "--study", "tiny.yaml"]) == 1
    told = capsys.readouterr().err
    if damage == "an archive cut off":
        assert "no readable archive" in told
        assert not list(Path("results").rglob("*.json"))
    else:
        what = "2 of its 3 parts are here" if "missing" in damage else "is damaged"
        assert f"{folder}: tiny.{last.id}.ckpt: {what}" in told
        assert not last.checkpoint.exists()
        assert all(cell.record.is_file() for cell in cells()[:-1])


def test_nothing_to_import_is_said(made: Path, capsys: Say) -> None:
    Path("empty").mkdir()
    for folder, why in (("empty", "no record and no pack"), ("nowhere", "no such folder")):
        assert main(["import", folder]) == 1
        assert f"{folder}: there is {why}" in capsys.readouterr().err


@pytest.mark.slow
def test_snakemake_collects_again_after_an_import_whatever_the_files_times(
    elsewhere: Path,
    clone: Path,
    snakemake: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = TINY | {"figures": [], "tables": ["grid"]}
    tiny["grid"] = [TINY["grid"][0] | {"attentions": ["none"]}]
    (clone / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    arguments = ("--cores", "1", "--configfile", "tiny.yaml")
    monkeypatch.chdir(clone)
    first, second = load_study("tiny.yaml").trainings.values()
    first.record.parent.mkdir(parents=True)
    shutil.copy(elsewhere / first.record, first.record)
    load_study("tiny.yaml").write_snapshot()
    assert main(["complexity", "tiny.yaml", "--output", "results/tiny/complexity.csv"]) == 0
    done = snakemake(clone, "current", *arguments)
    assert done.returncode == 0, done.stderr
    load_study("tiny.yaml").collected.write_text("")  # as if both had been there
    old = elsewhere / second.record
    os.utime(old, (1_600_000_000, 1_600_000_000))

    def announced() -> dict[str, int]:
        dry = snakemake(clone, "-n", *arguments)
        assert dry.returncode == 0, dry.stderr
        return jobs(dry.stdout + dry.stderr)

    shutil.copy2(old, second.record)
    assert "collect" not in announced()
    second.record.unlink()
    # the third record is of no cell of this study
    assert main(["import", str(elsewhere / "results"), "--study", "tiny.yaml"]) == 1
    found = announced()
    assert "train" not in found
    assert found["collect"] == found["set_tables"] == 1
    assert snakemake(clone, *arguments).returncode == 0
    assert list(load_results("tiny").cells["state"]) == ["measured", "measured"]
