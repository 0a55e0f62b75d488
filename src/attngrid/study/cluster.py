"""A site's Slurm settings, ``config/cluster.yaml``, and the options of a job."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field

from attngrid.core.errors import ConfigError
from attngrid.core.files import shipped
from attngrid.core.types import Count, Positive, Strict
from attngrid.core.validation import PATTERNS, read_settings, settings_file

DAY = 1440
SINFO_PAUSES_S = (0, 5, 15)  # before each try; slurmctld may be starting again
# Slurm's days-hours:minutes:seconds; without days, the hours are optional too.
DURATION = r"^(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)$"

WORD, MODEL, OPTION = r"^[\w\[(][ -~]*$", r"^[A-Za-z0-9_.]+$", r"^--[ -~]+$"
PATTERNS |= {
    DURATION: "[days-]hours:minutes:seconds, such as 1-00:00:00",
    WORD: "ASCII characters, starting with a letter, digit, _, [ or (",
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
    """A site's Slurm settings. For omitted keys Slurm uses its own defaults."""

    partition: Word | None = Field(None, description="partition of jobs with a GPU")
    cpu_partition: Word | None = Field(None, description="partition of jobs without a GPU")
    account: Word | None = Field(None, description="account to charge")
    qos: Word | None = Field(None, description="quality of service of all jobs")
    constraint: Word | None = Field(None, description="features of GPU nodes, such as a100&nvlink")
    gpu_request: Literal["gpus", "gres", "none"] = Field(
        "gpus", description="--gpus=N, --gres=gpu:N, or nothing where the partition implies it"
    )
    gpu_model: Model | None = Field(None, description="name of the GPU in Slurm: --gpus=a100:N")
    extra: tuple[SbatchOption, ...] = Field(
        (), strict=False, description="further options of sbatch, one in each item"
    )
    time_limit: Annotated[str, Field(pattern=DURATION)] | None = Field(
        None, description="of a job; default: the partition's. A longer cell takes several jobs"
    )
    warning_s: Count = Field(
        180, description="seconds before the limit, to finish a step and save a checkpoint"
    )
    gpu: str = Field("A100", min_length=1, description="the GPU for which times are planned")
    margin: Positive = Field(2.0, description="ratio of requested wall time to planned time")

    def limit(self, *, ask: bool = False) -> int:
        """A job's limit in minutes: ``time_limit``, else with ``ask`` Slurm's limit, else a day.

        Raises:
            ConfigError: sinfo does not answer.
        """
        if self.time_limit is not None:
            return _minutes(self.time_limit) or DAY
        return (_partition_limit(self.partition) if ask else None) or DAY

    def runtime(self, planned_s: float | None, limit: int) -> int:
        """Minutes of wall time to request for a cell that is planned to take ``planned_s``."""
        if planned_s is None:
            return limit
        # 10 minutes for starting Python and Snakemake and for loading the images
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
    limits = dict(line.strip().rsplit("|", 1) for line in _sinfo().splitlines())
    wanted = partition.split(",") if partition else [name for name in limits if name[-1:] == "*"]
    # a star marks the default partition
    found = [_minutes(limits.get(name) or limits.get(f"{name}*", "")) for name in wanted]
    return min(filter(None, found), default=None)


@cache
def _sinfo() -> str:
    """What sinfo prints of the partitions and their limits; empty if Slurm is not installed.

    Raises:
        ConfigError: it does not answer, also when asked again.
    """
    command, reason = ["sinfo", "--noheader", "--format=%P|%l"], ""
    for pause_s in SINFO_PAUSES_S:
        time.sleep(pause_s)
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=30, check=True
            ).stdout
        except FileNotFoundError:
            return ""
        except (OSError, subprocess.SubprocessError) as error:
            reason = " ".join(str(getattr(error, "stderr", "") or error).split())
    raise ConfigError(
        f"sinfo, which says the time limit of a job, does not answer: {reason}; run again later, "
        "or set time_limit in config/cluster.yaml"
    )


def require_plain(values: Iterable[object]) -> None:
    """Raise a ConfigError if an argument of a job's command has a character that shells expand.

    Snakemake quotes the arguments, but the plugin then passes the command to sbatch in double
    quotes, and a shell expands these characters in double quotes.
    """
    for value in map(str, values):
        if found := set('$`"\\\n') & set(value):
            raise ConfigError(
                f"on Slurm: found {value!r}, in which a shell would expand {min(found)!r}; use a "
                'name or folder without $, `, ", \\ and line breaks'
            )


def slurm_job() -> str | None:
    """The id of the Slurm job in which this process runs."""
    return os.environ.get("SLURM_JOB_ID")
