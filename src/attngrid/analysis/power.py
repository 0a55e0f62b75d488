"""Which claims a study's grid can decide, with how many seeds, and what that costs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd

from attngrid.analysis.claims import (
    Claim,
    Claims,
    Measured,
    Order,
    Tested,
    load_study_claims,
    untrained,
)
from attngrid.analysis.deviations import Deviation, known_deviation
from attngrid.analysis.frames import all_cells, by_trained_attention
from attngrid.analysis.verdicts import seeds_to_decide
from attngrid.models.registry import trained_attention
from attngrid.study.cell import Cell
from attngrid.study.plan import Planner, number
from attngrid.study.schema import Study

Seeds = dict[tuple[str, str], set[int]]  # of a condition's models: backbone, trained attention


@dataclass(frozen=True)
class Decision:
    """What it takes to decide a claim in a condition."""

    claim: Claim
    recipe: str
    deviation: Deviation | None
    seeds: int | None  # of each of its models; None if unknown or above ten thousand
    hours: float  # of that many seeds, on a GPU
    tier: int | None  # the first one that decides it


def decisions(study: Study, planner: Planner) -> list[Decision]:
    """What it takes to decide each claim whose models are in the grid, in any tier."""
    claims, found = load_study_claims(study)
    sizes = Counter(claim.block.family for claim in found if isinstance(claim.block, Tested))
    cells = by_trained_attention(all_cells())
    models: dict[str, dict[tuple[str, str], Cell]] = defaultdict(dict)
    for cell in study.cells_to(study.tiers[-1]):
        if cell.tuning is None:
            models[cell.condition].setdefault((cell.backbone, cell.trained_attention), cell)
    tiers = {tier: _seeds(study.cells_to(tier)) for tier in study.tiers}
    decided = []
    for claim, (condition, own) in product(found, models.items()):
        block = claim.block
        names = [(claim.backbone, trained_attention(name)) for name in claim.attentions]
        if not (isinstance(block, Measured) and all(name in own for name in names)):
            continue
        first = own[names[0]]
        dataset, recipe = first.dataset, first.recipe_name
        if not block.is_about(dataset, recipe, first.options_text):
            continue
        rows = cells[cells["condition"] == condition]
        known = known_deviation(rows, claim.error, dataset, claim.backbone, None)
        if not isinstance(block, Tested):
            seeds: int | None = 1
        else:
            size = sizes[block.family]
            seeds = None if known is None else _needed(claim, claims, known.std, size)
        # a printed run needs a deviation of its own recipe, published or of two seeds of a model
        of_recipe = known_deviation(rows, claim.error, dataset, claim.backbone, recipe)
        enough = (
            tier
            for tier, seeds_of in tiers.items()
            if seeds and min(len(seeds_of[condition][name]) for name in names) >= seeds
            if of_recipe or max(map(len, seeds_of[condition].values())) > 1
        )
        hours = (seeds or math.nan) * sum(planner.estimate(own[name]).hours for name in names)
        decided.append(Decision(claim, recipe, known, seeds, hours, next(enough, None)))
    return decided


def _seeds(cells: Sequence[Cell]) -> dict[str, Seeds]:
    """The seeds of each condition's models."""
    seeds: dict[str, Seeds] = defaultdict(lambda: defaultdict(set))
    for cell in cells:
        seeds[cell.condition][cell.backbone, cell.trained_attention].add(cell.seed)
    return seeds


def _needed(claim: Claim, claims: Claims, std: float, size: int) -> int | None:
    """The seeds of each model that find the printed gain with the family's power."""
    assert isinstance(claim.block, Tested)
    family = claims.families[claim.block.family]
    if isinstance(claim.block, Order):  # every step must be found (Bonferroni)
        power = 1 - (1 - family.power) / (len(claim.attentions) - 1)
        family = family.model_copy(update={"power": power})
    return seeds_to_decide(claim.published_gain, std, family, size)[0]


def power(study: Study, planner: Planner) -> Iterator[str]:
    """The lines of ``attngrid plan`` on claims: seeds, hours, and what each tier decides."""
    decided = decisions(study, planner)
    missing = list(untrained(study, load_study_claims(study)[1]))
    if decided or missing:
        yield ""
    yield from missing
    if not decided:
        return
    rows: dict[tuple[str, str], list[Decision]] = defaultdict(list)
    for one in decided:
        rows[_row(one), one.recipe].append(one)
    yield "what it takes to decide each claim: seeds of each model, at the power of its family"
    lines = [_line(*name, group) for name, group in rows.items()]
    table = pd.DataFrame(lines).to_string(index=False, na_rep="--", float_format=number)
    yield from table.splitlines()
    known = {one.deviation.source: one.deviation.std for one in decided if one.deviation}
    yield from (f"σ = {std:.2f}, over seeds: {source}" for source, std in known.items())
    if any(one.deviation is None for one in decided):
        yield "no σ: none is known; two seeds of any model of the condition measure one"
    last = study.tier or study.tiers[-1]
    for tier in study.tiers:
        cells = {cell.id: cell for cell in study.cells_to(tier)}.values()
        count = sum(one.tier is not None and one.tier <= tier for one in decided)
        hours = sum(planner.estimate(cell).hours for cell in cells)
        yield (
            f"tier {tier}{', of this grid' if tier == last else ''}: {len(cells)} cells, "
            f"{'unknown' if math.isnan(hours) else number(hours)} hours, can decide {count} of "
            f"{len(decided)} claims"
        )


def _row(decision: Decision) -> str:
    """The row of a claim; the printed figures of a table share one, as each needs one run."""
    claim = decision.claim
    tested = isinstance(claim.block, Tested)
    return claim.id if tested else f"{claim.block.id}/*/{claim.metric}"


def _line(row: str, recipe: str, group: Sequence[Decision]) -> dict[str, object]:
    stds = sorted({one.deviation.std for one in group if one.deviation})
    gain, seeds = group[0].claim.published_gain, group[0].seeds
    return {
        "claim": row + (f" ({len(group)} figures)" if len(group) > 1 else ""),
        "recipe": recipe,
        "gain": "" if gain is None else f"{gain:+.2f}",
        "σ": " to ".join(f"{std:.2f}" for std in dict.fromkeys([*stds[:1], *stds[-1:]])) or "--",
        "seeds": "--" if seeds is None else str(seeds),
        "hours": sum(one.hours for one in group),
        "decided": ", ".join(
            dict.fromkeys("no" if one.tier is None else f"in tier {one.tier}" for one in group)
        ),
    }
