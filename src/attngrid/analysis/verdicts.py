"""What the records say of each claim; ``docs/evidence.md`` explains verdicts and columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from attngrid.analysis import comparison
from attngrid.analysis.claims import UNITS, Claim, Claims, Cost, Geometry, Printed, Tested, Value
from attngrid.analysis.comparison import BySeed, Comparison
from attngrid.analysis.frames import read_frame
from attngrid.core.files import shipped, write_atomically
from attngrid.models.registry import trained_attention
from attngrid.study.paths import results_folder

COMPLEXITY = Path("results/complexity.csv")
COLUMNS = [
    "claim",
    "source",
    "where",
    "statement",
    "kind",
    "backbone",
    "attentions",
    "metric",
    "published",
    "published_gain",
    "family",
    "smallest_effect",
    "scope",
    "condition",
    "n",
    "mean",
    "gain",
    "gain_low",
    "gain_high",
    "bootstrap_low",
    "bootstrap_high",
    "test",
    "p",
    "p_holm",
    "p_equivalent",
    "p_equivalent_holm",
    "deviation",
    "se_seeds",
    "se_images",
    "correlation",
    "seeds_needed",
    "counted",
    "verdict",
    "records",
]


@dataclass
class Answer:
    """A claim in one condition; the fields are the columns of ``claims.csv``."""

    claim: Claim
    condition: str = ""
    scope: str = "stated"
    verdict: str = "not run"
    means: tuple[float | None, ...] = ()
    found: Comparison | None = None
    # another deviation of the condition, where the claim's own cells have none
    pilot: float | None = None
    se_images: float | None = None
    counted: tuple[str | None, ...] = ()
    ids: list[str] = field(default_factory=list)
    p_holm: float | None = None
    p_equivalent_holm: float | None = None
    seeds_needed: int | None = None

    def row(self, claims: Claims) -> dict[str, Any]:
        """The line of ``claims.csv``."""
        block = self.claim.block
        row: dict[str, Any] = {
            "claim": self.claim.id,
            "source": block.source,
            "where": block.where,
            "statement": block.statement,
            "kind": block.kind,
            "backbone": self.claim.backbone,
            "attentions": " ".join(self.claim.attentions),
            "metric": self.claim.metric,
            "published": _joined(self.claim.published),
            "published_gain": self.claim.published_gain,
            "scope": self.scope,
            "condition": self.condition,
            "mean": _joined(None if mean is None else f"{mean:.4f}" for mean in self.means),
            "counted": _joined(self.counted),
            "p_holm": self.p_holm,
            "p_equivalent_holm": self.p_equivalent_holm,
            "se_images": self.se_images,
            "seeds_needed": self.seeds_needed,
            "verdict": self.verdict,
            "records": " ".join(self.ids),
        }
        if isinstance(block, Tested):
            row |= {"family": block.family, "smallest_effect": _margin(self.claim, claims)}
        if self.found is not None:
            found = asdict(self.found)
            row |= {f"gain_{end}": found.pop(end) for end in ("low", "high")}
            row |= found | {
                "n": " ".join(map(str, self.found.n)),
                "se_seeds": _se_seeds(self.found),
            }
        return row


def answer(
    claims: Claims,
    found: Sequence[Claim],
    cells: pd.DataFrame,
    complexity: Path = COMPLEXITY,
    *,
    in_kind: bool = False,
) -> pd.DataFrame:
    """One row a claim and condition, in the order of the claims.

    Args:
        claims: as ``load_claims`` gives them, with their families.
        found: each of them.
        cells: of one study or of many.
        complexity: the counts at the papers' full size.
        in_kind: also answer claims on other data or with other options than their own. Such
            rows have the scope ``in kind``; they say nothing of the claim itself.
    """
    counts = shipped(complexity)
    frame = read_frame(counts) if counts.is_file() else pd.DataFrame()
    measured = cells[cells["state"] == "measured"].drop_duplicates(["id", "attention"])
    # two names of one function share their records
    measured = measured.assign(trained=measured["attention"].map(trained_attention))
    answers: list[Answer] = []
    for claim in found:
        if isinstance(claim.block, Tested):
            answers += _tested(claim, claims, measured, in_kind=in_kind) or [Answer(claim)]
        else:
            answers.append(_counted(claim, frame))
    _judge(claims, found, answers)
    return pd.DataFrame([line.row(claims) for line in answers], columns=COLUMNS).astype(
        {"seeds_needed": "Int64"}
    )


def all_cells() -> pd.DataFrame:
    """The cells of every study that has been collected in the results' folder."""
    files = sorted(results_folder().glob("*/cells.csv"))
    frames = [frame for file in files if not (frame := read_frame(file)).empty]
    if not frames:
        from attngrid.analysis.frames import CELL_COLUMNS

        return pd.DataFrame(columns=CELL_COLUMNS)
    return pd.concat(frames, ignore_index=True)


