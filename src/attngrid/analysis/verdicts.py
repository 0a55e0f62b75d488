"""Judge each claim by the records; ``docs/evidence.md`` explains verdicts and columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from attngrid.analysis import comparison
from attngrid.analysis.claims import UNITS, Better, Claim, Claims, Cost, Family, Tested, Value
from attngrid.analysis.comparison import BySeed, Comparison
from attngrid.analysis.frames import COMPLEXITY, read_counts
from attngrid.analysis.reference import Model
from attngrid.core.files import write_atomically
from attngrid.models.registry import trained_attention

Row = dict[str, Any]  # a row of claims.csv


def judge_claims(
    claims: Claims,
    found: Sequence[Claim],
    cells: pd.DataFrame,
    complexity: Path = COMPLEXITY,
    *,
    reduced: bool = False,
) -> pd.DataFrame:
    """One row per claim and condition, in the order of the claims.

    Args:
        claims: the families' levels and smallest effects.
        found: the claims, as ``load_claims`` returns them.
        cells: the cells of one study or of many.
        complexity: the counts at the papers' full size.
        reduced: also judge claims on other data or options than they state. Such rows have the
            scope ``reduced setting``; they say nothing about the claim itself.
    """
    measured = cells[cells["state"] == "measured"].drop_duplicates(["id", "attention"])
    # attentions that compute the same function share their records
    measured = measured.assign(trained=measured["attention"].map(trained_attention))
    counts = cache(partial(read_counts, complexity))
    rows: list[Row] = []
    for claim in found:
        if isinstance(claim.block, Tested):
            rows += _test(claim, claims, measured, reduced=reduced) or [_row(claim, claims)]
        else:
            rows.append(_check_counts(claim, claims, counts))
    sizes = Counter(claim.block.family for claim in found if isinstance(claim.block, Tested))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["test"] is not None:
            groups.setdefault((row["family"], row["condition"]), []).append(row)
    for (name, _), group in groups.items():
        _correct_family(group, claims.families[name], sizes[name])
    return pd.DataFrame(rows).drop(columns="pooled_std").astype({"seeds_needed": "Int64"})


def write_claims(file: Path, results: pd.DataFrame) -> None:
    """Write ``claims.csv`` atomically, with ten digits, which are the same on every machine."""
    write_atomically(file, results.to_csv(index=False, float_format="%.10g"))


def _row(
    claim: Claim,
    claims: Claims,
    verdict: str = "not run",
    found: Comparison | None = None,
    *,
    means: Iterable[float] = (),
    counted: Iterable[str] = (),
    **more: Any,
) -> Row:
    """A line of ``claims.csv``; ``more`` are further columns."""
    block = claim.block
    row = {
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
        "smallest_effect": _margin(claim, claims),
        "scope": "stated",
        "condition": "",
        "n": " ".join(map(str, found.n)) if found else None,
        "mean": " ".join(f"{mean:.4f}" for mean in means),
        "gain": found.gain if found else None,
        "gain_low": found.low if found else None,
        "gain_high": found.high if found else None,
        "bootstrap_low": found.bootstrap_low if found else None,
        "bootstrap_high": found.bootstrap_high if found else None,
        "test": found.test if found else None,
        "p": found.p if found else None,
        "p_holm": None,
        "p_equivalent": found.p_equivalent if found else None,
        "p_equivalent_holm": None,
        "deviation": found.std if found else None,
        "se_seeds": found.standard_error if found else None,
        "se_images": None,
        "correlation": found.correlation if found else None,
        "seeds_needed": None,
        "counted": " ".join(counted),
        "verdict": verdict,
        "records": "",
        "pooled_std": None,  # over all models of the condition; not written to the file
    }
    return row | more


def _margin(claim: Claim, claims: Claims) -> float | None:
    """The smallest effect that matters; for a printed figure, its tolerance; None for counts."""
    if isinstance(claim.block, Value):
        return claim.block.tolerance
    if isinstance(claim.block, Tested):
        return claims.families[claim.block.family].smallest_effect
    return None


# Counts must be equal in every printed digit.


def _check_counts(
    claim: Claim, claims: Claims, counts_at: Callable[..., dict[Model, dict[Any, Any]]]
) -> Row:
    assert not isinstance(claim.block, Tested)
    rows = counts_at(**claim.block.counted_at.model_dump())
    models = [(claim.backbone, name) for name in claim.attentions]
    if not all(model in rows for model in models):
        return _row(claim, claims)
    counts = [int(rows[model][claim.metric]) for model in models]
    if isinstance(claim.block, Cost):
        ours, than = counts
        counted = [str(count) for count in counts]
        # exact arithmetic: the share itself is allowed, one count more is not
        holds = ours - than <= Decimal(str(claim.block.at_most)) * than
    else:
        printed = claim.published[0] or ""
        counted = [as_printed(counts[0], UNITS[claim.metric], printed)]
        holds = counted == [printed]
    return _row(claim, claims, "reproduced" if holds else "contradicted", counted=counted)


def as_printed(count: int, unit: float, printed: str) -> str:
    """A count with the decimals of a printed figure, half rounded up."""
    digits = Decimal(1).scaleb(Decimal(printed).as_tuple().exponent)  # type: ignore[arg-type]
    return str((Decimal(count) / Decimal(int(unit))).quantize(digits, ROUND_HALF_UP))


# Errors are tested over seeds.


def _test(claim: Claim, claims: Claims, measured: pd.DataFrame, *, reduced: bool) -> list[Row]:
    """Test the claim in each condition where all of its cells were measured."""
    block = claim.block
    assert isinstance(block, Tested)
    names = [trained_attention(name) for name in claim.attentions]
    of_claim = (measured["backbone"] == claim.backbone) & measured["trained"].isin(names)
    rows = []
    for condition, group in (
        measured[of_claim].drop_duplicates("id").groupby("condition", sort=False)
    ):
        first = group.iloc[0]
        stated = (
            first["dataset"] == block.dataset
            and not first["options"]
            and first["recipe"] in block.recipes
        )
        by_name = [group[group["trained"] == name] for name in names]
        if any(own.empty for own in by_name) or not (stated or reduced):
            continue
        samples = [_by_seed(own, claim) for own in by_name]
        row = _row(
            claim,
            claims,
            "underpowered",
            _compare(claim, claims, samples),
            means=[sum(sample.values()) / len(sample) for sample in samples],
            scope="stated" if stated else "reduced setting",
            condition=str(condition),
            se_images=_se_images(by_name, claim.error),
            records=" ".join(sorted(group["id"])),
            pooled_std=_pooled_std(measured[measured["condition"] == condition], claim.error),
        )
        rows.append(row)
    return rows


def _by_seed(rows: pd.DataFrame, claim: Claim) -> BySeed:
    values = 100 - rows[claim.error] if claim.higher_is_better else rows[claim.error]
    return dict(zip(rows["seed"], values, strict=True))


def _compare(claim: Claim, claims: Claims, samples: Sequence[BySeed]) -> Comparison:
    sign = 1.0 if claim.higher_is_better else -1.0
    signed = [{seed: sign * value for seed, value in sample.items()} for sample in samples]
    margin = _margin(claim, claims) or 0.0
    if isinstance(claim.block, Value):
        printed = float(claim.published[0] or "")
        return comparison.compare_to_figure(signed[0], sign * printed, margin)
    if isinstance(claim.block, Better):
        return comparison.compare(signed[0], signed[1], margin, test=claim.block.test)
    return comparison.in_order([comparison.compare(a, b, margin) for a, b in pairwise(signed)])


def _pooled_std(rows: pd.DataFrame, error: str) -> float | None:
    """The standard deviation over seeds in a condition, pooled over its models."""
    groups = rows.drop_duplicates("id").groupby(["backbone", "trained"])[error]
    variances, degrees = groups.var(ddof=1), groups.count() - 1
    if degrees.sum() == 0:
        return None
    pooled = math.sqrt((variances.fillna(0) * degrees).sum() / degrees.sum())
    return pooled if pooled > 1e-9 else None


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
            row["seeds_needed"] = _seeds_needed(row, family, size)


def _verdict(row: Mapping[str, Any], alpha: float) -> str:
    """Equivalence comes first: a significant but too small difference does not matter."""
    equivalent = row["p_equivalent_holm"] is not None and row["p_equivalent_holm"] < alpha
    differs = row["p_holm"] is not None and row["p_holm"] < alpha
    if row["kind"] == "value":
        # `p` is small if the printed figure is beyond the tolerance
        return "reproduced" if equivalent else "contradicted" if differs else "underpowered"
    if equivalent:
        return "equivalent"
    if differs:
        return "reproduced" if row["gain"] > 0 else "contradicted"
    return "underpowered"


def _seeds_needed(row: Mapping[str, Any], family: Family, size: int) -> int | None:
    """The seeds per cell that would give a verdict, if more than there are now."""
    std = row["deviation"] or row["pooled_std"]
    if std is None:
        return None
    level = family.alpha / size  # the level of Holm's first step
    margin, effect, test = row["smallest_effect"], row["published_gain"], row["test"]
    needed = []
    if test != "prediction":
        to_detect = effect if effect is not None and effect > 0 else margin
        needed.append(comparison.seeds_to_find(to_detect, std, level, family.power, test))
    needed.append(comparison.seeds_to_rule_out(margin, std, level, family.power, test))
    present = min(int(n) for n in row["n"].split())
    return next((n for n in needed if n is not None and n > present), None)
