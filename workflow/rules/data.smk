# Each dataset is checked, unpacked or fetched once, before the first training that reads it. The
# report is beside the images, so that studies with one data folder share it.


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
