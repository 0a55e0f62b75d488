# Where a study has `tuning:`, every model's trials and the setting that is chosen by them. What has a
# record is not tried again, what has been chosen is not chosen again, and a tuned cell that has a
# record asks for neither.


rule trial:
    input:
        needs,
    output:
        stays(f"{study.results}/trials/{{cell}}.json"),
    log:
        f"logs/{study.study}/{{cell}}.log",
    priority: turn
    group:
        group
    conda:
        "../envs/attngrid.yaml"
    threads: of_cells(study.cores, study.trials)
    resources:
        **asked(study.trials),
    shell:
        training


rule tune:
    input:
        lambda wildcards: is_there(study.choices[wildcards.choice].choice)
        or [trial.record for trial in study.choices[wildcards.choice].trials],
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
