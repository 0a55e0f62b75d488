# Where a study has `tuning:`, every model's trials and the setting that is chosen by them. What has a
# record is not tried again, what has been chosen is not chosen again, and a tuned cell that has a
# record asks for neither.


rule trial:
    input:
        lambda wildcards: study.needs(wildcards.cell),
    output:
        study.results / "trials/{cell}.json",
    log:
        f"logs/{study.study}/{{cell}}.log",
    wildcard_constraints:
        cell="|".join(
            re.escape(c.id) for c in study.trials.values() if not c.record.is_file()
        )
        or "-",
    conda:
        "../envs/attngrid.yaml"
    threads: lambda wildcards: study.cores(wildcards.cell)
    resources:
        mem_mb=4000 * study.compute.gpus,
        runtime="12h",
        gpu=study.gpus,
    params:
        study=str(study.snapshot),
    shell:
        "attngrid train {params.study:q} {wildcards.cell:q} --record {output:q} 2>&1 | tee {log:q} >&2"


rule tune:
    input:
        lambda wildcards: [t.record for t in study.choices[wildcards.choice].trials],
    output:
        study.results / "tuning/{choice}.json",
    log:
        f"logs/{study.study}/tune.{{choice}}.log",
    wildcard_constraints:
        choice="|".join(
            re.escape(name)
            for name, cell in study.choices.items()
            if not cell.choice.is_file()
        )
        or "-",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    params:
        study=str(study.snapshot),
    shell:
        "attngrid tune {params.study:q} {wildcards.choice:q} 2>&1 | tee {log:q} >&2"
