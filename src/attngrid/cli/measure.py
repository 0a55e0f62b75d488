"""What models cost, and what their attention looks at."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from attngrid.cli.arguments import EVIDENCE, STEPS, Commands, read_study
from attngrid.core.errors import AttngridError

if TYPE_CHECKING:
    from attngrid.study.schema import Study

log = logging.getLogger(__name__)


def complexity(arguments: argparse.Namespace) -> None:
    """Count the parameters and multiply-accumulates of models."""
    from attngrid.core.files import read_yaml, write_atomically
    from attngrid.core.validation import validate
    from attngrid.measure.complexity import models_of_grid, models_of_study, table
    from attngrid.study.counted import CountedGrid
    from attngrid.study.find import find_study_file
    from attngrid.study.schema import Study

    file = find_study_file(arguments.models)
    content = read_yaml(file)
    if isinstance(content, dict) and "study" in content:
        # a user's module that cannot be counted is trained all the same
        text = table(models_of_study(validate(Study, content, file)), strict=False)
    else:
        text = table(models_of_grid(validate(CountedGrid, content, file)), strict=True)
    write_atomically(arguments.output, text)


def cost(arguments: argparse.Namespace) -> None:
    """Measure time and memory of models on this machine; render all machines' measurements."""
    from attngrid.core.files import read_yaml
    from attngrid.core.validation import validate
    from attngrid.study.counted import CostGrid

    names = ("backbones", "attentions", "datasets")
    given = {name: found for name in names if (found := getattr(arguments, name)) is not None}
    content = read_yaml(arguments.grid)
    content = content | given if isinstance(content, dict) else content
    grid = validate(CostGrid, content, arguments.grid)
    failed = []
    if not arguments.render_only:
        from attngrid.core.hardware import processors
        from attngrid.measure.cost import measure_all

        failed = measure_all(grid, arguments.threads or processors(), again=arguments.again)
    from attngrid.render.cost import write_costs

    for file in write_costs():
        print(file)
    if failed:
        raise AttngridError("\n".join([f"{len(failed)} models were not measured:", *failed]))


def visualize(arguments: argparse.Namespace) -> None:
    """Make the attention maps of the networks whose weights were kept."""
    update_maps(read_study(arguments))


def update_maps(study: Study) -> None:
    """Write a study's attention maps; those of cells without weights stay as they are."""
    from attngrid.measure.maps_file import Maps, read_maps, with_weights, write_maps
    from attngrid.study.resources import require_captum

    maps = read_maps(study.maps) if study.maps.is_file() else Maps({}, {})
    if with_weights(study):
        require_captum(study)
        from attngrid.measure.attention_maps import visualize

        maps = visualize(study, maps)
    elif not maps.cells:
        log.info("%s: without maps, since no cell has kept its weights", study.maps)
    write_maps(study.maps, maps)


def register(commands: Commands) -> None:
    """Add these commands."""
    command = commands.add(STEPS, complexity)
    command.add_argument("models", help="a study, or config/complexity.yaml")
    command.add_argument("--output", type=Path, required=True, help="the CSV to write")
    command = commands.add(EVIDENCE, cost)
    command.add_argument("grid", type=Path, metavar="GRID", help="config/cost.yaml")
    for name in ("backbones", "attentions", "datasets"):
        command.add_argument(f"--{name}", nargs="+", metavar="NAME", help="only these")
    command.add_argument("--threads", type=int, help="of the CPU; without it one a core")
    command.add_argument("--again", action="store_true", help="also what is measured already")
    command.add_argument("--render-only", action="store_true", help="measure nothing")
    commands.add(STEPS, visualize, study=True)
