# Functions and values that several rules use, named after the Snakemake keyword that they feed.
import os
import re

from attngrid.analysis.progress import has_failed
from attngrid.core.files import is_checkout, shipped
from attngrid.study import resources
from attngrid.study.cluster import cluster

prepared = resources.prepared(study)


# `--sdm apptainer` runs each job in this image; without this flag it has no effect.
if image := os.environ.get("ATTNGRID_IMAGE"):

    container: image


wildcard_constraints:
    cell=r"[^/]+",
    choice=r"[^/]+",
    dataset="|".join(map(re.escape, prepared)) or "-",


# True if jobs are submitted to a cluster, also in the process that runs such a job.
submitted = workflow.nodes is not None or not workflow.is_main_process

# The records of the study. A cell with a record of another configuration is not trained until
# `attngrid archive` has moved that record. Targets name the records, because Snakemake does not
# look at the inputs of an existing table.
superseded = study.superseded
records = [c.record for c in study.trainings.values() if c.id not in superseded]


def train_records(wildcards):
    return records


# A cell with a record has no input, so no changed file can make Snakemake train it again.
def train_input(wildcards):
    if study.training(wildcards.cell).record.is_file():
        return []
    return resources.train_needs(study, wildcards.cell)


# An existing choice of hyperparameters has no input either.
def tune_input(wildcards):
    cell = study.choices[wildcards.choice]
    return [] if cell.choice.is_file() else [trial.record for trial in cell.trials]


def train_threads(wildcards):
    return resources.cores(study, wildcards.cell)


def train_memory(wildcards, attempt):
    return resources.memory_mb(study, wildcards.cell) * attempt


def train_runtime(wildcards):
    return planner.runtime(wildcards.cell)


# Cells start in the order of the configuration. In a submitted job of several cells, those that
# failed before come last, because a failure ends the job.
def train_priority(wildcards):
    failed = not workflow.is_main_process and has_failed(study.training(wildcards.cell))
    return study.priority(wildcards.cell) - failed


# On a cluster, small cells share a job.
def train_group(wildcards):
    cells_per_job = workflow.group_settings.group_components.get("small", 1)
    return planner.group(wildcards.cell, cells_per_job) if cells_per_job > 1 else None


if submitted:
    train_resources = {
        **cluster().options(study.gpus, signal=True),
        "mem_mb": train_memory,
        "runtime": train_runtime,
        "in_turn": 1,
    }
else:
    train_resources = {"mem_mb": train_memory, "gpu": study.gpus}


# A job that is submitted again may find records of its first attempt. Snakemake would remove them;
# `update` keeps them, and `attngrid train` skips their cells.
def train_output(record):
    return update(record) if submitted else record


# A function, because only a run that starts jobs has a number of cores; `--unlock` has none.
def cost_threads(wildcards):
    return workflow.cores or 1


# Captions for Snakemake's own report, which shows a table's CSV and a figure's PNG.
def captioned(files, name):
    for file in files:
        if kind := {".csv": "table", ".png": "figure"}.get(file.suffix):
            caption = f"../report/{kind}.rst"
            file = report(
                file, caption=caption, category=f"{kind.title()}s", labels={kind: name}
            )
        yield file
