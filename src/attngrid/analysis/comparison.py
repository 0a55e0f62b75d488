"""Statistics over seeds by SciPy and statsmodels, in points (percent of the test images)."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

MIN_SEEDS = 10  # for a bootstrap or a correlation
MAX_SEEDS = 10_000
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Comparison:
    """How much better one sample is than another, and how certain that is."""

    test: Literal["welch", "paired", "prediction", "order"]
    n: tuple[int, ...]  # seeds of each sample
    gain: float  # difference of the means in points; positive in the direction of the claim
    low: float | None = None  # lower end of the gain's 95 % interval by the test
    high: float | None = None
    bootstrap_low: float | None = None  # lower end by BCa bootstrap; None below ten seeds
    bootstrap_high: float | None = None
    p: float | None = None  # two-sided, against no difference
    p_equivalent: float | None = None  # two one-sided tests against a difference that matters
    std: float | None = None  # over seeds, pooled over both samples
    correlation: float | None = None  # between the samples' common seeds; None below ten

    @property
    def width(self) -> float:
        """Width of the gain's interval by the test; infinite without one."""
        return math.inf if self.low is None or self.high is None else self.high - self.low

    @property
    def standard_error(self) -> float | None:
        """Standard error of the gain due to the seeds, in points."""
        if self.std is None:
            return None
        return self.std * math.sqrt(1 / self.n[0] + 1 / self.n[1])


def compare(better: BySeed, than: BySeed, smallest: float, *, test: str = "welch") -> Comparison:
    """Compare two samples by Welch's t-test, or by the paired test.

    Args:
        better: values by seed, larger is better.
        than: the other sample.
        smallest: the smallest difference that matters.
        test: ``welch``; ``by_correlation`` pairs by seed from ten common seeds on, where the lower
            end of the correlation's 95 % interval is above 0 and pairing narrows the interval.

    Returns:
        The comparison; only with a gain if a sample has one seed, or no sample varies.
    """
    a, b = np.array([*better.values()]), np.array([*than.values()])
    found = Comparison("welch", (len(a), len(b)), float(a.mean() - b.mean()))
    if min(found.n) < 2 or (_is_constant(a) and _is_constant(b)):
        return found
    std = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    # one of the samples may be constant; SciPy warns of it
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        p_equivalent = ttost_ind(a, b, -smallest, smallest, usevar="unequal")[0]
        found = _tested(found, stats.ttest_ind(a, b, equal_var=False), p_equivalent, std)
    if min(found.n) < MIN_SEEDS:
        return found
    samples: tuple[np.ndarray, ...] = (a, b)
    if set(better) == set(than) and not (_is_constant(a) or _is_constant(b)):
        x, y = (np.array([sample[seed] for seed in sorted(better)]) for sample in (better, than))
        correlation = stats.pearsonr(x, y)
        found = replace(found, correlation=float(correlation.statistic))
        correlated = correlation.confidence_interval(0.95).low > 0
        if test == "by_correlation" and correlated and not _is_constant(x - y):
            std = (x - y).std(ddof=1) / math.sqrt(2)
            p_equivalent = ttost_paired(x, y, -smallest, smallest)[0]
            paired = _tested(found, stats.ttest_rel(x, y), p_equivalent, std)
            if paired.width < found.width:
                found, samples = replace(paired, test="paired"), (x - y,)
    drawn = stats.bootstrap(samples, _difference_of_means, vectorized=True, method="BCa", rng=0)
    low, high = drawn.confidence_interval
    return replace(found, bootstrap_low=float(low), bootstrap_high=float(high))


def _tested(found: Comparison, result: Any, p_equivalent: float, std: float) -> Comparison:
    """A comparison with the result of SciPy's t-test."""
    interval = result.confidence_interval(0.95)
    return replace(
        found,
        low=float(interval.low),
        high=float(interval.high),
        p=float(result.pvalue),
        p_equivalent=float(p_equivalent),
        std=float(std),
    )


def _is_constant(values: np.ndarray) -> bool:
    # equal errors may differ by floating-point rounding
    return bool(np.ptp(values) <= 1e-9)


def _difference_of_means(*samples: np.ndarray, axis: int = -1) -> float:
    means = [np.mean(sample, axis=axis) for sample in samples]
    return means[0] - means[1] if len(means) == 2 else means[0]  # type: ignore[no-any-return]


