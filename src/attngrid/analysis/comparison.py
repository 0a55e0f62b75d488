"""Statistics over seeds: tests, intervals, and the number of seeds that a test needs.

The tests are SciPy's and statsmodels'. All figures are in points (percent of the test images).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

MIN_SEEDS = 10  # for a bootstrap or a correlation
MAX_SEEDS = 10_000
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Comparison:
    """How much better one sample is than another, and how certain that is.

    Attributes:
        test: ``welch``, ``paired``, ``prediction`` or ``order``.
        n: seeds of each sample.
        gain: difference of the means in points; positive in the direction of the claim.
        low, high: the test's 95 % interval of the gain.
        bootstrap_low, bootstrap_high: the same by BCa bootstrap; None below ten seeds.
        p: two-sided p-value against no difference.
        p_equivalent: of two one-sided tests against a difference that matters.
        std: standard deviation over seeds, pooled over both samples.
        correlation: of the common seeds; None below ten.
    """

    test: str
    n: tuple[int, ...]
    gain: float
    low: float | None = None
    high: float | None = None
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None
    p: float | None = None
    p_equivalent: float | None = None
    std: float | None = None
    correlation: float | None = None


def compare(better: BySeed, than: BySeed, smallest: float, *, test: str = "welch") -> Comparison:
    """Compare two samples by Welch's t-test, or by the paired test.

    Args:
        better: values by seed, larger is better.
        than: the other sample.
        smallest: the smallest difference that matters.
        test: ``welch``; ``by_correlation`` pairs by seed from ten common seeds on, where the lower
            end of the correlation's 95 % interval is above 0 and pairing narrows the interval.

    Returns:
        Only the gain where a sample has one seed, or no sample varies.
    """
    a, b = np.array([*better.values()]), np.array([*than.values()])
    bare = Comparison("welch", (len(a), len(b)), float(a.mean() - b.mean()))
    if min(bare.n) < 2 or (_is_constant(a) and _is_constant(b)):
        return bare
    welch = stats.ttest_ind(a, b, equal_var=False)
    interval = welch.confidence_interval(0.95)
    found = replace(
        bare,
        low=float(interval.low),
        high=float(interval.high),
        p=float(welch.pvalue),
        p_equivalent=float(ttost_ind(a, b, -smallest, smallest, usevar="unequal")[0]),
        std=math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2),
    )
    common = sorted(set(better) & set(than))
    if len(common) >= MIN_SEEDS and len(common) == len(a) == len(b):
        x, y = (np.array([sample[seed] for seed in common]) for sample in (better, than))
        found = _compare_pairs(found, x, y, smallest, use=test == "by_correlation")
    if min(found.n) >= MIN_SEEDS:
        samples = (x - y,) if found.test == "paired" else (a, b)
        drawn = stats.bootstrap(samples, _difference_of_means, vectorized=True, method="BCa", rng=0)
        low, high = drawn.confidence_interval
        found = replace(found, bootstrap_low=float(low), bootstrap_high=float(high))
    return found


def _is_constant(values: np.ndarray) -> bool:
    # 79.6 and 79.6 may differ by rounding
    return bool(np.ptp(values) <= 1e-9)


def _difference_of_means(*samples: np.ndarray, axis: int = -1) -> float:
    means = [np.mean(sample, axis=axis) for sample in samples]
    return means[0] - means[1] if len(means) == 2 else means[0]  # type: ignore[no-any-return]


def _compare_pairs(
    found: Comparison, x: np.ndarray, y: np.ndarray, smallest: float, *, use: bool
) -> Comparison:
    """Add the seeds' correlation; replace the test by the paired one where ``use`` and it pays."""
    if _is_constant(x) or _is_constant(y):
        return found
    correlation = stats.pearsonr(x, y)
    found = replace(found, correlation=float(correlation.statistic))
    test = stats.ttest_rel(x, y)
    interval = test.confidence_interval(0.95)
    assert found.low is not None
    assert found.high is not None
    narrower = interval.high - interval.low < found.high - found.low
    correlated = correlation.confidence_interval(0.95).low > 0
    if not (use and narrower and correlated) or _is_constant(x - y):
        return found
    return replace(
        found,
        test="paired",
        low=float(interval.low),
        high=float(interval.high),
        p=float(test.pvalue),
        p_equivalent=float(ttost_paired(x, y, -smallest, smallest)[0]),
        std=float((x - y).std(ddof=1)) / math.sqrt(2),
    )


