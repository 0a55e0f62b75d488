"""What the records say about each claim; ``docs/evidence.md`` explains verdicts and columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from attngrid.analysis import comparison
from attngrid.analysis.claims import UNITS, Claim, Claims, Cost, Printed, Tested, Value
from attngrid.analysis.comparison import BySeed, Comparison
from attngrid.analysis.frames import COMPLEXITY, read_counts
from attngrid.analysis.reference import Model
from attngrid.core.files import write_atomically
from attngrid.models.registry import trained_attention

REDUCED = "reduced setting"


@dataclass
class ClaimResult:
    """A claim in one condition: a line of ``claims.csv``.

    Attributes:
        claim: the claim.
        condition, scope, verdict, counted, p_holm, p_equivalent_holm, se_images, seeds_needed:
            as the columns.
        means: the mean of each sample over its seeds.
        comparison: of the samples; None where nothing was measured.
        pooled_std: over all models of the condition, for a claim whose own cells have no std.
        ids: the cells' ids.
    """

    claim: Claim
    condition: str = ""
    scope: str = "stated"
    verdict: str = "not run"
    means: tuple[float, ...] = ()
    comparison: Comparison | None = None
    pooled_std: float | None = None
    se_images: float | None = None
    counted: tuple[str | None, ...] = ()
    ids: list[str] = field(default_factory=list)
    p_holm: float | None = None
    p_equivalent_holm: float | None = None
    seeds_needed: int | None = None

    def row(self, claims: Claims) -> dict[str, Any]:
        """The line of ``claims.csv``."""
        claim, block = self.claim, self.claim.block
        tested = isinstance(block, Tested)
        found = self.comparison or Comparison("", (), math.nan)
        measured = self.comparison is not None
        return {
            "claim": claim.id,
            "source": block.source,
            "where": block.where,
            "statement": block.statement,
            "kind": block.kind,
            "backbone": claim.backbone,
            "attentions": " ".join(claim.attentions),
            "metric": claim.metric,
            "published": _joined(claim.published),
            "published_gain": claim.published_gain,
            "family": block.family if isinstance(block, Tested) else None,
            "smallest_effect": _margin(claim, claims) if tested else None,
            "scope": self.scope,
            "condition": self.condition,
            "n": " ".join(map(str, found.n)) if measured else None,
            "mean": _joined(f"{mean:.4f}" for mean in self.means),
            "gain": found.gain,
            "gain_low": found.low,
            "gain_high": found.high,
            "bootstrap_low": found.bootstrap_low,
            "bootstrap_high": found.bootstrap_high,
            "test": found.test if measured else None,
            "p": found.p,
            "p_holm": self.p_holm,
            "p_equivalent": found.p_equivalent,
            "p_equivalent_holm": self.p_equivalent_holm,
            "deviation": found.std,
            "se_seeds": _se_seeds(found),
            "se_images": self.se_images,
            "correlation": found.correlation,
            "seeds_needed": self.seeds_needed,
            "counted": _joined(self.counted),
            "verdict": self.verdict,
            "records": " ".join(self.ids),
        }


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
        cells: of one study or of many.
        complexity: the counts at the papers' full size.
        reduced: also judge claims on other data or with other options than their own. Such
            rows have the scope ``reduced setting``; they say nothing about the claim itself.
    """
    measured = cells[cells["state"] == "measured"].drop_duplicates(["id", "attention"])
    # attentions that compute the same function share their records
    measured = measured.assign(trained=measured["attention"].map(trained_attention))
    counts = cache(partial(read_counts, complexity))
    results: list[ClaimResult] = []
    for claim in found:
        if isinstance(claim.block, Tested):
            tested = _test(claim, claims, measured, reduced=reduced)
            results += tested or [ClaimResult(claim)]
        else:
            results.append(_check_counts(claim, counts))
    _correct_families(claims, found, results)
    frame = pd.DataFrame([result.row(claims) for result in results])
    return frame.astype({"seeds_needed": "Int64"})


def write_claims(file: Path, results: pd.DataFrame) -> None:
    """Write ``claims.csv`` atomically. Ten significant digits are the same on every machine."""
    write_atomically(file, results.to_csv(index=False, float_format="%.10g"))


