"""The command line: help, the arguments STUDY and CELL, output and exit codes."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from attngrid import __version__
from attngrid.cli.main import main, parser
from attngrid.core.errors import ConfigError, UnknownNameError
from attngrid.core.validation import validate
from attngrid.records.status import read_attempts, write_status
from attngrid.study.schema import Study, find_study_file, load_study
from attngrid.training import start
from conftest import environment

GROUPS = ("your study", "the steps that Snakemake calls", "evidence")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: str, tiny: dict[str, Any], **changed: Any) -> Path:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps({**tiny, **changed}))
    return Path(file)


# Help


def test_the_help_has_every_command_in_one_of_three_groups() -> None:
    text = parser().format_help()
    places = [text.index(f"\n{group}:\n") for group in GROUPS]
    assert places == sorted(places)
    listed = re.findall(r"^  ([a-z]+)  +[A-Z].*\.$", text, re.MULTILINE)
    assert len(listed) == len(set(listed)) > 20
    assert {"init", "status", "archive", "train", "collect", "claims", "explain"} <= set(listed)
    assert all(len(line) <= 100 for line in text.splitlines())


def test_every_command_explains_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for name in re.findall(r"^  ([a-z]+)  +[A-Z].*\.$", parser().format_help(), re.MULTILINE):
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert f"usage: attngrid {name}" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"attngrid {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "meant"), [("trian", "train"), ("stauts", "status"), ("-q tabel", "table")]
)
def test_a_mistyped_command_suggests_similar_ones(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(typed.split())
    assert f"did you mean {meant}" in capsys.readouterr().err


# STUDY


def test_the_default_study_is_the_one_that_snakemake_reads(
    folder: Path, tiny: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"config/config.yaml and no study.yaml"):
        find_study_file(None)
    mine = write("study.yaml", tiny)
    assert find_study_file(None) == mine
    demo = write("config/config.yaml", tiny)
    assert find_study_file(None) == demo


def test_a_studys_name_finds_its_file(folder: Path, tiny: dict[str, Any]) -> None:
    file = write("config/some.yaml", tiny)
    Path("config/cluster.yaml").write_text("partition: gpu\n")
    Path("config/broken.yaml").write_text("study: [\n")
    mine = write("study.yaml", tiny, study="mine")
    collected = write("results/old/study.json", tiny, study="old")
    write("results/tiny/study.json", tiny)  # the configuration comes first
    assert [find_study_file(name) for name in ("tiny", "mine")] == [file, mine]
    for name in ("old", "tinny"):
        with pytest.raises(ConfigError, match=r"may be in .*: config/broken\.yaml, line 2: "):
            find_study_file(name)
    Path("config/broken.yaml").unlink()
    assert find_study_file("old") == collected
    with pytest.raises(UnknownNameError, match="unknown study 'tinny': did you mean tiny"):
        find_study_file("tinny")
    write("config/other.yaml", tiny)
    with pytest.raises(ConfigError, match=r"config/other.yaml and config/some.yaml"):
        find_study_file("tiny")


def test_a_path_stays_a_path(folder: Path) -> None:
    assert find_study_file("nowhere.yaml") == Path("nowhere.yaml")
    Path("plain").write_text("{}")  # a file comes before a study of its name
    assert find_study_file("plain") == Path("plain")


def test_commands_take_a_name_a_file_or_nothing(
    folder: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write("config/config.yaml", tiny)
    for study in ([], ["tiny"], ["config/config.yaml"]):
        assert main(["status", *study]) == 0
        assert capsys.readouterr().out.startswith("study tiny: 4 cells: 4 waiting")
    assert main(["status", "tinny"]) == 1
    assert "did you mean tiny" in capsys.readouterr().err
    assert main(["status", "nowhere.yaml"]) == 1
    assert capsys.readouterr().err == ("attngrid: error: nowhere.yaml: No such file or directory\n")


# CELL


def test_list_prints_what_a_configuration_can_name(
    folder: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "attentions"]) == 0
    assert {"se", "cbam", "csm", "maf", "srap"} <= set(capsys.readouterr().out.splitlines())
    Path("mine.json").write_text(json.dumps(tiny))
    assert main(["list", "cells", "mine.json"]) == 0
    ids = capsys.readouterr().out.splitlines()
    assert ids == [cell.id for cell in load_study("mine.json").trainings.values()]


def test_a_cell_is_found_by_a_unique_prefix_of_its_id(tiny: dict[str, Any]) -> None:
    study = validate(Study, tiny, "tiny.yaml")
    for cell in study.trainings.values():
        assert study.find_cell(cell.id) is cell
        assert study.find_cell(cell.id[:-7]) is cell
    both = [cell.id for cell in study.trainings.values() if cell.attention == "none"]
    with pytest.raises(ConfigError, match=f"2 cell ids begin with .*: {', '.join(both)}$"):
        study.find_cell("digits-resnet18-none")
    with pytest.raises(UnknownNameError, match="did you mean digits-resnet18-se"):
        study.find_cell("digits-resnet18-ss-tiny-s0")


def test_train_takes_a_cell_with_or_without_its_study(
    folder: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(start, "start_training", lambda *given: calls.append(given))
    write("study.yaml", tiny)
    write("config/other.yaml", tiny, study="other")
    assert main(["train", "digits-resnet18-se-tiny-s1"]) == 0
    assert main(["train", "other", "digits-resnet18-se-tiny-s1", "--record", "r.json"]) == 0
    assert main(["train", "-q", "--record", "r.json", "study.yaml", "digits-resnet18-none-t"]) == 1
    found = [(study.study, file, cell.seed, record) for study, file, cell, record, _ in calls]
    assert found == [
        ("tiny", Path("study.yaml"), 1, None),
        ("other", Path("config/other.yaml"), 1, Path("r.json")),
    ]


def test_max_runtime_is_a_deadline_of_this_run(
    folder: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNGRID_DEADLINE", "")
    monkeypatch.setattr(start, "start_training", lambda *given: None)
    write("study.yaml", tiny)
    assert main(["train", "digits-resnet18-se-tiny-s1", "--max-runtime", "30m"]) == 0
    assert float(os.environ["ATTNGRID_DEADLINE"]) == pytest.approx(time.time() + 1800, abs=60)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "digits-resnet18-se-tiny-s1", "--max-runtime", "half an hour"])


@pytest.mark.slow
def test_status_reads_the_files_and_an_existing_record_is_not_trained_again(
    folder: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = load_study(write("tiny.json", tiny))
    done, running, failed, waiting = study.trainings.values()
    for _ in range(2):
        assert main(["train", "tiny.json", done.id]) == 0
    assert len(read_attempts(done.status)) == 1
    # nobody reads what it says
    command = [Path(sys.executable).with_name("attngrid"), "train", "tiny.json", done.id]
    # unbuffered, Python would have nothing left to write at its end
    env = {name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"}
    for closing in (">&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | (tee /dev/full >&2 || true)"):
        text = f"set -o pipefail; {shlex.join(map(str, command))} {closing}"
        assert subprocess.run(["bash", "-c", text], env=env, check=False).returncode == 0
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURMD_NODENAME", "gpu07")
    progress_fields = {"epoch": 3, "epochs": 9, "top1_error": 48.75, "left_s": 3720.0}
    write_status(running.status, "running", **progress_fields)
    write_status(failed.status, "failed", "stopped")
    log = Path(f"logs/tiny/{failed.id}.log")
    log.parent.mkdir(parents=True)
    log.write_text("a line\nattngrid: error: out of memory\n\n")
    capsys.readouterr()
    assert main(["status", "tiny.json"]) == 0
    out = capsys.readouterr().out
    assert "study tiny: 4 cells: 1 done, 1 running, 1 waiting, 1 failed" in out
    progress = "epoch 3/9, top-1 error 48.8 %, 1 h 02 min left, on gpu07, job 77"
    assert f"running: {running.id}: {progress}" in out
    assert f"failed: {failed.id}: attngrid: error: out of memory" in out
    assert "remedy: logs/tiny/ID.log has the whole error; the next run tries again" in out
    assert "1 cells in 1 attempts, 0 retries" in out
    assert waiting.id not in out


# Output


@pytest.mark.parametrize("quiet", [["-q", "init", "mine"], ["init", "-q", "mine"]])
def test_quiet_prints_only_results_and_errors(
    folder: Path, quiet: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "loud"]) == 0
    assert capsys.readouterr().err == "next: cd loud && snakemake --cores all\n"
    assert main(quiet) == 0
    captured = capsys.readouterr()
    assert ("mine/study.yaml" in captured.out, captured.err) == (True, "")
    assert main(quiet) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "shown"), [([], "i w"), (["-v"], "d i w"), (["-q"], "w")])
def test_the_flags_set_the_log_level(
    flags: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "schema"]) == 0
    log = logging.getLogger("attngrid.training.run")
    for say, line in ((log.debug, "d"), (log.info, "i"), (log.warning, "w")):
        say(line)
    assert capsys.readouterr().err.split() == shown.split()


def test_a_closed_stderr_does_not_stop_a_command(folder: Path) -> None:
    code = (
        "import logging, sys; from attngrid.cli import main; code = main(['schema']);"
        "logging.getLogger('attngrid.training.run').warning('epoch 1/2');"
        "open('ended', 'w').close(); sys.exit(code)"
    )
    for closed in ("2>&-", "2> >(exit)", "2>/dev/full"):
        command = f"exec '{sys.executable}' -c \"{code}\" {closed}"
        subprocess.run(["bash", "-c", command], stdout=subprocess.DEVNULL)
        assert Path("ended").is_file(), closed
        Path("ended").unlink()


def test_a_closed_stdout_is_not_a_traceback() -> None:
    command = f"'{sys.executable}' -m attngrid.cli schema | exit; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True)
    assert (done.returncode in (0, 1), done.stderr) == (True, "")