def in_order(steps: Sequence[Comparison]) -> Comparison:
    """Combine the comparisons of neighbours into one of their order (intersection-union test).

    The order holds if every step does, so p is the largest p of the steps. If steps go the other
    way, p is their smallest p times the number of steps (Bonferroni). The order is equivalent if
    every step is. Its gain is that of the weakest step.
    """
    weakest = min(steps, key=lambda step: step.gain)
    n = tuple(min(sizes) for sizes in zip(*(step.n for step in steps), strict=True))
    if any(step.p is None for step in steps):
        return Comparison("order", n, weakest.gain)
    against = [step.p or 0 for step in steps if step.gain <= 0]
    return Comparison(
        "order",
        n,
        weakest.gain,
        low=weakest.low,
        high=weakest.high,
        p=min(1.0, len(steps) * min(against)) if against else max(step.p or 0 for step in steps),
        p_equivalent=max(step.p_equivalent or 0 for step in steps),
        std=max(step.std or 0 for step in steps),
    )


def compare_to_figure(values: BySeed, figure: float, std: float, df: int) -> Comparison:
    """Compare our runs with one printed run by the 95 % prediction interval of one more run.

    The interval has the half-width t(df)·std·√(1 + 1/n), so it needs a standard deviation over
    seeds with its degrees of freedom, and one run or more.
    """
    n, gain = len(values), math.fsum(values.values()) / len(values) - figure
    half = float(stats.t.ppf(0.975, df)) * std * math.sqrt(1 + 1 / n)
    return Comparison("prediction", (n,), gain, low=gain - half, high=gain + half)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction of a family's p-values; an untested claim (None) counts as p = 1."""
    p = [1.0 if value is None else value for value in p_values]
    pairs = zip(p_values, multipletests(p, method="holm")[1], strict=True)
    return [None if given is None else float(value) for given, value in pairs]


def seeds_to_find(effect: float, std: float, alpha: float, power: float, test: str) -> int | None:
    """The seeds per sample that detect an effect with a given power; None above ten thousand.

    Args:
        effect: the true difference, in points, above 0.
        std: standard deviation over seeds.
        alpha: two-sided level of this test; in a family, the family's level divided by its size.
        power: of the test, by the noncentral t-distribution.
        test: ``welch`` or ``paired``.
    """

    def achieved(n: int) -> float:
        se, df = _standard_error(std, n, test)
        return float(stats.nct.sf(stats.t.isf(alpha / 2, df), df, effect / se))

    return _fewest(achieved, power)


def seeds_to_rule_out(
    smallest: float, std: float, alpha: float, power: float, test: str
) -> int | None:
    """The seeds per sample that show equivalence with a given power if there is no difference.

    The test is two one-sided tests at ``alpha``; the arguments are as for ``seeds_to_find``.
    """

    def achieved(n: int) -> float:
        se, df = _standard_error(std, n, test)
        margin, critical = smallest / se, stats.t.ppf(1 - alpha, df)
        inside = stats.nct.cdf(-critical, df, -margin) - stats.nct.cdf(critical, df, margin)
        return float(inside)

    return _fewest(achieved, power)


def _standard_error(std: float, n: int, test: str) -> tuple[float, int]:
    """Standard error of a gain with ``n`` seeds per sample, and its test's degrees of freedom."""
    return std * math.sqrt(2 / n), n - 1 if test == "paired" else 2 * n - 2


def _fewest(achieved: Callable[[int], float], power: float) -> int | None:
    """The smallest number of seeds, two or more, that reaches the power."""

    def reached(n: int) -> bool:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return not achieved(n) < power  # SciPy returns nan if the power rounds to 1

    fewest = 2 + bisect_left(range(2, MAX_SEEDS + 1), True, key=reached)
    return fewest if fewest <= MAX_SEEDS else None


def best_of(samples: Sequence[tuple[float, float, int]]) -> int | None:
    """The index of the sample that beats every other: Welch's tests, Holm's correction, 0.05.

    Args:
        samples: mean, standard deviation and n of each; larger is better.

    Returns:
        None if no sample does, or if a pair of samples has no standard deviation.
    """
    if len(samples) < 2 or any(n < 2 for *_, n in samples):
        return None
    best = max(range(len(samples)), key=lambda index: samples[index][0])
    others = [sample for index, sample in enumerate(samples) if index != best]
    if any(max(samples[best][1], std) <= 1e-9 for _, std, _ in others):
        return None
    tests = [stats.ttest_ind_from_stats(*samples[best], *o, equal_var=False) for o in others]
    adjusted = holm([float(test.pvalue) for test in tests])
    return best if all(p is not None and p < 0.05 for p in adjusted) else None
