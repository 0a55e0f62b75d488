# For a study with `tuning:`, the trials of every model and the choice of its best hyperparameters.
# A trial with a record is not trained again, and an existing choice is not made again.


rule trial:
    input:
        train_input,
    output:
        train_output(f"{study.results}/trials/{{cell}}.json"),
    log:
        f"logs/{study.study}/{{cell}}.log",
    priority: train_priority
    group:
        train_group if submitted and workflow.is_main_process else None
    conda:
        "../envs/attngrid.yaml"
    threads: train_threads
    resources:
        **train_resources,
    params:
        study=str(study.snapshot),
    shell:
        "trap '' TERM USR1; attngrid train {params.study:q} {wildcards.cell:q} 2>&1 | tee {log:q} >&2"


rule tune:
    input:
        tune_input,
    output:
        study.results / "tuning/{choice}.json",
    log:
        f"logs/{study.study}/tune.{{choice}}.log",
    priority: 1
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    params:
        study=str(study.snapshot),
    shell:
        "attngrid tune {params.study:q} {wildcards.choice:q} 2>&1 | tee {log:q} >&2"
