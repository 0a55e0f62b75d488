# One training per cell. A cell is trained again if its record is removed, or if its configuration
# changes: then its id, which contains the digest of the configuration, changes, too. The times of
# files never cause a training.


rule records:
    input:
        train_records,
    localrule: True


# After TERM or USR1 the shell waits until the training has written its last checkpoint. A full disk
# under the log does not make a finished training a failed one.
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
        "trap '' TERM USR1; attngrid train {params.study:q} {wildcards.cell:q} 2>&1 | (tee {log:q} >&2 || true)"
