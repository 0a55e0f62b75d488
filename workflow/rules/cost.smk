# What attention takes on the machine at hand: time, memory, and the tables and the figure of both. No
# study asks for it. It declares no outputs, since another machine adds its rows to the same files,
# and so always runs; what this one has measured is not measured again. It takes the whole machine,
# so that nothing runs beside what is timed.


rule cost:
    input:
        grid=shipped("config/cost.yaml"),
        complexity=shipped("results/complexity.csv"),
    log:
        "logs/cost.log",
    conda:
        "../envs/attngrid.yaml"
    threads: workflow.cores or 1
    resources:
        **cluster().options(study.gpus),
        mem_mb=16000,
        runtime="12h",
    shell:
        "attngrid cost {input.grid:q} --threads {threads} 2>&1 | tee {log:q} >&2"
