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
# so that nothing about images, their folder or their report can ask for it, or for them, again. An
# input that cannot be had says so to Snakemake: a pattern of 10,000 names takes minutes to match.
def is_there(file):
    there = workflow.is_main_process and file.is_file()
    return [f"{file}, which is there and not made again"] if there else []


rule train:
    input:
        lambda wildcards: is_there(study.training(wildcards.cell).record)
        or study.needs(wildcards.cell),
    output:
        study.results / "records/{cell}.json",
    log:
        f"logs/{study.study}/{{cell}}.log",
    conda:
        "../envs/attngrid.yaml"
    threads: lambda wildcards: study.cores(wildcards.cell)
    resources:
        **cluster().options(study.gpus, signal=True),
        mem_mb=lambda wildcards, attempt: study.memory_mb(wildcards.cell) * attempt,
        runtime=lambda wildcards: planner.runtime(wildcards.cell),
        attempt=lambda wildcards, attempt: attempt,
    params:
        study=str(study.snapshot),
    # the training writes a last checkpoint at these signals; what is around it waits
    shell:
        "trap '' TERM USR1; attngrid train {params.study:q} {wildcards.cell:q} --record {output:q} --attempt {resources.attempt} 2>&1 | tee {log:q} >&2"
