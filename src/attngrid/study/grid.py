"""From the configuration to cells: what is trained, in which order, and what tuning adds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attngrid.core.errors import UnknownNameError
from attngrid.study.cell import Cell, cell_names

if TYPE_CHECKING:
    from attngrid.study.schema import Study


class Grid:
    """The cells of a study.

    Attributes:
        cells: all cells in the order of the configuration, each once.
        trainings: the cells to train, by id; cells that compute the same share one.
        choices: for each choice of the best hyperparameters, by name, one of the cells that use it.
        trials: the tuning trials of all choices, by id.
    """

    def __init__(self, study: Study) -> None:
        self.study = study.study
        self.cells = tuple(dict.fromkeys(_expand(study)))
        self.trainings: dict[str, Cell] = {}
        for cell in self.cells:
            self.trainings.setdefault(cell.id, cell)
        self.choices: dict[str, Cell] = {}
        for cell in self.trainings.values():
            if cell.choice is not None:
                self.choices.setdefault(cell.choice.stem, cell)
        self.trials = {trial.id: trial for cell in self.choices.values() for trial in cell.trials}
        self.all = {**self.trainings, **self.trials}
        self._places = self._order()

    def _order(self) -> dict[str, int]:
        """Each id's place in the order of the configuration; trials come before their cells."""
        places: dict[str, int] = {}
        for cell in self.trainings.values():
            if cell.choice is not None and self.choices[cell.choice.stem] is cell:
                for trial in cell.trials:
                    places.setdefault(trial.id, len(places))
            places[cell.id] = len(places)
        return places

    def priority(self, cell_id: str) -> float:
        """Between 0 and 1; falls in the order of the configuration."""
        return 1 - (self._places[cell_id] + 1) / (len(self._places) + 1)

    def training(self, cell_id: str) -> Cell:
        """The cell or trial of an id."""
        if cell_id not in self.all:
            raise UnknownNameError(f"cell of study {self.study}", cell_id, self.all)
        return self.all[cell_id]


def _expand(study: Study) -> Iterator[Cell]:
    """All cells of all blocks. A tuned recipe gives its cells a second time, with tuning."""
    for block in study.grid:
        for recipe in block.recipes:
            cells = [
                Cell(
                    study=study.study,
                    dataset=block.dataset,
                    backbone=backbone,
                    attention=attention,
                    recipe_name=recipe,
                    recipe=study.recipe(recipe),
                    seed=seed,
                    options=block.options,
                    precision=study.compute.precision,
                    threads=study.compute.threads,
                    micro_batches=study.compute.micro_batches,
                )
                for backbone in block.backbones
                for seed in block.seeds
                for attention in block.attentions
            ]
            yield from cells
            if study.tuning is not None and study.tuning.covers(recipe):
                yield from (cell.tuned(study.tuning) for cell in cells)


def superseded_records(trainings: dict[str, Cell], results: Path) -> dict[str, Path]:
    """Cells without a record whose names have a record of another configuration, with that one.

    Args:
        trainings: the cells to train, by id.
        results: the folder of the study.
    """
    known = {file.stem: file for file in sorted((results / "records").glob("*.json"))}
    others = {cell_names(id): file for id, file in known.items() if id not in trainings}
    return {
        id: others[cell_names(id)]
        for id in trainings
        if id not in known and cell_names(id) in others
    }
