"""A machine that is at hand for minutes: deadlines, and what is carried from run to run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from attngrid.analysis.frames import collect
from attngrid.cli.main import main
from attngrid.records.attempts import read_attempts
from attngrid.records.record import read_record
from attngrid.records.status import read_status, write_status
from attngrid.study.cell import Cell
from attngrid.study.plan import Planner
from attngrid.study.schema import Study, load_study
from attngrid.training.pack import read_archive
from conftest import environment, make_clone

Say = pytest.CaptureFixture[str]
FILES, MIB = 8, 0.1


def node(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script as a user calls it, one cell after the other."""
    return subprocess.run(
        ["bash", "workflow/node.sh", *arguments, "--", "--cores", "1"],
        cwd=clone,
        env=environment() | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=600,
    )


def wheel(folder: Path) -> None:
    """One that no index has."""
    folder.mkdir()
    info = "carried-1.0.dist-info"
    files = {
        "carried.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": f"carried.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
    }
    with zipfile.ZipFile(folder / "carried-1.0-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.slow
def test_two_runs_of_half_a_minute_make_the_records_of_an_undisturbed_one(
    tmp_path: Path, tiny: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """The second one on another machine, which has nothing but what the first one packed."""
    long = tiny["recipes"]["tiny"] | {"epochs": 50, "batch_size": 64}
    first = tiny["grid"][0] | {"attentions": ["none"], "seeds": [0]}
    tiny["recipes"]["long"] = long
    tiny["grid"] = [first, first | {"recipes": ["long"]}, first | {"attentions": ["se"]}]
    clones = [make_clone(tmp_path / name) for name in ("undisturbed", "here", "there")]
    name, folder = "my 'own' study.yaml", str(tmp_path / "a $(pack)")
    for clone in clones:
        (clone / name).write_text(yaml.safe_dump(tiny))
    wheel(clones[1] / "wheels")
    command = ["snakemake", "records", "--cores", "1", "--configfile", name]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    undisturbed = subprocess.Popen(
        command, cwd=clones[0], env=environment(), **silent, start_new_session=True
    )

    def end() -> None:
        with suppress(ProcessLookupError):  # it is through
            os.killpg(undisturbed.pid, signal.SIGKILL)

    request.addfinalizer(end)
    quick, slow, last = load_study(clones[0] / name).trainings.values()

    options = ("--config", name, "--to", folder, "--files", str(FILES), "--mib", str(MIB))
    extra = ("--wheels", "wheels", "--first", "echo 'run first' >first.txt", "--reserve", "4")
    minutes = 0.5
    while True:
        done = node(clones[1], *options, *extra, "--minutes", str(minutes))
        if (clones[1] / slow.checkpoint).is_file() or minutes >= 8:
            break
        minutes *= 2  # on a machine that is so busy
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert told.startswith("GPU, driver, memory: ")
    assert (clones[1] / ".node/python/carried.py").is_file()
    assert (clones[1] / "first.txt").read_text() == "run first\n"
    assert (clones[1] / quick.record).is_file()
    assert "stopped at the deadline; the next run goes on from its checkpoint" in told
    assert not (clones[1] / slow.record).exists()
    assert not (clones[1] / last.attempts).exists()
    assert "study tiny: 3 cells: 1 done, 2 waiting" in done.stdout
    packed = {file.name: file.stat().st_size for file in Path(folder).iterdir()}
    assert f"tiny.{slow.id}.ckpt.1of{len(packed) - 1}" in packed
    assert 2 < len(packed) <= FILES
    assert max(packed.values()) <= MIB * 2**20

    done = node(clones[2], *options, "--from", folder, "--minutes", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert undisturbed.wait(600) == 0
    for cell in (quick, slow, last):
        expected, found = (
            json.loads((clone / cell.record).read_text()) for clone in (clones[0], clones[2])
        )
        assert [found[block] for block in ("config", "metrics")] == [
            expected[block] for block in ("config", "metrics")
        ]
    assert read_record(clones[2] / slow.record, slow).run["resumed"] == 1
    # what the first run had finished was not trained again
    there, here = (clone / quick.record for clone in (clones[2], clones[1]))
    assert there.read_bytes() == here.read_bytes()
    assert len(read_attempts(clones[2] / quick.attempts)) == 1
    assert [file.name for file in Path(folder).iterdir()] == ["records.tar.xz"]


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    tiny["grid"][0] |= {"attentions": ["none", "se"]}
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    return load_study("tiny.yaml")


@pytest.fixture
def until(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say how many seconds there are left, of how many in all."""

    def say(left: float, budget: float = 3600) -> None:
        monkeypatch.setenv("ATTNGRID_DEADLINE", str(time.time() + left))
        monkeypatch.setenv("ATTNGRID_BUDGET", str(budget))

    return say


def takes(cell: Cell, seconds: float) -> None:
    """A record elsewhere says how long a cell took on a CPU."""
    file = Path("results/elsewhere/records", cell.record.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    run = {"device": "cpu", "device_name": "some processor", "wall_s": seconds}
    file.write_text(json.dumps({"run": run}))


def test_what_would_not_fit_is_not_started(
    study: Study, until: Callable[..., None], capsys: Say
) -> None:
    short, _, long, _ = sorted(study.trainings.values(), key=lambda cell: cell.attention)
    takes(short, 1)
    takes(long, 600)
    until(300)
    assert main(["train", "tiny.yaml", long.id]) == 1
    told = rf"{long.id}: not started: needs some 11 min 10 s, (5 min 00|4 min 5\d) s are left"
    assert re.search(told, capsys.readouterr().err)
    assert not long.attempts.exists()
    status = read_status(long.status)
    assert status is not None
    assert status["state"] == "waiting"
    # waiting for time is no failure, here or in a table
    states = collect(study).cells.set_index("id")["state"]
    assert states[long.id] == "not_run"
    assert main(["status", "tiny.yaml"]) == 0
    assert "1 cells not started: would not have fitted" in capsys.readouterr().out
    assert main(["train", "tiny.yaml", short.id]) == 0
    assert short.record.is_file()


def test_epochs_behind_a_checkpoint_are_not_planned_again(
    tiny: dict[str, Any], study: Study, until: Callable[..., None], capsys: Say
) -> None:
    tiny["recipes"]["tiny"]["epochs"] = 10
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    cell = next(iter(load_study("tiny.yaml").trainings.values()))
    takes(cell, 1000)
    cell.checkpoint.parent.mkdir(parents=True)
    cell.checkpoint.write_bytes(b"damaged, so that all of it is trained: passed over")
    for epoch, left, fits in ((8, 200, False), (9, 100, False), (9, 130, True)):
        write_status(cell.status, "waiting", "stopped", epoch=epoch, epochs=10)
        until(left)
        assert (main(["train", "tiny.yaml", cell.id]) == 0) is fits, (epoch, left)
        if not fits:
            # 10 s to start, and a tenth more than planned
            planned = 10 + 1.1 * 1000 * (10 - epoch) / 10
            minutes, seconds = divmod(round(planned), 60)
            assert f"needs some {minutes} min {seconds:02} s" in capsys.readouterr().err
            assert (read_status(cell.status) or {})["epoch"] == epoch


def test_what_never_fits_is_started_once_nothing_that_fits_is_left(
    tiny: dict[str, Any], study: Study, until: Callable[..., None], capsys: Say
) -> None:
    tiny["grid"][0]["seeds"] = [0]
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    short, long = load_study("tiny.yaml").trainings.values()
    takes(short, 1)
    takes(long, 5000)
    until(300, budget=600)
    assert main(["train", "tiny.yaml", long.id]) == 1  # the short one fits, and waits
    assert main(["train", "tiny.yaml", short.id]) == 0
    capsys.readouterr()
    # it would fit in a longer run
    until(300, budget=3600 * 3)
    assert main(["train", "tiny.yaml", long.id]) == 1
    until(300, budget=600)
    assert main(["train", "tiny.yaml", long.id]) == 0
    assert "more than a run has; trains to the deadline" in capsys.readouterr().err


def test_a_refusal_waits_for_no_torch(study: Study, until: Callable[..., None]) -> None:
    cell = next(iter(study.trainings.values()))
    until(1)
    code = (
        "import sys; from attngrid.cli import main; code = main(sys.argv[1:]);"
        "print('torch' in sys.modules, code)"
    )
    command = [sys.executable, "-c", code, "train", "tiny.yaml", cell.id]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "False 1\n", done.stderr


@pytest.mark.parametrize("name", ["ATTNGRID_DEADLINE", "ATTNGRID_BUDGET"])
def test_a_deadline_that_is_no_number_is_named(
    study: Study, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    monkeypatch.setenv(name, "noon")
    assert main(["train", "tiny.yaml", next(iter(study.trainings))]) == 1
    assert f"{name}: found 'noon'; needs a number of seconds" in capsys.readouterr().err


def test_plans_are_for_the_device_at_hand(study: Study) -> None:
    cell = next(iter(study.trainings.values()))
    takes(cell, 7)
    assert Planner(study, on_cpu=True).estimate(cell).seconds == 7
    assert Planner(study, gpu="NVIDIA H200", on_cpu=False).estimate(cell).seconds is None


def checkpoint(cell: Cell, size: int, epoch: int) -> bytes:
    content = os.urandom(size)
    cell.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    cell.checkpoint.write_bytes(content)
    write_status(cell.status, "waiting", "stopped", epoch=epoch, epochs=cell.recipe.epochs)
    return content


def test_a_pack_has_the_most_advanced_checkpoints_that_fit_and_names_the_others(
    tiny: dict[str, Any], study: Study, capsys: Say
) -> None:
    tiny["recipes"]["tiny"]["epochs"] = 10
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    cells = list(load_study("tiny.yaml").trainings.values())
    contents = [
        checkpoint(c, size, epoch)
        for c, size, epoch in zip(cells, (250_000, 350_000, 90_000, 10), (3, 9, 8, 1), strict=True)
    ]
    folder = Path("a pack")
    command = ["pack", "tiny.yaml", str(folder), "--files", "7", "--mib", "0.1"]
    assert main(command) == 0
    assert f"no room for {cells[0].checkpoint}, 0.2 MiB: it stays here" in capsys.readouterr().err
    for cell, content in zip(cells[1:], contents[1:], strict=True):
        parts = sorted(folder.glob(f"tiny.{cell.id}.ckpt.*"))
        assert b"".join(part.read_bytes() for part in parts) == content
    assert len(list(folder.iterdir())) == 1 + 4 + 1 + 1


def test_a_pack_takes_nobody_elses_folder(study: Study, capsys: Say) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("")
    assert main(["pack", "tiny.yaml", "mine"]) == 1
    assert "mine: has thesis.tex, which is no pack's; nothing was packed" in capsys.readouterr().err
    assert [file.name for file in Path("mine").iterdir()] == ["thesis.tex"]


def test_what_does_not_fit_is_an_error(study: Study, capsys: Say) -> None:
    Path("logs/tiny").mkdir(parents=True)
    Path("logs/tiny/a.log").write_bytes(os.urandom(2000))
    Path("logs/tiny/my own.log").write_text("of no cell")
    command = ["pack", "tiny.yaml", "small", "--mib"]
    assert main([*command, "0.001"]) == 1
    told = "tiny/logs/a.log: takes 2,[0-9]{3} bytes packed, and a file may have 1,048; nothing was"
    assert re.search(told, capsys.readouterr().err)
    assert not Path("small").exists()
    assert main([*command, "1"]) == 0
    assert read_archive(Path("small/records.tar.xz")).keys() == {"tiny/logs/a.log"}


@pytest.mark.parametrize(
    ("name", "value", "needs"),
    [
        ("--mib", "nan", "found 'nan'; MiB, from 0.001"),
        ("--mib", "0", "found '0'; MiB, from 0.001"),
        ("--files", "0", "found '0'; a whole number from 1"),
        ("--files", "abc", "found 'abc'; a whole number from 1"),
    ],
)
def test_limits_of_a_pack_are_numbers(
    study: Study, name: str, value: str, needs: str, capsys: Say
) -> None:
    with pytest.raises(SystemExit):
        main(["pack", "tiny.yaml", "pack", name, value])
    assert needs in capsys.readouterr().err


def test_a_file_is_no_folder_for_a_pack(study: Study, capsys: Say) -> None:
    assert main(["pack", "tiny.yaml", "tiny.yaml"]) == 1
    assert "tiny.yaml: is no folder; nothing was packed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--reserve", "045"), 2, "--reserve: found 045; needs a number"),
        (("--files", "abc"), 2, "found 'abc'; a whole number from 1"),
        (("--to", "config"), 1, "which is no pack's; nothing was packed"),
        (("--from", "packde"), 1, "there is no packde yet: nothing to go on from"),
        ((), 1, "1 cells: 1 waiting"),
    ],
)
def test_a_run_that_fails_says_so_and_mistakes_cost_no_time(
    options: tuple[str, ...],
    code: int,
    told: str,
    clone: Path,
    tmp_path: Path,
    tiny: dict[str, Any],
) -> None:
    """Here Snakemake itself fails, beside a cell that has waited since an earlier run."""
    tiny["grid"][0] |= {"attentions": ["none"], "seeds": [0]}
    (clone / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    (cell,) = load_study(clone / "tiny.yaml").trainings.values()
    write_status(clone / cell.status, "waiting", "not started")
    stub = tmp_path / "bin/snakemake"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\ntouch began\nexit 1\n")
    stub.chmod(0o755)
    path = f"{stub.parent}{os.pathsep}{environment()['PATH']}"
    done = subprocess.run(
        ["bash", "workflow/node.sh", "--config", "tiny.yaml", *options],
        cwd=clone,
        env=environment() | {"PYTHON": sys.executable, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert told in done.stdout + done.stderr
    assert (clone / "began").exists() is (not options or "--from" in options)
