# One training a cell, without an input: a cell is trained again when its id, which carries the
# digest of what it computes, is another one, and not when a file or its name is.


# What is trained is asked for by name, and so is collect's mark: Snakemake does not look behind a
# table that exists, and `current` may have made it without them.
rule records:
    input:
        [cell.record for cell in study.trainings.values()],
    localrule: True


rule train:
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
    params:
        study=str(study.snapshot),
    shell:
        "attngrid train {params.study:q} {wildcards.cell:q} --record {output:q} 2>&1 | tee {log:q} >&2"
