# `snakemake --cores all` runs the demo; `--configfile config/cifar100.yaml` runs another study.
# Configuration → cells → records → tidy frames → tables and figures.
# Each file in workflow/rules/ is one stage; the logic is in src/attngrid/.
from attngrid.cli.workflow import after_run, before_jobs, check_yaml, open_study
from snakemake.utils import min_version

min_version("9.10")


# The demo, but only without --configfile, because Snakemake would merge both files.
if not workflow.configfiles:
    check_yaml("config/config.yaml")

    configfile: "config/config.yaml"


study, planner = open_study(workflow, config)


report: "workflow/report/workflow.rst"


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
        train_records,
        rules.collect.output,
        table_files,
        rules.claims.output,
        figure_files,
        rules.report.output,


onstart:
    before_jobs(workflow, study)


onsuccess:
    after_run(study)


# A failed cell does not stop the others, and the existing records are rendered.
onerror:
    after_run(study, failed=True)
