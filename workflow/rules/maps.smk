# Grad-CAM and each module's own map, of the networks whose weights were kept. The weights are no
# input: records alone decide what is trained, and a clone has none.


# updated, not removed: what it has of cells whose weights are gone stays
rule maps:
    input:
        study=study.snapshot,
        records=trained,
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
