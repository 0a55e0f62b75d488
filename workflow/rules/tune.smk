# For a study with `tuning:`, the trials of every model and the choice of its best hyperparameters.
# A trial with a record is not trained again, and an existing choice is not made again.


use rule train as trial with:
    output:
        train_output(f"{study.results}/trials/{{cell}}.json"),


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
