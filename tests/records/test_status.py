"""The status file and the lock of a cell."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attngrid.core.errors import BusyCellError, WriteError
from attngrid.core.validation import validate
from attngrid.records import status as status_module
from attngrid.records.status import (
    attempt,
    has_diverged,
    locked,
    reached,
    read_attempts,
    read_status,
    write_status,
)
from attngrid.study.cell import Cell
from attngrid.study.schema import Study
from conftest import environment


@pytest.fixture
def cell(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    monkeypatch.chdir(tmp_path)
    return next(iter(validate(Study, tiny, "tiny.yaml").trainings.values()))


def test_a_status_has_the_state_and_every_attempt(cell: Cell) -> None:
    def fails() -> None:
        with attempt(cell.status, 2, epoch=1, epochs=9):
            write_status(cell.status, "running", epoch=3)
            assert (read_status(cell.status) or {})["state"] == "running"
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    write_status(cell.status, "failed", "ValueError: no")
    with attempt(cell.status, 0):
        write_status(cell.status, "done")
    status = read_status(cell.status) or {}
    assert (status["state"], status["message"]) == ("done", "")
    first, second = read_attempts(cell.status)
    assert (first["state"], first["gpus"]) == ("ValueError", 2)
    assert (second["state"], second["gpus"]) == ("done", 0)
    assert first["began"] <= first["heard"] <= second["began"] <= second["heard"]
    assert [file.name for file in cell.status.parent.iterdir()] == [cell.status.name]


def test_the_epoch_that_was_reached_is_kept(cell: Cell) -> None:
    write_status(cell.status, "running", epoch=3, epochs=9, left_s=1.0)
    write_status(cell.status, "failed", "killed")
    status = read_status(cell.status) or {}
    assert (status["epoch"], status["epochs"]) == (3, 9)
    assert "left_s" not in status


def test_each_status_updates_the_time_of_its_attempt(cell: Cell) -> None:
    with attempt(cell.status, 0):
        before = read_attempts(cell.status)[0]["heard"]
        time.sleep(0.01)
        write_status(cell.status, "running", epoch=1)
        assert read_attempts(cell.status)[0]["heard"] > before
        assert read_attempts(cell.status)[0]["state"] == "running"


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"state": "unknown", "message": ""}', '{"state": "done", "message": 1}'),
        "[" * 200_000,
        *(
            f'{{"state": "running", "message": "", {more}}}'
            for more in (
                '"attempts": [{}]',
                '"attempts": {"began": 1}',
                '"attempts": [{"began": NaN, "heard": 2.5, "gpus": 1, "state": "done"}]',
                '"epoch": "3"',
                '"pid": "7"',
                f'"pid": {2**70}, "host": "{socket.gethostname()}"',
                '"time": 7',
            )
        ),
    ],
)
def test_an_invalid_status_file_is_ignored(cell: Cell, content: str) -> None:
    cell.status.parent.mkdir(parents=True)
    cell.status.write_text(content)
    assert read_status(cell.status) is None
    assert read_attempts(cell.status) == []
    assert (reached(cell.status), has_diverged(cell.status)) == (0, "")
    write_status(cell.status, "failed", "x")
    assert (read_status(cell.status) or {})["state"] == "failed"


def test_a_second_process_is_refused_with_the_name_of_the_first(cell: Cell) -> None:
    write_status(cell.status, "running")
    with locked(cell):
        where = f"process .* on {socket.gethostname()}; nothing was done"
        with pytest.raises(BusyCellError, match=where), locked(cell):
            pytest.fail("held twice")
    with locked(cell):
        pass  # released


def stop_holder(holder: subprocess.Popen[bytes], lock: Path) -> None:
    holder.kill()
    holder.wait()


@pytest.mark.parametrize("remove", [stop_holder, lambda holder, lock: lock.unlink()])
def test_waiting_for_a_lock_logs_which_file_to_remove(
    remove: Callable[..., None],
    cell: Cell,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            remove(holder, cell.lock)

    cell.lock.parent.mkdir(parents=True)
    code = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, 2); print(1, flush=True)"
    command = [sys.executable, "-c", f"{code}; sys.stdin.read()", str(cell.lock)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), **pipes) as holder:
        holder.stdout.readline()  # type: ignore[union-attr]
        monkeypatch.setattr(status_module.time, "sleep", sleep)
        with locked(cell, wait=True):
            pass
        stop_holder(holder, cell.lock)
    assert len(sleeps) == 3
    (message,) = caplog.messages
    assert f"remove {cell.lock}" in message


def test_a_lock_file_that_no_process_holds_does_not_lock(cell: Cell) -> None:
    cell.lock.parent.mkdir(parents=True)
    cell.lock.write_text("1234\nanother-host\n")
    with locked(cell):
        pass


def test_what_a_killed_writer_left_is_removed_once_the_cell_is_locked(cell: Cell) -> None:
    code = """
import os, sys
from pathlib import Path
from attngrid.core import files
files.os.fsync = lambda stream: os.kill(os.getpid(), 9)
files.write_atomically(Path(sys.argv[1]), b"whole")
"""
    for file in (cell.checkpoint, cell.weights, cell.record):
        subprocess.run([sys.executable, "-c", code, file], env=environment(), check=False)
        (left,) = file.parent.iterdir()
        assert left.name.startswith(f".{file.name}.")
    others = [cell.checkpoint.with_name(name) for name in (".other.ckpt.1.tmp", "notes.tmp")]
    for other in others:
        other.write_text("another's")
    with locked(cell):
        assert set(cell.checkpoint.parent.iterdir()) == set(others)
        assert not [*cell.weights.parent.iterdir(), *cell.record.parent.iterdir()]


def test_a_killed_process_leaves_no_lock_with_its_children(cell: Cell) -> None:
    """The readers of a training are forked, and notice its end only after seconds."""
    program = f"""
import multiprocessing, os, signal, time
from pathlib import Path
from types import SimpleNamespace
from attngrid.records.status import locked
root = Path({str(cell.lock.parent)!r})
files = {{name: root / name for name in ("checkpoint", "weights", "record", "status")}}
cell = SimpleNamespace(lock=Path({str(cell.lock)!r}), **files)
with locked(cell):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    cell.lock.parent.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        process.wait()
    try:
        os.kill(child, 0)  # it still runs
        with locked(cell):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_clear_message(
    cell: Cell, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    why = f"{cell.lock}: this file system has no file locks.*site"
    with pytest.raises(WriteError, match=why), locked(cell, wait=True):
        pytest.fail("held")
