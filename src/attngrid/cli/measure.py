"""Commands that measure models: counts, cost and attention maps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attngrid.cli.arguments import EVIDENCE, STEPS, STUDY, argument, command
from attngrid.core.errors import AttngridError

if TYPE_CHECKING:
    from attngrid.study.schema import Study

log = logging.getLogger(__name__)


@command(
    STEPS,
    argument("models", help="a study, or config/complexity.yaml"),
    argument("--output", type=Path, required=True, help="the CSV to write"),
)
def complexity(models: str, output: Path) -> None:
    """Count the parameters and multiply-accumulates of models."""
    from attngrid.core.files import read_yaml, write_atomically
    from attngrid.core.validation import validate
    from attngrid.measure.complexity import models_of_grid, models_of_study, table
    from attngrid.study.counted import CountedGrid
    from attngrid.study.schema import Study, find_study_file

    file = find_study_file(models)
    content = read_yaml(file)
    if isinstance(content, dict) and "study" in content:
        # a user's module that cannot be counted can still be trained
        text = table(models_of_study(validate(Study, content, file)), strict=False)
    else:
        text = table(models_of_grid(validate(CountedGrid, content, file)), strict=True)
    write_atomically(output, text)


@command(
    EVIDENCE,
    argument("grid", type=Path, metavar="GRID", help="config/cost.yaml"),
    argument("--backbones", nargs="+", metavar="NAME", help="only these"),
    argument("--attentions", nargs="+", metavar="NAME", help="only these"),
    argument("--datasets", nargs="+", metavar="NAME", help="only these"),
    argument("--threads", type=int, help="CPU threads; by default one per core"),
    argument("--again", action="store_true", help="measure again what has been measured"),
    argument("--render-only", action="store_true", help="measure nothing"),
)
def cost(
    grid: Path, threads: int | None, again: bool, render_only: bool, **only: list[str] | None
) -> Iterator[Path]:
    """Measure time and memory of models on this machine; render those of all machines."""
    from attngrid.core.files import read_yaml
    from attngrid.core.validation import validate
    from attngrid.render.cost import write_costs
    from attngrid.study.counted import CostGrid

    given = {name: found for name, found in only.items() if found is not None}
    content = read_yaml(grid)
    content = content | given if isinstance(content, dict) else content
    models = validate(CostGrid, content, grid)
    failed = []
    if not render_only:
        from attngrid.core.hardware import processors
        from attngrid.measure.cost import measure_all

        failed = measure_all(models, threads or processors(), again=again)
    yield from write_costs()
    if failed:
        raise AttngridError("\n".join([f"{len(failed)} models were not measured:", *failed]))


@command(STEPS, STUDY)
def visualize(study: Study) -> None:
    """Make the attention maps of the networks whose weights were kept."""
    from attngrid.measure.maps_file import Maps, read_maps, with_weights, write_maps
    from attngrid.study.resources import require_captum

    maps = read_maps(study.maps) if study.maps.is_file() else Maps({}, {})
    if with_weights(study):
        require_captum(study)
        from attngrid.measure.attention_maps import visualize as with_maps

        maps = with_maps(study, maps)  # maps of cells without weights stay unchanged
    elif not maps.cells:
        log.info("%s: no maps, because no cell has kept its weights", study.maps)
    write_maps(study.maps, maps)
