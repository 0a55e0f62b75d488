# What rules share.
import inspect
import shlex
from contextlib import suppress


# What Snakemake does for each job of a large grid and nobody needs. It promises none of the names
# that this takes hold of: where one is gone, 10,000 cells take longer to plan, and that is all.
#
# It asks for the parameters of each function more than once a job, and to find them out takes longer
# than what it calls them for.
def quick(function):
    with suppress(ImportError):
        from snakemake.common import overwrite_function_params

        overwrite_function_params(function, inspect.signature(function).parameters)
    return function


# In a dry run that is to print no jobs it puts together what it would print of each. The first of
# each rule is enough to find a wrong shell command, which is the same for all.
def first_of_each_rule(log_info):
    seen = set()

    def first_only(job, *args, **how):
        needless = job.dag.workflow.dryrun and job.rule in seen
        if not needless:
            seen.add(job.rule)
            log_info(job, *args, **how)

    return first_only


with suppress(ImportError, AttributeError):
    from snakemake.resources import Resource

    quick(Resource.evaluate)  # through which it asks for each resource of each job
with suppress(ImportError, AttributeError):
    from snakemake.jobs import Job
    from snakemake.settings.enums import Quietness

    said = workflow.output_settings
    if Quietness.RULES in (said.quiet or ()) and not said.log_handler_settings:
        Job.log_info = first_of_each_rule(Job.log_info)


# What is trained is asked for by name, and so is collect's mark: Snakemake does not look behind a
# table that exists, and `current` may have made it without them. By a function: Snakemake then reads
# the list once for each job that is made, not for each rule.
wanted = [c.record for c in study.trainings.values() if c.id not in superseded]


def trained(wildcards):
    return wanted


# Only what has no record is this rule's. A record that exists is a source file to all that follows,
# so that nothing about images, their folder or their report can ask for it, or for them, again. An
# input that cannot be had says so to Snakemake: a pattern of 10,000 names takes minutes to match.
def is_there(file):
    there = workflow.is_main_process and file.is_file()
    return [f"{file}, which is there and not made again"] if there else []


@quick
def needs(wildcards):
    return is_there(study.training(wildcards.cell).record) or study.needs(
        wildcards.cell
    )


# In a job, and where jobs are submitted: Snakemake has no executor yet while it reads this, but the
# number of jobs that may be submitted at once. Elsewhere what is the same for all cells is no
# function, with which it takes its time.
submitted = workflow.nodes is not None or not workflow.is_main_process


def of_cells(value, cells):
    values = {value(cell) for cell in cells}
    if len(values) == 1:
        return values.pop()
    return quick(lambda wildcards: value(wildcards.cell))


def asked(cells):
    """The resources of a training."""
    if not submitted:
        return {"mem_mb": of_cells(study.memory_mb, cells), "gpu": study.gpus}
    return {
        **cluster().options(study.gpus, signal=True),
        "in_turn": 1,
        "mem_mb": quick(
            lambda wildcards, attempt: study.memory_mb(wildcards.cell) * attempt
        ),
        "runtime": quick(lambda wildcards: planner.runtime(wildcards.cell)),
    }


# Inside a job, once a cell fails no other has its turn: what has failed before comes last.
@quick
def turn(wildcards):
    failed = not workflow.is_main_process and has_failed(study.training(wildcards.cell))
    return study.priority(wildcards.cell) - failed


# Small cells share a job, in turn; which do is said where they are submitted.
@quick
def share(wildcards):
    together = workflow.group_settings.group_components.get("small", 1)
    return planner.group(wildcards.cell, together) if together > 1 else None


group = share if submitted and workflow.is_main_process else None
# A job that is submitted again finds the records that its first try or another job has written;
# Snakemake would remove them before. `attngrid train` leaves them as they are.
stays = update if submitted else str


# A training writes a last checkpoint at these signals; what is around it waits. What is the same for
# all cells is written out here, and not for each.
snapshot = shlex.quote(str(study.snapshot)).replace("{", "{{").replace("}", "}}")
training = f"trap '' TERM USR1; attngrid train {snapshot} {{wildcards.cell:q}} 2>&1 | tee {{log:q}} >&2"


# Snakemake's own report shows a table by its CSV and a figure by its PNG.
def rendered(files, name):
    shown = {".csv": "table", ".png": "figure"}
    for file in files:
        if kind := shown.get(file.suffix):
            said = {"caption": f"../report/{kind}.rst", "labels": {kind: name}}
            file = report(file, category=f"{kind.title()}s", **said)
        yield file
