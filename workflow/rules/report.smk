# One self-contained page with the study's tables, figures and configuration.


rule report:
    input:
        study=study.snapshot,
        tables=rules.tables.input,
        figures=rules.figures.input,
        template=shipped("workflow/templates/report.html.j2"),
    output:
        study.results / "report.html",
    log:
        f"logs/{study.study}/report.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    shell:
        "attngrid report {input.study:q} 2>&1 | tee {log:q} >&2"
