# Each figure of the study as PDF and PNG.


figure_files = [file for name in study.figures for file in study.figure_files(name)]
# A separate rule draws the attention maps, so that the other figures need not wait for them.
maps_figures = [name for name in study.figures if name == "maps"]
other_figures = [name for name in study.figures if name != "maps"]


rule figures:
    input:
        train_records,
        rules.collect.output,
        figure_files,
    localrule: True


# One process draws all, because Python takes longer to start than to draw.
rule draw_figures:
    input:
        study=study.snapshot,
        frames=rules.collect.output,
    output:
        [f for name in other_figures for f in captioned(study.figure_files(name), name)],
    log:
        f"logs/{study.study}/figures.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    params:
        names=other_figures,
    shell:
        "attngrid figure {input.study:q} {params.names:q} 2>&1 | tee {log:q} >&2"


use rule draw_figures as draw_maps with:
    input:
        study=study.snapshot,
        frames=rules.collect.output,
        maps=rules.maps.output,
    output:
        [f for name in maps_figures for f in captioned(study.figure_files(name), name)],
    log:
        f"logs/{study.study}/maps_figure.log",
    params:
        names=maps_figures,