def write_claims(file: Path, answers: pd.DataFrame) -> None:
    """Write ``claims.csv``, atomically, to ten significant digits: no machine's last bit."""
    write_atomically(file, answers.to_csv(index=False, float_format="%.10g"))


def _joined(values: Iterable[str | None]) -> str:
    return " ".join("--" if value is None else value for value in values)


def _margin(claim: Claim, claims: Claims) -> float:
    """The smallest effect that matters; of a figure, its tolerance."""
    assert isinstance(claim.block, Tested)
    if isinstance(claim.block, Value):
        return claim.block.tolerance
    return claims.families[claim.block.family].smallest_effect


# Counts: equal in every printed digit, or not.


def _counted(claim: Claim, frame: pd.DataFrame) -> Answer:
    assert isinstance(claim.block, Printed | Cost)
    found = [
        _count(frame, claim.backbone, name, claim.metric, claim.block.counted_at)
        for name in claim.attentions
    ]
    counts = [count for count in found if count is not None]
    if len(counts) < len(found):
        return Answer(claim)
    if isinstance(claim.block, Cost):
        ours, than = counts
        shown = tuple(str(count) for count in counts)
        # in whole numbers: a tenth more is allowed, a tenth and one more is not
        holds = ours - than <= Decimal(str(claim.block.at_most)) * than
    else:
        (printed,) = claim.published
        assert printed is not None
        rounded = as_printed(counts[0], UNITS[claim.metric], printed)
        shown, holds = (rounded,), rounded == printed
    return Answer(claim, counted=shown, verdict="reproduced" if holds else "contradicted")


def _count(
    frame: pd.DataFrame, backbone: str, attention: str, metric: str, at: Geometry
) -> int | None:
    if frame.empty:
        return None
    wanted = {"backbone": backbone, "attention": attention, "options": "", **at.model_dump()}
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return None if frame.empty else int(frame[metric].iloc[0])


def as_printed(count: int, unit: float, printed: str) -> str:
    """A count with the decimals of a printed figure, half rounded up as by hand."""
    digits = Decimal(1).scaleb(Decimal(printed).as_tuple().exponent)  # type: ignore[arg-type]
    return str((Decimal(count) / Decimal(int(unit))).quantize(digits, ROUND_HALF_UP))


# Errors: tests over seeds.


def _tested(claim: Claim, claims: Claims, measured: pd.DataFrame, *, in_kind: bool) -> list[Answer]:
    """The claim in each condition that all of its cells were measured in."""
    block = claim.block
    assert isinstance(block, Tested)
    names = [trained_attention(name) for name in claim.attentions]
    rows = measured[
        (measured["backbone"] == claim.backbone) & measured["trained"].isin(names)
    ].drop_duplicates("id")
    answers = []
    for condition, group in rows.groupby("condition", sort=False):
        first = group.iloc[0]
        stated = (
            first["dataset"] == block.dataset
            and not first["options"]
            and first["recipe"] in block.recipes
        )
        samples = [_by_seed(group[group["trained"] == name], claim.metric) for name in names]
        if not all(samples) or not (stated or in_kind):
            continue
        pilot = _pilot(measured[measured["condition"] == condition], claim.metric)
        answers.append(
            Answer(
                claim,
                str(condition),
                "stated" if stated else "in kind",
                "underpowered",
                tuple(sum(s.values()) / len(s) for s in samples),
                _compared(claim, claims, samples),
                pilot=pilot,
                se_images=_se_images(group, names, claim.metric),
                ids=sorted(group["id"]),
            )
        )
    return answers


def _by_seed(rows: pd.DataFrame, metric: str) -> BySeed:
    error = metric.replace("accuracy", "error")
    values = rows[error] if error == metric else 100 - rows[error]
    return dict(zip(rows["seed"], values, strict=True))


def _compared(claim: Claim, claims: Claims, samples: Sequence[BySeed]) -> Comparison:
    sign = 1.0 if claim.higher_is_better else -1.0
    signed = [{seed: sign * value for seed, value in sample.items()} for sample in samples]
    margin = _margin(claim, claims)
    if isinstance(claim.block, Value):
        (printed,) = claim.published
        assert printed is not None
        found = comparison.against_a_figure(signed[0], sign * float(printed), margin)
    elif len(signed) == 2:
        test = getattr(claim.block, "test", "welch")
        found = comparison.compare(signed[0], signed[1], margin, test=test)
    else:
        found = comparison.in_order([comparison.compare(a, b, margin) for a, b in pairwise(signed)])
    return found


