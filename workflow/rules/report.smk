# One self-contained page with the study's verdicts, charts, cells, tables and figures.


rule report:
    input:
        study=study.snapshot,
        frames=rules.collect.output,
        tables=table_files,
        figures=figure_files,
        claims=rules.claims.output,
        templates=[
            shipped(f"workflow/templates/report.{kind}")
            for kind in ("html.j2", "js", "charts.yaml")
        ],
    output:
        report(
            study.results / "report.html",
            caption="../report/page.rst",
            category="Page",
            labels={"page": study.study},
        ),
    log:
        f"logs/{study.study}/report.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    shell:
        "attngrid report {input.study:q} 2>&1 | tee {log:q} >&2"
