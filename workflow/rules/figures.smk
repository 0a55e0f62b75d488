# Each figure that the study names, as PDF and PNG.


figures = [file for name in study.figures for file in study.figure_files(name)]


rule figures:
    input:
        trained,
        rules.collect.output,
        figures,
    localrule: True


# all in one process, as the tables
rule draw_figures:
    input:
        study=study.snapshot,
        frames=rules.collect.output,
        maps=rules.maps.output if "maps" in study.figures else [],
    output:
        [file for file in figures if file.suffix != ".png"],
        [
            report(
                file,
                caption="../report/figure.rst",
                category="Figures",
                labels={"figure": name},
            )
            for name in study.figures
            for file in study.figure_files(name)
            if file.suffix == ".png"
        ],
    log:
        f"logs/{study.study}/figures.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    shell:
        "attngrid figure {input.study:q} 2>&1 | tee {log:q} >&2"
