# Time and memory of the attention modules on this machine, with their tables and figure. Only
# `snakemake cost` runs it. It declares no outputs, because other machines add rows to the same files,
# and therefore always runs; it skips what this machine has measured. It requests all cores, so that
# no other job disturbs the times.


rule cost:
    input:
        grid=shipped("config/cost.yaml"),
        complexity=shipped("results/complexity.csv"),
    log:
        "logs/cost.log",
    conda:
        "../envs/attngrid.yaml"
    threads: cost_threads
    resources:
        **cluster().options(study.gpus),
        mem_mb=16000,
        runtime="12h",
    shell:
        "attngrid cost {input.grid:q} --threads {threads} 2>&1 | tee {log:q} >&2"
