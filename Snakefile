# The grid, at a glance: configuration → cells → records → tidy frames → tables and figures.
# `snakemake --cores all` runs the demo; `--configfile config/cifar100.yaml` another study.
import gc
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from attngrid.study.cluster import cluster, require_plain
from attngrid.training.signals import forward_signals
from attngrid.study.schema import Study
from attngrid.core.validation import name_sources, validate
from attngrid.training.max_runtime import deadline
from attngrid.core.errors import AttngridError
from attngrid.analysis.claims import load_claims
from attngrid.core.files import set_home, shipped
from attngrid.study.plan import Planner, summary
from attngrid.render.description import check_descriptions
from attngrid.analysis.progress import has_failed, used
from attngrid.records.status import RUN_BEGAN
from attngrid.records.environment import now

min_version("9.0")
# A large grid's jobs are many objects, and none of them is garbage; until the first one starts.
if workflow.is_main_process:
    gc.disable()


# The commands look here for what a study in a folder of its own does not have.
set_home(workflow.current_basedir)


# A study named on the command line, or in a Snakefile that includes this one, stands alone:
# Snakemake would merge it over the demo.
if not workflow.configfiles:

    configfile: "config/config.yaml"


try:
    source = name_sources(workflow.configfiles, workflow.config_settings.config)
    study = validate(Study, config, source)
    check_descriptions(study, source)
    load_claims()
    cluster()  # read and checked
    deadline()
except AttngridError as error:
    raise WorkflowError(f"{error}") from None
study.write_snapshot()
planner = Planner(
    study,
    lambda: cluster().limit(ask=workflow.non_local_exec and workflow.is_main_process),
)
superseded = study.superseded
if not workflow.is_main_process:
    forward_signals()
else:
    study.drop_outdated_mark()
    os.environ[RUN_BEGAN] = now()  # for the trainings
    print(summary(planner), file=sys.stderr)
    if superseded:
        print(
            f"study {study.study}: not trained, since there are records of their names and another "
            f"configuration: {', '.join(superseded)}. `attngrid archive` puts those aside",
            file=sys.stderr,
        )


# of `snakemake --cores 1 --report report.html`
report: "workflow/report/workflow.rst"


wildcard_constraints:
    cell=r"[^/]+",
    choice=r"[^/]+",
    dataset="|".join(map(re.escape, study.prepared)) or "-",


include: "workflow/rules/common.smk"
include: "workflow/rules/complexity.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/tune.smk"
include: "workflow/rules/collect.smk"
include: "workflow/rules/maps.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/cost.smk"


rule all:
    default_target: True
    input:
        rules.complexity.input,
        trained,
        rules.collect.output,
        tables,
        rules.claims.output,
        figures,
        rules.report.output,


# Nothing is started where a cell could not be trained or its maps not be made.
onstart:
    gc.freeze()
    gc.enable()
    jobs = list(workflow.dag.needrun_jobs())
    needed = {job.rule.name for job in jobs}
    study.require_runnable(
        [job.wildcards.cell for job in jobs if job.rule.name in ("trial", "train")]
    )
    if workflow.non_local_exec:
        options = [f"{k}={v}" for k, v in workflow.config_settings.config.items()]
        folders = [workflow.basedir, Path.cwd(), study.results, study.data_folder]
        require_plain(
            [
                *folders,
                *workflow.configfiles,
                *study.user_files,
                sys.executable,
                *options,
            ]
        )
    # conda's environments have what their rules need
    if "maps" in needed and not workflow.deployment_settings.deployment_method:
        study.require_captum()


onsuccess:
    print(used(study), file=sys.stderr)


# A failed cell keeps the rest from nothing: what was measured is rendered all the same. A run with
# a deadline trains; where its records go, they are rendered.
onerror:
    if deadline() is None:
        shell("attngrid current --ended {study.snapshot:q}")
    print(used(study), file=sys.stderr)
