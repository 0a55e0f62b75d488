# The verdicts on the study's own claims; without any, on the papers' claims from this study alone, and in
# a checkout also from all studies in the results folder.
results = study.results.parent
overall = [
    *[results / f"{name}.csv" for name in ("claims", "selection", "audit")],
    *[f"tables/claims.{kind}" for kind in ("tex", "md", "csv")],
    *["tables/claims_summary.md", "tables/audit.tex", "tables/audit.md"],
    "tables/numbers.tex",
]


rule claims:
    input:
        study=study.snapshot,
        frames=rules.collect.output,
        complexity=shipped("results/complexity.csv"),
        claims=study.claims or shipped("reference/claims.yaml"),
        templates=[
            shipped(f"workflow/templates/{name}.j2")
            for name in ("table.tex", "table.md", "audit.md")
        ],
        reference=sorted(shipped("reference").glob("*.csv")),
    output:
        report(
            study.results / "claims.csv",
            caption="../report/claims.rst",
            category="Claims",
            labels={"claims": "verdicts"},
        ),
        study.table_files("claims"),
        # files of all studies: Snakemake must not remove them before the job
        update(overall) if is_checkout() and not study.claims else [],
    log:
        f"logs/{study.study}/claims.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    shell:
        "attngrid claims {input.study:q} 2>&1 | tee {log:q} >&2"
