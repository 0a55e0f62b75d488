# From records to tidy frames: one row per cell, per cell and epoch, and per model over its seeds.
from attngrid.records.collected import collected


rule collect:
    input:
        study=study.snapshot,
        complexity=study.results / "complexity.csv",
        records=train_records,
    output:
        cells=study.results / "cells.csv",
        epochs=study.results / "epochs.csv",
        summary=study.results / "summary.csv",
        trials=[study.results / "trials.csv"] if study.tuning else [],
        configuration=report(
            study.file,
            caption="../report/configuration.rst",
            category="Configuration",
            labels={"configuration": "resolved"},
        ),
        mark=collected(study),
    log:
        f"logs/{study.study}/collect.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    shell:
        "attngrid collect {input.study:q} 2>&1 | tee {log:q} >&2"


# The frames, tables, figures and report of the records that exist now. It declares no outputs,
# because other rules declare them, and therefore always runs.
rule current:
    input:
        study=study.snapshot,
    log:
        f"logs/{study.study}/current.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    shell:
        "attngrid current {input.study:q} 2>&1 | tee {log:q} >&2"
