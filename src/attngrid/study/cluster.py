"""What a site's Slurm wants to be told: ``config/cluster.yaml``, and requeueing one's own job."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt

from attngrid.core.errors import ConfigError
from attngrid.core.files import shipped
from attngrid.core.types import Positive, Strict

FILE = Path("config/cluster.yaml")
# Of each job, the two Snakemakes inside it; they need no GPU.
SNAKEMAKE_MB = 600
DAY = 1440


def _one_word_for_slurm(value: str) -> str:
    """Quoting carries any character to Slurm; these would mean something else there."""
    if not value.strip() or not value.isprintable() or value.startswith("-"):
        raise ValueError(f"found {value!r}; needs printable characters, not beginning with '-'")
    return value


def _option(value: str) -> str:
    if not value.startswith("--") or not value.isprintable():
        raise ValueError(f"found {value!r}; needs an option of sbatch, --name or --name=value")
    return value


def _duration(value: str) -> str:
    if _minutes(value) is None:
        raise ValueError(f"found {value!r}; needs [days-]hours:minutes:seconds, such as 1-00:00:00")
    return value


def _minutes(text: str) -> int | None:
    """Of Slurm's ``[days-]hours:minutes:seconds``, without days or hours if need be; else None.

    Behind days Slurm takes two numbers for hours and minutes, without them for minutes and seconds.
    """
    if not (match := re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text)):
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes or None


Word = Annotated[str, AfterValidator(_one_word_for_slurm)]
Model = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]


class Cluster(Strict):
    """A site's Slurm. What is left out is left to Slurm's defaults."""

    partition: Word | None = Field(None, description="of the jobs with a GPU")
    cpu_partition: Word | None = Field(None, description="of the jobs without one")
    account: Word | None = Field(None, description="that is charged")
    qos: Word | None = Field(None, description="of all jobs")
    constraint: Word | None = Field(None, description="of the jobs with a GPU, such as a100&nvlink")
    gpu_request: Literal["gpus", "gres", "none"] = Field(
        "gpus", description="--gpus=N, --gres=gpu:N, or nothing where the partition implies it"
    )
    gpu_model: Model | None = Field(None, description="as Slurm spells it: --gpus=a100:N")
    extra: tuple[Annotated[str, AfterValidator(_option)], ...] = Field(
        (), strict=False, description="further options of sbatch, one an item"
    )
    time_limit: Annotated[str, AfterValidator(_duration)] | None = Field(
        None, description="of a job; left out, the partition's. A longer cell takes several jobs"
    )
    warning_s: PositiveInt = Field(
        180, description="before the limit, for a last step and its checkpoint"
    )
    gpu: str = Field("A100", min_length=1, description="the GPU that times are planned for")
    margin: Positive = Field(2.0, description="of the wall time over the planned one")

    def limit(self, *, ask: bool = False) -> int:
        """The minutes that a job may take: what is said, what Slurm says if asked, or a day."""
        if self.time_limit is not None:
            return _minutes(self.time_limit) or DAY
        return (_partition_limit(self.partition) if ask else None) or DAY

    def runtime(self, planned_s: float | None, limit: int) -> int:
        """Minutes of wall time to ask for, given the seconds that a cell should take."""
        if planned_s is None:
            return limit
        # torch, Snakemake twice and the images; and the warning comes before the end
        wanted = 10 + (planned_s * self.margin + self.warning_s) / 60
        return min(limit, math.ceil(wanted))

    def options(self, gpus: int, *, signal: bool = False) -> dict[str, Any]:
        """The resources by which Snakemake's plugin tells Slurm what a job needs.

        Args:
            gpus: of the job; 0 for one without.
            signal: have the job's processes warned by USR1 before its limit.
        """
        extra = [*self.extra, *([f"--signal=USR1@{self.warning_s}"] if signal else [])]
        options: dict[str, Any] = {
            "slurm_partition": self.partition if gpus else self.cpu_partition,
            "slurm_account": self.account,
            "qos": self.qos,
            "constraint": self.constraint if gpus else None,
            # goes through a shell as it is
            "slurm_extra": shlex.join(extra) or None,
        }
        if gpus and self.gpu_request == "gpus":
            options |= {"gpu": gpus, "gpu_model": self.gpu_model}
        elif gpus and self.gpu_request == "gres":
            model = f":{self.gpu_model}" if self.gpu_model else ""
            options["gres"] = f"gpu{model}:{gpus}"
        return {name: value for name, value in options.items() if value is not None}


def cluster() -> Cluster:
    """What the file that ``$ATTNGRID_CLUSTER`` names says, or else ``config/cluster.yaml``.

    Raises:
        ConfigError: a file that is named and not there, an unknown key or a wrong value.
    """
    file = cluster_file()
    return _read(file, file.stat().st_mtime_ns) if file.is_file() else Cluster()


def cluster_file() -> Path:
    """Where ``cluster`` reads.

    Raises:
        ConfigError: a file that is named and not there.
    """
    named = os.environ.get("ATTNGRID_CLUSTER")
    if named and not Path(named).is_file():
        raise ConfigError(f"ATTNGRID_CLUSTER: found {named!r}; there is no such file")
    return Path(named) if named else shipped(FILE)


@lru_cache(maxsize=8)
def _read(file: Path, changed: int) -> Cluster:
    from attngrid.core.files import read_yaml  # it is imported by what this module imports
    from attngrid.core.validation import validate  # it is imported by what this module imports

    return validate(Cluster, read_yaml(file) or {}, file)


def _partition_limit(partition: str | None) -> int | None:
    """The least limit in minutes of the named partitions, or of Slurm's default one."""
    command = ["sinfo", "--noheader", "--format=%P|%l"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no Slurm here
    rows = [line.strip().rpartition("|") for line in done.stdout.splitlines()]
    named = partition.split(",") if partition else [name for name, _, _ in rows if name[-1:] == "*"]
    wanted = {name.rstrip("*") for name in named}
    limits = [_minutes(limit) for name, _, limit in rows if name.rstrip("*") in wanted]
    return min((limit for limit in limits if limit is not None), default=None)


def require_plain(values: Iterable[object]) -> None:
    """Raise where something that a job's command is made of would be read by a shell on its way.

    Snakemake quotes it for the job; the plugin then hands the whole to sbatch in double quotes,
    in which these characters still mean something.

    Raises:
        ConfigError: names it.
    """
    for value in map(str, values):
        if found := set('$`"\\\n') & set(value):
            raise ConfigError(
                f"on Slurm: found {value!r}, in which a shell would read {min(found)!r}; take a "
                'name or folder without $, `, ", \\ and line ends'
            )


def slurm_job() -> str | None:
    """The id of the Slurm job that this process is in."""
    return os.environ.get("SLURM_JOB_ID")