def _pilot(rows: pd.DataFrame, metric: str) -> float | None:
    """The deviation over seeds in a condition, over all models that have one."""
    error = metric.replace("accuracy", "error")
    rows = rows.drop_duplicates("id")
    groups = rows.groupby(["backbone", "trained"])[error]
    variances, degrees = groups.var(ddof=1), groups.count() - 1
    if degrees.sum() == 0:
        return None
    pooled = math.sqrt((variances.fillna(0) * degrees).sum() / degrees.sum())
    return pooled if pooled > 1e-9 else None


def _se_images(rows: pd.DataFrame, names: Sequence[str], metric: str) -> float | None:
    """The standard error of the gain that the drawing of the test images gives it, in points.

    Binomial, and as if each network had images of its own: they share them, so that it is at most
    this. A record does not say which images were missed.
    """
    if len(names) > 2:
        return None  # of an order's steps each has its own
    error = metric.replace("accuracy", "error")
    total = 0.0
    for name in names:
        own = rows[rows["trained"] == name]
        share = own[error].mean() / 100
        total += share * (1 - share) / int(own["test_images"].iloc[0])
    return 100 * math.sqrt(total)


def _se_seeds(found: Comparison) -> float | None:
    """The standard error of the gain that the seeds give it, in points."""
    if found.deviation is None:
        return None
    n = found.n
    shares = 1 + 1 / n[0] if found.test == "prediction" else 1 / n[0] + 1 / n[1]
    return found.deviation * math.sqrt(2 / n[0] if found.test == "paired" else shares)


def _judge(claims: Claims, found: Sequence[Claim], answers: Sequence[Answer]) -> None:
    """Correct each family in each condition, over all of its claims, and give the verdicts."""
    sizes: dict[str, int] = {}
    for claim in found:
        if isinstance(claim.block, Tested):
            sizes[claim.block.family] = sizes.get(claim.block.family, 0) + 1
    groups: dict[tuple[str, str], list[Answer]] = {}
    for line in answers:
        if isinstance(line.claim.block, Tested) and line.found is not None:
            groups.setdefault((line.claim.block.family, line.condition), []).append(line)
    for (family, _), lines in groups.items():
        # a claim that was not measured counts, too: what comes later changes no verdict's level
        missing = [None] * (sizes[family] - len(lines))
        tested = [line.found for line in lines if line.found is not None]
        p = comparison.holm([*(one.p for one in tested), *missing])
        p_equivalent = comparison.holm([*(one.p_equivalent for one in tested), *missing])
        for line, one, other in zip(lines, p, p_equivalent, strict=False):
            line.p_holm, line.p_equivalent_holm = one, other
            line.verdict = _verdict(line, claims.families[family].alpha)
            if line.verdict == "underpowered":
                line.seeds_needed = _seeds(line, claims, sizes[family])


def _verdict(line: Answer, alpha: float) -> str:
    """Equivalence first: a difference that cannot matter is none, however sure its sign."""
    found = line.found
    assert found is not None
    equivalent = line.p_equivalent_holm is not None and line.p_equivalent_holm < alpha
    differs = line.p_holm is not None and line.p_holm < alpha
    if isinstance(line.claim.block, Value):
        # `p` is small where the printed figure is out of reach
        return "reproduced" if equivalent else "contradicted" if differs else "underpowered"
    if equivalent:
        return "equivalent"
    if differs:
        return "reproduced" if found.gain > 0 else "contradicted"
    return "underpowered"


def _seeds(line: Answer, claims: Claims, size: int) -> int | None:
    """The seeds of each cell that it would take, of which there are more than there are."""
    assert line.found is not None
    assert isinstance(line.claim.block, Tested)
    deviation = line.found.deviation or line.pilot
    if deviation is None:
        return None
    family = claims.families[line.claim.block.family]
    margin, test = _margin(line.claim, claims), line.found.test
    # the level of Holm's first step
    level = family.alpha / size
    effect = line.claim.published_gain
    needed = []
    if test != "prediction":
        wanted = effect if effect is not None and effect > 0 else margin
        needed.append(comparison.seeds_to_find(wanted, deviation, level, family.power, test))
    needed.append(comparison.seeds_to_rule_out(margin, deviation, level, family.power, test))
    return next((n for n in needed if n is not None and n > min(line.found.n)), None)
