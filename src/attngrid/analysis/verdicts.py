"""Judge each claim by the records; ``docs/evidence.md`` explains verdicts and columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from attngrid.analysis import comparison
from attngrid.analysis.claims import (
    UNITS,
    Better,
    Claim,
    Claims,
    Cost,
    Family,
    Measured,
    Tested,
    Value,
)
from attngrid.analysis.comparison import BySeed, Comparison
from attngrid.analysis.deviations import Deviation, known_deviation
from attngrid.analysis.frames import ERRORS, by_trained_attention, read_counts
from attngrid.analysis.reference import Model
from attngrid.core.errors import RecordError
from attngrid.core.files import write_atomically
from attngrid.models.registry import trained_attention
from attngrid.study.paths import results_folder

Row = dict[str, Any]  # a row of claims.csv
# The columns of claims.csv; those of a comparison that have its fields' names.
COLUMNS = (
    *("claim", "source", "where", "statement", "kind", "backbone", "attentions", "metric"),
    *("published", "published_gain", "family", "smallest_effect", "scope", "condition", "n"),
    *("mean", "gain", "gain_low", "gain_high", "bootstrap_low", "bootstrap_high", "test", "p"),
    *("p_holm", "p_equivalent", "p_equivalent_holm", "deviation", "deviation_source", "se_seeds"),
    *("se_images", "correlation", "seeds_needed", "seeds_show", "counted", "verdict", "records"),
)
FOUND = ("gain", "bootstrap_low", "bootstrap_high", "test", "p", "p_equivalent", "correlation")


def judge_claims(
    claims: Claims,
    found: Sequence[Claim],
    cells: pd.DataFrame,
    *,
    reduced: bool = False,
) -> pd.DataFrame:
    """One row per claim and condition, in the order of the claims.

    Args:
        claims: the families' levels and smallest effects.
        found: the claims, as ``load_claims`` returns them.
        cells: the cells of one study or of many.
        reduced: also judge claims on other data or options, with the scope ``reduced setting``.
    """
    measured = by_trained_attention(cells)
    counts = cache(read_counts)
    rows: list[Row] = []
    for claim in found:
        if isinstance(claim.block, Measured):
            rows += _judge(claim, claims, measured, reduced=reduced) or [_row(claim, claims)]
        else:
            rows.append(_check_counts(claim, claims, counts))
    sizes = Counter(claim.block.family for claim in found if isinstance(claim.block, Tested))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["family"] is not None and row["test"] is not None:
            groups.setdefault((row["family"], row["condition"]), []).append(row)
    for (name, _), group in groups.items():
        _correct_family(group, claims.families[name], sizes[name])
    return pd.DataFrame(rows).astype({"seeds_needed": "Int64"})


def write_claims(file: Path, results: pd.DataFrame) -> None:
    """Write ``claims.csv`` atomically, with ten digits, which are the same on every machine."""
    write_atomically(file, results.to_csv(index=False, float_format="%.10g"))


def _row(
    claim: Claim,
    claims: Claims,
    verdict: str = "not run",
    found: Comparison | None = None,
    **more: Any,
) -> Row:
    """A line of ``claims.csv``; ``more`` are further columns."""
    block = claim.block
    row: Row = dict.fromkeys(COLUMNS)
    row |= {
        "claim": claim.id,
        "source": block.source,
        "where": block.where,
        "statement": block.statement,
        "kind": block.kind,
        "backbone": claim.backbone,
        "attentions": " ".join(claim.attentions),
        "metric": claim.metric,
        "published": " ".join("--" if text is None else text for text in claim.published),
        "published_gain": claim.published_gain,
        "family": block.family if isinstance(block, Tested) else None,
        "smallest_effect": margin(claim, claims),
        "scope": "stated",
        "verdict": verdict,
    }
    row |= dict.fromkeys(("condition", "mean", "counted", "records"), "")
    if found is not None:
        row |= {name: getattr(found, name) for name in FOUND}
        row |= {"n": " ".join(map(str, found.n)), "gain_low": found.low, "gain_high": found.high}
        row |= {"se_seeds": found.standard_error}
    return row | more


def margin(claim: Claim, claims: Claims) -> float | None:
    """The smallest effect that matters; None for a claim that is not tested."""
    block = claim.block
    return claims.families[block.family].smallest_effect if isinstance(block, Tested) else None


# Counts must be equal in every printed digit.


def _check_counts(
    claim: Claim, claims: Claims, counts_at: Callable[..., dict[Model, dict[Any, Any]]]
) -> Row:
    assert not isinstance(claim.block, Measured)
    rows = counts_at(**claim.block.counted_at.model_dump())
    models = [(claim.backbone, name) for name in claim.attentions]
    if not all(model in rows for model in models):
        return _row(claim, claims)
    counts = [int(rows[model][claim.metric]) for model in models]
    if isinstance(claim.block, Cost):
        ours, than = counts
        counted = f"{ours} {than}"
        # exact arithmetic: the share itself is allowed, one count more is not
        holds = ours - than <= Decimal(str(claim.block.at_most)) * than
    else:
        printed = claim.published[0] or ""
        counted = as_printed(counts[0], UNITS[claim.metric], printed)
        holds = counted == printed
    return _row(claim, claims, "confirmed" if holds else "contradicted", counted=counted)


def as_printed(count: int, unit: float, printed: str) -> str:
    """A count with the decimals of a printed figure, half rounded up."""
    digits = Decimal(1).scaleb(Decimal(printed).as_tuple().exponent)  # type: ignore[arg-type]
    return str((Decimal(count) / Decimal(int(unit))).quantize(digits, ROUND_HALF_UP))


# Errors are tested over seeds.


def _judge(claim: Claim, claims: Claims, measured: pd.DataFrame, *, reduced: bool) -> list[Row]:
    """Judge the claim in each condition where all of its cells were measured."""
    block = claim.block
    assert isinstance(block, Measured)
    names = [trained_attention(name) for name in claim.attentions]
    of_claim = (measured["backbone"] == claim.backbone) & measured["attention"].isin(names)
    rows: list[Row] = []
    if set(names) - set(measured.loc[of_claim, "attention"]):
        return rows  # most claims, where only some cells were trained
    for condition, group in measured[of_claim].groupby("condition", sort=False):
        # one training may be in several studies, or under two names
        group = group.drop_duplicates(["id", *ERRORS])
        first = group.iloc[0]
        stated = block.is_about(first["dataset"], first["recipe"], first["options"])
        by_name = [group[group["attention"] == name] for name in names]
        if any(own.empty for own in by_name) or not (stated or reduced):
            continue
        if isinstance(block, Value) and not stated:
            continue  # a printed figure says nothing about other data
        own = measured[measured["condition"] == condition]
        known = known_deviation(own, claim.error, first["dataset"], claim.backbone, first["recipe"])
        row = {
            "mean": " ".join(f"{_values(sample, claim).mean():.4f}" for sample in by_name),
            "scope": "stated" if stated else "reduced setting",
            "condition": str(condition),
            "records": " ".join(sorted(group["id"])),
        }
        rows.append(_judge_samples(claim, claims, by_name, known, row))
    return rows


def _judge_samples(
    claim: Claim,
    claims: Claims,
    samples: Sequence[pd.DataFrame],
    known: Deviation | None,
    row: Row,
) -> Row:
    """The row of a claim in a condition; ``_correct_family`` sets the verdict of a test."""
    signed = [_by_seed(sample, claim) for sample in samples]
    if known is not None:
        row |= {"deviation": known.std, "deviation_source": known.source}
    if isinstance(claim.block, Value):
        if known is None:
            return _row(claim, claims, "underpowered", n=str(len(signed[0])), **row)
        sign = 1.0 if claim.higher_is_better else -1.0
        printed = sign * float(claim.published[0] or "")
        found = comparison.compare_to_figure(signed[0], printed, known.std, known.df)
        assert found.low is not None
        assert found.high is not None
        verdict = "inside" if found.low <= 0 <= found.high else "outside"
        return _row(claim, claims, verdict, found, **row)
    smallest = margin(claim, claims) or 0.0
    if isinstance(claim.block, Better):
        found = comparison.compare(signed[0], signed[1], smallest, test=claim.block.test)
    else:
        steps = [comparison.compare(a, b, smallest) for a, b in pairwise(signed)]
        found = comparison.in_order(steps)
    if found.std is not None:
        row |= {"deviation": found.std, "deviation_source": "the claim's trainings"}
    row |= {"se_images": _se_images(samples, claim.error)}
    return _row(claim, claims, "underpowered", found, **row)


def _values(rows: pd.DataFrame, claim: Claim) -> pd.Series[float]:
    return 100 - rows[claim.error] if claim.higher_is_better else rows[claim.error]


def _by_seed(rows: pd.DataFrame, claim: Claim) -> BySeed:
    """The values of a model by seed, larger is better."""
    twice = rows[rows["seed"].duplicated(keep=False)].sort_values("seed", kind="stable")
    if not twice.empty:
        one, other = (twice["study"] + "/records/" + twice["id"] + ".json").iloc[:2]
        raise RecordError(
            f"{results_folder()}: found {one} and {other}, two different records of one model and "
            f"seed in one condition, {twice['condition'].iloc[0]}; needs one. Move one away; "
            "`attngrid import` copies the other into its study"
        )
    values = _values(rows, claim) if claim.higher_is_better else -_values(rows, claim)
    return dict(zip(rows["seed"], values, strict=True))


def _se_images(samples: Sequence[pd.DataFrame], error: str) -> float | None:
    """Standard error of the gain due to the sampling of the test images, in points.

    It is binomial, as if each network had its own images. The networks share their images, so the
    true standard error is at most this one; a record does not say which images were wrong.
    """
    if len(samples) > 2:
        return None  # each step of an order has a separate one
    shares = [sample[error].mean() / 100 for sample in samples]
    images = [int(sample["test_images"].iloc[0]) for sample in samples]
    variances = [share * (1 - share) / n for share, n in zip(shares, images, strict=True)]
    return 100 * math.sqrt(sum(variances))


def _correct_family(rows: Sequence[Row], family: Family, size: int) -> None:
    """Correct the tested claims of a family in one condition, and set their verdicts."""
    # claims without records count, too, so that later records do not change the levels
    missing = [None] * (size - len(rows))
    for name in ("p", "p_equivalent"):
        corrected = comparison.holm([*(row[name] for row in rows), *missing])
        for row, value in zip(rows, corrected, strict=False):
            row[f"{name}_holm"] = value
    for row in rows:
        row["verdict"] = _verdict(row, family.alpha)
        if row["verdict"] == "underpowered":
            row["seeds_needed"], row["seeds_show"] = _seeds_needed(row, family, size)


def _verdict(row: Mapping[str, Any], alpha: float) -> str:
    """Equivalence comes first: a significant but too small difference does not matter."""
    if row["p_equivalent_holm"] is not None and row["p_equivalent_holm"] < alpha:
        return "equivalent"
    if row["p_holm"] is not None and row["p_holm"] < alpha:
        return "confirmed" if row["gain"] > 0 else "contradicted"
    return "underpowered"


def _seeds_needed(
    row: Mapping[str, Any], family: Family, size: int
) -> tuple[int | None, str | None]:
    """The seeds per cell that would give a verdict, if more than there are now, and what they show.

    They find a gain of so many points (``+1.4``), or show that the models differ by less (``<1``).
    """
    if row["deviation"] is None:
        return None, None
    test = "paired" if row["test"] == "paired" else "welch"
    gain, smallest = row["published_gain"], family.smallest_effect
    find, rule_out = seeds_to_decide(gain, row["deviation"], family, size, test)
    present = min(int(n) for n in row["n"].split())
    if find is not None and find > present:
        return find, f"+{gain if gain is not None and gain > 0 else smallest:g}"
    if rule_out is not None and rule_out > present:
        return rule_out, f"<{smallest:g}"
    return None, None


def seeds_to_decide(
    gain: float | None, std: float, family: Family, size: int, test: str = "welch"
) -> list[int | None]:
    """The seeds per cell that find the printed gain, and those that show equivalence.

    Both have the family's power at the level of Holm's first step. Without a printed gain above 0
    the first is for the smallest effect that matters. None: more than ten thousand.
    """
    level, smallest = family.alpha / size, family.smallest_effect
    effect = gain if gain is not None and gain > 0 else smallest
    return [
        comparison.seeds_to_find(effect, std, level, family.power, test),
        comparison.seeds_to_rule_out(smallest, std, level, family.power, test),
    ]
