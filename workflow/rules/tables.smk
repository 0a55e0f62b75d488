# Each description in workflow/tables/ that the study names, as LaTeX, Markdown and CSV.


tables = [file for name in study.descriptions for file in study.table_files(name)]


rule tables:
    input:
        trained,
        rules.collect.output,
        tables,
    localrule: True


rule table:
    input:
        study=study.snapshot,
        frames=rules.collect.output,
        complexity=shipped("results/complexity.csv"),
        description=lambda wildcards: study.descriptions[wildcards.table],
        templates=[
            shipped(f"workflow/templates/table.{kind}.j2") for kind in ("tex", "md")
        ],
    output:
        [f"tables/{study.study}.{{table}}.{kind}" for kind in ("tex", "md")],
        report(
            f"tables/{study.study}.{{table}}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        f"logs/{study.study}/table.{{table}}.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    shell:
        "attngrid table {input.study:q} {wildcards.table:q} 2>&1 | tee {log:q} >&2"
