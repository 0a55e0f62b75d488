"""A real Slurm for the tests. All scenarios run in it at the same time."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from attngrid.core.validation import validate
from attngrid.records.status import read_attempts, read_status
from attngrid.study.cell import Cell
from attngrid.study.schema import Study
from conftest import TINY as SMALL
from conftest import environment, make_clone

# Number of scenarios at a time. They mostly wait.
MAX_SCENARIOS = 6
HERE = Path(__file__).resolve().parent
FIRST_STATUS_CHECK = "--slurm-init-seconds-before-status-checks=3"

# A module with one parameter. A training step takes STEP_S seconds. The module holds EXTRA_MB of
# memory for some seconds, once.
MODULE = """
import os, time
import torch

class Slow(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        if self.training and len(x) > 100:  # a network has eight of these modules
            time.sleep(float(os.environ.get("STEP_S", "0")) / 8)
            if mb := int(os.environ.get("EXTRA_MB", "0")):
                held = bytearray(os.urandom(1000)) * 1000 * mb
                time.sleep(6)
                os.environ["EXTRA_MB"] = "0"
        return x * self.scale
"""
TINY: dict[str, Any] = {
    "study": "tiny",
    "grid": [SMALL["grid"][0] | {"attentions": ["slow.py:Slow"]}],
    "recipes": {"tiny": SMALL["recipes"]["tiny"] | {"epochs": 4}},
    "compute": {"checkpoint_share": 1.0},
}


class Sandbox:
    """The Slurm that up.sh starts and down.sh stops."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = environment() | {
            "SLURM_SANDBOX": str(folder),
            "SLURM_CONF": str(folder / "etc/slurm.conf"),
        }
        self.started: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        self("bash", str(HERE / "up.sh"), timeout=90)

    def down(self) -> None:
        try:
            self("bash", str(HERE / "down.sh"), "--wipe", timeout=120)
        finally:  # Slurm does not stop the jobs of a node that is down
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if process.environ().get("SLURM_SANDBOX") == str(self.folder):
                        process.kill()

    def __call__(self, *command: str, timeout: float = 30) -> str:
        return subprocess.run(
            command,
            env=self.environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=timeout,
        ).stdout

    def restart_controller(self, away_s: float) -> None:
        """Stop slurmctld, and start it again after some seconds with the state that it saved."""
        pid = self.folder / "run/slurmctld.pid"
        subprocess.run(["kill", pid.read_text().strip()], check=True)
        time.sleep(away_s)
        with (self.folder / "log/slurmctld.again").open("w") as log:
            again = subprocess.Popen(
                ["slurmctld", "-D"],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        pid.write_text(f"{again.pid}\n")


class Clone:
    """A fresh clone with the tiny study, in which a scenario runs Snakemake on the sandbox."""

    def __init__(self, sandbox: Sandbox, folder: Path, **env: str) -> None:
        self.sandbox, self.folder = sandbox, make_clone(folder)
        (folder / "slow.py").write_text(MODULE)
        self.environment = sandbox.environment | {"STEP_S": "1", **env}
        self.cluster()

    def cluster(self, **content: Any) -> None:
        """Write config/cluster.yaml."""
        (self.folder / "config/cluster.yaml").write_text(yaml.safe_dump(content))

    def study(self, seeds: list[int], *, diverging: bool = False, gpus: int = 1) -> Study:
        """Write the tiny study with these seeds; ``diverging`` adds a recipe that diverges."""
        content = copy.deepcopy(TINY)
        content["grid"][0]["seeds"] = seeds
        content["compute"]["gpus"] = gpus
        if diverging:
            content["grid"][0]["recipes"].insert(0, "diverging")
            content["recipes"]["diverging"] = TINY["recipes"]["tiny"] | {"learning_rate": 1e6}
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(content))
        # an absolute path, because this process runs in another folder
        content["grid"][0]["attentions"] = [f"{self.folder}/slow.py:Slow"]
        return validate(Study, content, "tiny.yaml")

    def counted_study(self, seeds: list[int], *, diverging: bool = False) -> Study:
        """The same with its model counted: its cells have a plan and count as small."""
        study = self.study(seeds, diverging=diverging)
        self._run("complexity", "tiny.yaml", "--output", str(study.results / "complexity.csv"))
        return study

    def train(self, cell: Cell) -> None:
        """Train a cell without Snakemake and Slurm."""
        self._run("train", "tiny.yaml", cell.id)

    def _run(self, *arguments: str) -> None:
        command = ["attngrid", *arguments]
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True, timeout=120)

    def start(self, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start `snakemake --cores all --profile slurm`; its output goes to out.txt."""
        # a shell's background processes ignore Ctrl-C by default
        command = ["env", "--default-signal=INT", "snakemake", "records"]
        command += ["--cores", "all", "--profile", "slurm", FIRST_STATUS_CHECK]
        with (self.folder / "out.txt").open("ab") as out:
            process = subprocess.Popen(
                [*prefix, *command, "--configfile", "tiny.yaml", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.sandbox.started.append(process)
        return process

    def finish(self, process: subprocess.Popen[bytes], *, within: float = 420) -> None:
        """Wait for a run, which must succeed."""
        try:
            code = process.wait(within)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            code = None
        assert code == 0, self.output()

    def output(self) -> str:
        """The end of the output of Snakemake and its jobs."""
        return (self.folder / "out.txt").read_text("utf-8", errors="replace")[-6000:]

    def file(self, path: Path) -> Path:
        return self.folder / path

    def attempts(self, study: Study) -> list[list[dict[str, Any]]]:
        """The attempts of each cell."""
        return [read_attempts(self.file(cell.status)) for cell in study.trainings.values()]

    def await_epoch(self, study: Study, epoch: int = 1, *, within: float = 300) -> str:
        """Wait until the first cell has reached this epoch; return the id of its Slurm job."""
        cell = next(iter(study.trainings.values()))
        found: dict[str, Any] = {}

        def reached() -> bool:
            found.update(read_status(self.file(cell.status)) or {})
            return found.get("state") == "running" and found.get("epoch", -1) >= epoch

        await_true(reached, within, self.output)
        return str(found["job"])

    def equal_to(self, undisturbed: dict[str, Any], study: Study) -> str:
        """Assert that each cell has the undisturbed record, to the bit; return a summary."""
        resumed = 0
        for cell in study.trainings.values():
            record = json.loads(self.file(cell.record).read_text())
            assert record["metrics"] == undisturbed[cell.id]["metrics"]
            assert record["config"]["digest"] == undisturbed[cell.id]["config"]["digest"]
            expected = {k: v for k, v in undisturbed[cell.id]["config"].items() if k != "attention"}
            assert {k: record["config"][k] for k in expected} == expected
            resumed += record["run"]["resumed"]
        records = list(self.file(study.results).glob("records/*.json"))
        assert len(records) == len(study.trainings)
        attempts = self.attempts(study)
        ended = [one["state"] for each in attempts for one in each]
        assert ended.count("done") == len(study.trainings)  # none was trained twice
        jobs = {one["job"] for each in attempts for one in each}
        return (
            f"{len(attempts)} cells in {len(jobs)} jobs and {len(ended)} attempts, "
            f"{resumed} times from a checkpoint; equal to the bit"
        )


def await_true(
    condition: Callable[[], bool], within: float, output: Callable[[], str] = lambda: ""
) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, output()
        time.sleep(0.2)


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A running Slurm."""
    if shutil.which("slurmctld") is None or os.geteuid() != 0:
        pytest.skip("needs root and Debian's slurm-wlm")
    sandbox = Sandbox(tmp_path_factory.mktemp("sandbox"))
    try:
        sandbox.up()
        yield sandbox
    finally:
        sandbox.down()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The records of both cells, trained in turn without Snakemake and Slurm."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "slow.py").write_text(MODULE)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    content = TINY | {"grid": [TINY["grid"][0] | {"attentions": [f"{folder}/slow.py:Slow"]}]}
    study = validate(Study, content, "tiny.yaml")
    records = {}
    for cell in study.trainings.values():
        command = ["attngrid", "train", "tiny.yaml", cell.id]
        subprocess.run(command, cwd=folder, env=environment(), check=True, timeout=120)
        records[cell.id] = json.loads((folder / cell.record).read_text())
    return records


Outcomes = dict[str, "Future[str]"]
SUMMARIES: dict[str, str] = {}


@pytest.fixture(scope="session")
def outcomes(
    request: pytest.FixtureRequest,
    sandbox: Sandbox,
    undisturbed: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Outcomes]:
    """Run the selected scenarios at the same time."""
    scenarios = {
        item.callspec.params["scenario"].__name__: item.callspec.params["scenario"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        if "scenario" in item.callspec.params
    }
    with ThreadPoolExecutor(max_workers=MAX_SCENARIOS) as pool:
        yield {
            name: pool.submit(scenario, sandbox, tmp_path_factory.mktemp(name), undisturbed)
            for name, scenario in scenarios.items()
        }
        for process in sandbox.started:  # a failed scenario may have left some
            if process.poll() is None:
                os.killpg(process.pid, 9)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print one line for each scenario."""
    if SUMMARIES:
        terminalreporter.section("on Slurm")
        for name, summary in SUMMARIES.items():
            terminalreporter.line(f"{name.replace('_', ' ')}: {summary}")
