# For a study with `tuning:`, the trials of every model and the choice of its best hyperparameters.
# A trial with a record is not repeated, and a choice that exists is not made again.


def tune_input(wildcards):
    cell = study.choices[wildcards.choice]
    return [] if cell.choice.is_file() else [trial.record for trial in cell.trials]


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
    shell:
        "trap '' TERM USR1; attngrid train {study.snapshot:q} {wildcards.cell:q} 2>&1 | tee {log:q} >&2"


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
    shell:
        "attngrid tune {study.snapshot:q} {wildcards.choice:q} 2>&1 | tee {log:q} >&2"
