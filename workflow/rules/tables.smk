# The descriptions in workflow/tables/ that the study names, as LaTeX, Markdown and CSV.


tables = [file for name in study.descriptions for file in study.table_files(name)]


rule tables:
    input:
        trained,
        rules.collect.output,
        tables,
    localrule: True


# all in one process: to start one takes longer than to set a table
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
            for file in rendered(study.table_files(name), name)
        ],
    log:
        f"logs/{study.study}/tables.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    shell:
        "attngrid table {input.study:q} 2>&1 | tee {log:q} >&2"