def _joined(values: Iterable[str | None]) -> str:
    return " ".join("--" if value is None else value for value in values)


def _margin(claim: Claim, claims: Claims) -> float:
    """The smallest effect that matters; for a printed figure, its tolerance."""
    assert isinstance(claim.block, Tested)
    if isinstance(claim.block, Value):
        return claim.block.tolerance
    return claims.families[claim.block.family].smallest_effect


# Counts: equal in every printed digit, or not.


def _check_counts(
    claim: Claim, counts_at: Callable[..., dict[Model, dict[Any, Any]]]
) -> ClaimResult:
    assert isinstance(claim.block, Printed | Cost)
    rows = counts_at(**claim.block.counted_at.model_dump())
    models = [(claim.backbone, name) for name in claim.attentions]
    if not all(model in rows for model in models):
        return ClaimResult(claim)
    counts = [int(rows[model][claim.metric]) for model in models]
    if isinstance(claim.block, Cost):
        ours, than = counts
        shown = tuple(map(str, counts))
        # exact: a tenth more is allowed, one more than that is not
        holds = ours - than <= Decimal(str(claim.block.at_most)) * than
    else:
        (printed,) = claim.published
        assert printed is not None
        shown = (as_printed(counts[0], UNITS[claim.metric], printed),)
        holds = shown == (printed,)
    return ClaimResult(claim, counted=shown, verdict="reproduced" if holds else "contradicted")


def as_printed(count: int, unit: float, printed: str) -> str:
    """A count with the decimals of a printed figure, half rounded up."""
    digits = Decimal(1).scaleb(Decimal(printed).as_tuple().exponent)  # type: ignore[arg-type]
    return str((Decimal(count) / Decimal(int(unit))).quantize(digits, ROUND_HALF_UP))


# Errors: tests over seeds.


def _test(
    claim: Claim, claims: Claims, measured: pd.DataFrame, *, reduced: bool
) -> list[ClaimResult]:
    """The claim in each condition in which all of its cells were measured."""
    block = claim.block
    assert isinstance(block, Tested)
    names = [trained_attention(name) for name in claim.attentions]
    rows = measured[
        (measured["backbone"] == claim.backbone) & measured["trained"].isin(names)
    ].drop_duplicates("id")
    results = []
    for condition, group in rows.groupby("condition", sort=False):
        first = group.iloc[0]
        stated = (
            first["dataset"] == block.dataset
            and not first["options"]
            and first["recipe"] in block.recipes
        )
        samples = [_by_seed(group[group["trained"] == name], claim.metric) for name in names]
        if not all(samples) or not (stated or reduced):
            continue
        results.append(
            ClaimResult(
                claim,
                str(condition),
                "stated" if stated else REDUCED,
                "underpowered",
                tuple(sum(s.values()) / len(s) for s in samples),
                _compare(claim, claims, samples),
                _pooled_std(measured[measured["condition"] == condition], claim.metric),
                _se_images(group, names, claim.metric),
                ids=sorted(group["id"]),
            )
        )
    return results


def _by_seed(rows: pd.DataFrame, metric: str) -> BySeed:
    error = metric.replace("accuracy", "error")
    values = rows[error] if error == metric else 100 - rows[error]
    return dict(zip(rows["seed"], values, strict=True))


def _compare(claim: Claim, claims: Claims, samples: Sequence[BySeed]) -> Comparison:
    sign = 1.0 if claim.higher_is_better else -1.0
    signed = [{seed: sign * value for seed, value in sample.items()} for sample in samples]
    margin = _margin(claim, claims)
    if isinstance(claim.block, Value):
        (printed,) = claim.published
        assert printed is not None
        return comparison.compare_to_figure(signed[0], sign * float(printed), margin)
    if len(signed) == 2:
        test = getattr(claim.block, "test", "welch")
        return comparison.compare(signed[0], signed[1], margin, test=test)
    return comparison.in_order([comparison.compare(a, b, margin) for a, b in pairwise(signed)])


