# Each figure that the study names, as PDF and PNG.


figures = [file for name in study.figures for file in study.figure_files(name)]


rule figures:
    input:
        trained,
        rules.collect.output,
        figures,
    localrule: True


rule figure:
    input:
        study=study.snapshot,
        frames=rules.collect.output,
        maps=lambda wildcards: rules.maps.output if wildcards.figure == "maps" else [],
    output:
        f"figures/{study.study}.{{figure}}.pdf",
        report(
            f"figures/{study.study}.{{figure}}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"logs/{study.study}/figure.{{figure}}.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    shell:
        "attngrid figure {input.study:q} {wildcards.figure:q} 2>&1 | tee {log:q} >&2"
