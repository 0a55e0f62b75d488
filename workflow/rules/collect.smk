# Records to tidy frames: one row a cell, one a cell and epoch, one a model over its seeds.


rule collect:
    input:
        study=study.snapshot,
        complexity=study.results / "complexity.csv",
        records=trained,
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
        mark=study.collected,
    log:
        f"logs/{study.study}/collect.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    shell:
        "attngrid collect {input.study:q} 2>&1 | tee {log:q} >&2"


# What there is now: the frames, tables, figures and report of whatever records exist. It
# declares no outputs, since they are those of the rules above and below, and so always runs.
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
