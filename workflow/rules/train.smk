# One training per cell. A cell is trained again when its id changes, which contains the digest of
# its configuration, or when its record is removed. No file's time causes a training.


rule records:
    input:
        train_records,
    localrule: True


# At TERM and USR1 the training writes its last checkpoint while the shell waits for it.
rule train:
    input:
        train_input,
    output:
        train_output(f"{study.results}/records/{{cell}}.json"),
    log:
        f"logs/{study.study}/{{cell}}.log",
    priority: train_priority
    group:
        train_group if submitted and workflow.is_main_process else None
    conda:
        "../envs/attngrid.yaml"
    threads: train_threads
    resources:
        **train_resources,
    params:
        study=str(study.snapshot),
    shell:
        "trap '' TERM USR1; attngrid train {params.study:q} {wildcards.cell:q} 2>&1 | tee {log:q} >&2"
