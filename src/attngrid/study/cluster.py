"""A site's Slurm settings, ``config/cluster.yaml``, and the options of a job."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from attngrid.core.errors import ConfigError
from attngrid.core.files import shipped
from attngrid.core.types import Positive, Strict
from attngrid.core.validation import PATTERNS, read_settings, settings_file

DAY = 1440
# Slurm's days-hours:minutes:seconds; without days, the hours are optional too.
DURATION = r"^(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)$"

WORD, MODEL, OPTION = r"^[\w\[(][ -~]*$", r"^[A-Za-z0-9_.]+$", r"^--[ -~]+$"
PATTERNS |= {
    DURATION: "[days-]hours:minutes:seconds, such as 1-00:00:00",
    WORD: "ASCII characters, with a letter, digit, _, [ or ( first",
    MODEL: "letters, digits, _ and .",
    OPTION: "an option of sbatch, --name or --name=value",
}
Word = Annotated[str, Field(pattern=WORD)]
Model = Annotated[str, Field(pattern=MODEL)]
SbatchOption = Annotated[str, Field(pattern=OPTION)]


def _minutes(text: str) -> int | None:
    """Whole minutes of a ``DURATION``; None for other text and for less than one."""
    if not (match := re.fullmatch(DURATION, text)):
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return days * DAY + hours * 60 + minutes or None


class Cluster(Strict):
    """A site's Slurm. Omitted keys leave the choice to Slurm."""

    partition: Word | None = Field(None, description="of the jobs with a GPU")
    cpu_partition: Word | None = Field(None, description="of the jobs without one")
    account: Word | None = Field(None, description="that is charged")
    qos: Word | None = Field(None, description="of all jobs")
    constraint: Word | None = Field(None, description="of the jobs with a GPU, such as a100&nvlink")
    gpu_request: Literal["gpus", "gres", "none"] = Field(
        "gpus", description="--gpus=N, --gres=gpu:N, or nothing where the partition implies it"
    )
    gpu_model: Model | None = Field(None, description="as Slurm spells it: --gpus=a100:N")
    extra: tuple[SbatchOption, ...] = Field(
        (), strict=False, description="further options of sbatch, one an item"
    )
    time_limit: Annotated[str, Field(pattern=DURATION)] | None = Field(
        None, description="of a job; left out, the partition's. A longer cell takes several jobs"
    )
    warning_s: PositiveInt = Field(
        180, description="before the limit, for a last step and its checkpoint"
    )
    gpu: str = Field("A100", min_length=1, description="the GPU that times are planned for")
    margin: Positive = Field(2.0, description="of the wall time over the planned one")

    def limit(self, *, ask: bool = False) -> int:
        """Minutes that a job may take: ``time_limit``, or with ``ask`` Slurm's limit, or a day."""
        if self.time_limit is not None:
            return _minutes(self.time_limit) or DAY
        return (_partition_limit(self.partition) if ask else None) or DAY

    def runtime(self, planned_s: float | None, limit: int) -> int:
        """Minutes of wall time to request for a cell that should take ``planned_s`` seconds."""
        if planned_s is None:
            return limit
        # 10 minutes to start Python and Snakemake and to load the images
        wanted = 10 + (planned_s * self.margin + self.warning_s) / 60
        return min(limit, math.ceil(wanted))

    def options(self, gpus: int, *, signal: bool = False) -> dict[str, Any]:
        """A job's resources for Snakemake's Slurm plugin.

        With ``signal``, Slurm sends USR1 to the job before its time limit.
        """
        extra = [*self.extra, *([f"--signal=USR1@{self.warning_s}"] if signal else [])]
        options: dict[str, Any] = {
            "slurm_partition": self.partition if gpus else self.cpu_partition,
            "slurm_account": self.account,
            "qos": self.qos,
            "constraint": self.constraint if gpus else None,
            # the plugin passes it to a shell unchanged
            "slurm_extra": shlex.join(extra) or None,
        }
        if gpus and self.gpu_request == "gpus":
            options |= {"gpu": gpus, "gpu_model": self.gpu_model}
        elif gpus and self.gpu_request == "gres":
            model = f":{self.gpu_model}" if self.gpu_model else ""
            options["gres"] = f"gpu{model}:{gpus}"
        return {name: value for name, value in options.items() if value is not None}


def cluster() -> Cluster:
    """The settings in ``$ATTNGRID_CLUSTER`` or ``config/cluster.yaml``; ConfigError if wrong."""
    file = settings_file("ATTNGRID_CLUSTER", shipped("config/cluster.yaml"))
    return read_settings(Cluster, file)


def _partition_limit(partition: str | None) -> int | None:
    """The shortest limit in minutes of the named partitions, or of the default partition."""
    command = ["sinfo", "--noheader", "--format=%P|%l"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # Slurm is not installed
    limits = dict(line.strip().rsplit("|", 1) for line in done.stdout.splitlines())
    wanted = partition.split(",") if partition else [name for name in limits if name[-1:] == "*"]
    # a star marks the default partition
    found = [_minutes(limits.get(name) or limits.get(f"{name}*", "")) for name in wanted]
    return min(filter(None, found), default=None)


def require_plain(values: Iterable[object]) -> None:
    """Raise a ConfigError if a part of a job's command has a character that a shell would expand.

    Snakemake quotes them for the job, but the plugin then passes the command to sbatch in double
    quotes, inside which these characters keep their meaning.
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
