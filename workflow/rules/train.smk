# One training a cell. The configuration is `ancient`: a cell is trained again when its id, which
# carries the digest of what it computes, is another one, and not when a file is newer.


# What is trained is asked for by name: a frame that `current` made without it does not hide it.
rule records:
    input:
        [cell.record for cell in study.trainings.values()],
    localrule: True


rule train:
    input:
        ancient(study.snapshot),
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
