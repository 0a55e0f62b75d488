# One training a cell. A cell is trained again when its id, which carries the digest of what it
# computes, is another one, or when its record is removed; not when a file or its time is. Where a
# record of another configuration has the cell's names, it is trained once that one is archived.
# Cells start in the order of the configuration, by their priorities; what is counted comes first.


rule records:
    input:
        trained,
    localrule: True


rule train:
    input:
        needs,
    output:
        stays(f"{study.results}/records/{{cell}}.json"),
    log:
        f"logs/{study.study}/{{cell}}.log",
    priority: turn
    group:
        group
    conda:
        "../envs/attngrid.yaml"
    threads: of_cells(study.cores, study.trainings)
    resources:
        **asked(study.trainings),
    shell:
        training
