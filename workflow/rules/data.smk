# Each dataset is downloaded, unpacked and checked once, before the first training that reads it. The
# report is in the data folder, so that studies with the same data folder share it.


# A local rule, because the nodes of a cluster often have no network.
rule prepare:
    output:
        f"{study.data_folder}/.attngrid/{{dataset}}.json",
    log:
        f"logs/{study.study}/prepare.{{dataset}}.log",
    priority: 1
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    params:
        study=str(study.snapshot),
        dataset=lambda wildcards: prepared[wildcards.dataset],
    shell:
        "attngrid prepare {params.study:q} {params.dataset:q} 2>&1 | tee {log:q} >&2"
