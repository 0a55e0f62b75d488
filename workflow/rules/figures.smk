# Each figure that the study names, as PDF and PNG.


figures = [file for name in study.figures for file in study.figure_files(name)]
# the maps are waited for by no other
mapped = [name for name in study.figures if name == "maps"]
drawn = [name for name in study.figures if name != "maps"]


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
    output:
        [file for name in drawn for file in rendered(study.figure_files(name), name)],
    log:
        f"logs/{study.study}/figures.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    params:
        names=drawn,
    shell:
        "attngrid figure {input.study:q} {params.names:q} 2>&1 | tee {log:q} >&2"


rule draw_maps:
    input:
        study=study.snapshot,
        frames=rules.collect.output,
        maps=rules.maps.output,
    output:
        [file for name in mapped for file in rendered(study.figure_files(name), name)],
    log:
        f"logs/{study.study}/maps_figure.log",
    localrule: True
    conda:
        "../envs/attngrid.yaml"
    params:
        names=mapped,
    shell:
        "attngrid figure {input.study:q} {params.names:q} 2>&1 | tee {log:q} >&2"
