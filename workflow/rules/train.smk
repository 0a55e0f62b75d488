# One training a cell. A cell is trained again when its id, which carries the digest of what it
# computes, is another one, or when its record is removed; not when a file or its time is. Where a
# record of another configuration has the cell's names, it is trained once that one is retired.


# What is trained is asked for by name, and so is collect's mark: Snakemake does not look behind a
# table that exists, and `current` may have made it without them.
rule records:
    input:
        [c.record for c in study.trainings.values() if c.id not in superseded],
    localrule: True


# Only what has no record is this rule's. A record that exists is a source file to all that follows,
# so that nothing about images, their folder or their report can ask for it, or for them, again.
rule train:
    input:
        lambda wildcards: study.needs(wildcards.cell),
    output:
        study.results / "records/{cell}.json",
    log:
        f"logs/{study.study}/{{cell}}.log",
    wildcard_constraints:
        cell="|".join(
            re.escape(c.id) for c in study.trainings.values() if not c.record.is_file()
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
