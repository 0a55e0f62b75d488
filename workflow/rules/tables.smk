# Each table of the study as LaTeX, Markdown and CSV; workflow/tables/ describes them.


table_files = [file for name in study.descriptions for file in study.table_files(name)]


rule tables:
    input:
        train_records,
        rules.collect.output,
        table_files,
    localrule: True


# One process writes all, because Python takes longer to start than to write a table.
rule set_tables:
    input:
        study=study.snapshot,
        frames=rules.collect.output,
        complexity=shipped("results/complexity.csv"),
        descriptions=list(study.descriptions.values()),
        templates=[
            shipped(f"workflow/templates/table.{kind}.j2") for kind in ("tex", "md")
        ],
    output:
        [
            file
            for name in study.descriptions
            for file in captioned(study.table_files(name), name)
        ],
    log:
        f"logs/{study.study}/tables.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    shell:
        "attngrid table {input.study:q} 2>&1 | tee {log:q} >&2"