def _pooled_std(rows: pd.DataFrame, metric: str) -> float | None:
    """The standard deviation over seeds in a condition, pooled over its models."""
    error = metric.replace("accuracy", "error")
    groups = rows.drop_duplicates("id").groupby(["backbone", "trained"])[error]
    variances, degrees = groups.var(ddof=1), groups.count() - 1
    if degrees.sum() == 0:
        return None
    pooled = math.sqrt((variances.fillna(0) * degrees).sum() / degrees.sum())
    return pooled if pooled > 1e-9 else None


def _se_images(rows: pd.DataFrame, names: Sequence[str], metric: str) -> float | None:
    """Standard error of the gain due to the sampling of the test images, in points.

    Binomial, as if each network had images of its own. The networks share their images, so the
    true standard error is at most this one; a record does not say which images were missed.
    """
    if len(names) > 2:
        return None  # each step of an order has its own
    error = metric.replace("accuracy", "error")
    total = 0.0
    for name in names:
        own = rows[rows["trained"] == name]
        share = own[error].mean() / 100
        total += share * (1 - share) / int(own["test_images"].iloc[0])
    return 100 * math.sqrt(total)


def _se_seeds(found: Comparison) -> float | None:
    """Standard error of the gain due to the seeds, in points."""
    if found.std is None:
        return None
    n = found.n
    shares = 1 + 1 / n[0] if found.test == "prediction" else 1 / n[0] + 1 / n[1]
    return found.std * math.sqrt(2 / n[0] if found.test == "paired" else shares)


def _correct_families(
    claims: Claims, found: Sequence[Claim], results: Sequence[ClaimResult]
) -> None:
    """Correct each family in each condition, over all of its claims, and set the verdicts."""
    sizes = Counter(claim.block.family for claim in found if isinstance(claim.block, Tested))
    groups: dict[tuple[str, str], list[ClaimResult]] = {}
    for result in results:
        if isinstance(result.claim.block, Tested) and result.comparison is not None:
            key = (result.claim.block.family, result.condition)
            groups.setdefault(key, []).append(result)
    for (family, _), group in groups.items():
        # claims without records count, too: records that come later change no level
        missing = [None] * (sizes[family] - len(group))
        tested = [result.comparison for result in group if result.comparison is not None]
        p = comparison.holm([*(one.p for one in tested), *missing])
        p_equivalent = comparison.holm([*(one.p_equivalent for one in tested), *missing])
        for result, one, other in zip(group, p, p_equivalent, strict=False):
            result.p_holm, result.p_equivalent_holm = one, other
            result.verdict = _verdict(result, claims.families[family].alpha)
            if result.verdict == "underpowered":
                result.seeds_needed = _seeds_needed(result, claims, sizes[family])


def _verdict(result: ClaimResult, alpha: float) -> str:
    """Equivalence comes first: a difference below the smallest effect is none, however certain."""
    assert result.comparison is not None
    equivalent = result.p_equivalent_holm is not None and result.p_equivalent_holm < alpha
    differs = result.p_holm is not None and result.p_holm < alpha
    if isinstance(result.claim.block, Value):
        # `p` is small where the printed figure is out of reach
        return "reproduced" if equivalent else "contradicted" if differs else "underpowered"
    if equivalent:
        return "equivalent"
    if differs:
        return "reproduced" if result.comparison.gain > 0 else "contradicted"
    return "underpowered"


def _seeds_needed(result: ClaimResult, claims: Claims, size: int) -> int | None:
    """The number of seeds per cell that would give a verdict; more than there are now."""
    found, claim = result.comparison, result.claim
    assert found is not None
    assert isinstance(claim.block, Tested)
    std = found.std or result.pooled_std
    if std is None:
        return None
    family = claims.families[claim.block.family]
    level = family.alpha / size  # of Holm's first step
    margin, effect, needed = _margin(claim, claims), claim.published_gain, []
    if found.test != "prediction":
        wanted = effect if effect is not None and effect > 0 else margin
        needed.append(comparison.seeds_to_find(wanted, std, level, family.power, found.test))
    needed.append(comparison.seeds_to_rule_out(margin, std, level, family.power, found.test))
    return next((n for n in needed if n is not None and n > min(found.n)), None)
