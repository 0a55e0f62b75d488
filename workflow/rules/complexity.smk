# Parameters and multiply-accumulates, counted without training.


rule complexity:
    input:
        shipped("results/complexity.csv"),
        study.results / "complexity.csv",
    localrule: True


# The models of the papers' tables at full size. A study in another folder reads the checkout's file.
rule count_papers:
    input:
        models="config/complexity.yaml",
    output:
        "results/complexity.csv",
    log:
        "logs/complexity.log",
    priority: 1
    conda:
        "../envs/attngrid.yaml"
    threads: 1
    resources:
        **cluster().options(gpus=0),
        mem_mb=2600,
    shell:
        "attngrid complexity {input.models:q} --output {output:q} 2>&1 | tee {log:q} >&2"


# The models that this study trains, at their own size.
use rule count_papers as count_study with:
    input:
        models=study.snapshot,
        user_files=study.user_files,
    output:
        study.results / "complexity.csv",
    log:
        f"logs/{study.study}/complexity.log",
