# Grad-CAM and each module's own map, for the networks with saved weights. The weights are not
# declared as input, because a clone has records without weights.


# `update` keeps the maps of cells whose weights were removed.
rule maps:
    input:
        study=study.snapshot,
        records=train_records,
    output:
        update(study.maps),
    log:
        f"logs/{study.study}/maps.log",
    conda:
        "../envs/attngrid.yaml"
    threads: study.compute.threads
    resources:
        **cluster().options(study.gpus),
        mem_mb=4600,
    shell:
        "attngrid visualize {input.study:q} 2>&1 | tee {log:q} >&2"
