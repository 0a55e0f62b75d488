# One training a cell. The study's file is `ancient`: a cell is trained again when its id, which
# carries the digest of its configuration, is another one, and not when a file's time is.


rule train:
    input:
        ancient(study.file),
    output:
        study.results / "records/{cell}.json",
    log:
        f"logs/{study.study}/{{cell}}.log",
    conda:
        "../envs/attngrid.yaml"
    threads: study.compute.threads
    resources:
        mem_mb=4000,
        runtime="12h",
    shell:
        "attngrid train {input:q} {wildcards.cell:q} --record {output:q} 2>&1 | tee {log:q} >&2"
