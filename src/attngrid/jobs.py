"""What Snakemake does for each job of a large grid and nobody needs.

Snakemake promises none of the names that this takes hold of: where one is gone, ten thousand cells
take longer to plan, and that is all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from inspect import signature
from typing import Any


def quick(function: Callable[..., Any]) -> Callable[..., Any]:
    """Say a function's parameters for good.

    Snakemake asks for those of each function more than once a job, and to find them out takes
    longer than what it calls most of them for.
    """
    with suppress(ImportError):
        from snakemake.common import overwrite_function_params

        overwrite_function_params(function, signature(function).parameters)
    return function


def plan_quickly(output: Any) -> None:
    """Leave out what takes much of a large grid's dry run.

    Args:
        output: Snakemake's ``OutputSettings``. Where a dry run is to print no jobs, and no plugin
            to log them, what would be said of them is put together for the first of each rule
            only: that finds a wrong shell command, which is the same for all.
    """
    with suppress(ImportError, AttributeError):
        from snakemake.resources import Resource

        quick(Resource.evaluate)  # through which each resource of each job is asked for
    with suppress(ImportError, AttributeError):
        from snakemake.jobs import Job
        from snakemake.settings.enums import Quietness

        if Quietness.RULES in (output.quiet or ()) and not output.log_handler_settings:
            Job.log_info = _of_each_rule(Job.log_info)


def _of_each_rule(log_info: Callable[..., None]) -> Callable[..., None]:
    """``Job.log_info``, in a dry run for the first job of each rule only."""
    seen = set()

    def first_only(job: Any, *args: Any, **how: Any) -> None:
        if job.rule not in seen or not job.dag.workflow.dryrun:
            seen.add(job.rule)
            log_info(job, *args, **how)

    return first_only