def in_order(steps: Sequence[Comparison]) -> Comparison:
    """Combine the comparisons of neighbours into one of their order (intersection-union test).

    The order holds where every step does, so p is the largest of the steps'. If steps go the
    other way, p is their least times the number of steps (Bonferroni). The order is equivalent
    where every step is. Its gain is that of the weakest step.
    """
    weakest = min(steps, key=lambda step: step.gain)
    n = tuple(min(sizes) for sizes in zip(*(step.n for step in steps), strict=True))
    if any(step.p is None for step in steps):
        return Comparison("order", n, weakest.gain)
    against = [step.p for step in steps if step.gain <= 0 and step.p is not None]
    return replace(
        weakest,
        test="order",
        n=n,
        p=min(1.0, len(steps) * min(against)) if against else max(step.p or 0 for step in steps),
        p_equivalent=max(step.p_equivalent or 0 for step in steps),
        std=max(step.std or 0 for step in steps),
        correlation=None,
        bootstrap_low=None,
        bootstrap_high=None,
    )


def compare_to_figure(values: BySeed, figure: float, tolerance: float) -> Comparison:
    """Test whether one printed run could be another draw of ours, within a tolerance.

    The printed figure is one run, so the difference has the standard deviation of a prediction,
    s·√(1 + 1/n). ``p`` is small where the difference is beyond the tolerance, ``p_equivalent``
    where it is within.
    """
    a = np.array([*values.values()])
    n, gain = len(a), float(a.mean() - figure)
    if n < 2 or _is_constant(a):
        return Comparison("prediction", (n,), gain)
    std = float(a.std(ddof=1))
    scale, df = std * math.sqrt(1 + 1 / n), n - 1
    half = stats.t.ppf(0.975, df) * scale
    return Comparison(
        "prediction",
        (n,),
        gain,
        low=gain - half,
        high=gain + half,
        p=float(stats.t.sf((abs(gain) - tolerance) / scale, df)),
        p_equivalent=float(stats.t.sf((tolerance - abs(gain)) / scale, df)),
        std=std,
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction over a family; an untested claim (None) counts with p = 1."""
    adjusted = multipletests([1.0 if p is None else p for p in p_values], method="holm")[1]
    return [
        None if p is None else float(value) for p, value in zip(p_values, adjusted, strict=True)
    ]


def seeds_to_find(effect: float, std: float, alpha: float, power: float, test: str) -> int | None:
    """Seeds per sample that find an effect with a given power.

    Args:
        effect: the true difference, in points, above 0.
        std: standard deviation over seeds.
        alpha: two-sided level of this test; in a family, the family's divided by its size.
        power: of the test.
        test: ``paired``, or Welch's.

    Returns:
        None above ten thousand.
    """
    paired = test == "paired"
    solver = TTestPower() if paired else TTestIndPower()
    # the differences of pairs have √2 times the standard deviation of a sample
    size = effect / (std * math.sqrt(2) if paired else std)
    return _fewest(lambda n: float(solver.power(size, n, alpha)), power)


def seeds_to_rule_out(
    smallest: float, std: float, alpha: float, power: float, test: str
) -> int | None:
    """Seeds per sample that show equivalence with a given power if there is no difference.

    By the noncentral t-distribution, two one-sided tests at ``alpha``; otherwise as
    ``seeds_to_find``. A printed figure is a sample of one.
    """

    def achieved(n: int) -> float:
        if test == "prediction":
            scale, df = std * math.sqrt(1 + 1 / n), n - 1
        else:
            scale, df = std * math.sqrt(2 / n), (n - 1 if test == "paired" else 2 * n - 2)
        margin, critical = smallest / scale, stats.t.ppf(1 - alpha, df)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inside = stats.nct.cdf(-critical, df, -margin) - stats.nct.cdf(critical, df, margin)
        return max(0.0, float(inside)) if math.isfinite(inside) else 1.0

    return _fewest(achieved, power)


def _fewest(achieved: Callable[[int], float], power: float) -> int | None:
    """The smallest number of seeds, two or more, that reaches the power (by bisection)."""
    high = 2
    while achieved(high) < power:
        if high >= MAX_SEEDS:
            return None
        high = min(2 * high, MAX_SEEDS)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if achieved(middle) >= power else (middle, high)
    return max(high, 2)


def best_of(samples: Sequence[tuple[float, float, int]]) -> int | None:
    """The index of the sample that beats every other: Welch's tests, Holm's correction, 0.05.

    Args:
        samples: mean, standard deviation and n of each; larger is better.

    Returns:
        None where no sample does, or where a pair of samples has no deviation to test with.
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
