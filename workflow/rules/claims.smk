# The verdicts on the papers' claims: what this study's conditions say, and, of all studies in the
# results' folder, what answers the claims themselves.


rule claims:
    input:
        study=study.snapshot,
        frames=rules.collect.output,
        complexity=shipped("results/complexity.csv"),
        claims=shipped("reference/claims.yaml"),
        templates=[
            shipped(f"workflow/templates/table.{kind}.j2") for kind in ("tex", "md")
        ],
    output:
        study.results / "claims.csv",
        study.table_files("claims"),
        # theirs, too, are other studies' verdicts: updated, not removed
        update(study.results.parent / "claims.csv"),
        update(
            [
                f"tables/{name}.{kind}"
                for name in ("claims", "claims_summary")
                for kind in ("tex", "md", "csv")
            ]
        ),
    log:
        f"logs/{study.study}/claims.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    shell:
        "attngrid claims {input.study:q} 2>&1 | tee {log:q} >&2"
