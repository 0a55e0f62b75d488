"""Two samples of seeds compared: tests, intervals, and the seeds that a test would take.

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

FEW = 10  # seeds below which nothing is resampled and no correlation believed
MOST_SEEDS = 10_000
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Comparison:
    """How much better one sample is than another, and how sure that is.

    Attributes:
        test: ``welch``, ``paired``, ``prediction`` or ``order``.
        n: seeds of each.
        gain: difference of the means in points; positive where the claim has it.
        low, high: its 95 % interval, of the test's.
        bootstrap_low, bootstrap_high: the same by BCa bootstrap; None below ten seeds.
        p: two-sided, that there is no difference.
        p_equivalent: of two one-sided tests, that it is as large as what matters.
        deviation: over seeds, of both samples together.
        correlation: of the seeds that both have; None below ten.
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
    deviation: float | None = None
    correlation: float | None = None


def compare(better: BySeed, than: BySeed, smallest: float, *, test: str = "welch") -> Comparison:
    """Compare two samples by Welch's t-test, or by the paired one where that pays.

    Args:
        better: by seed, larger is better.
        than: the other.
        smallest: the difference below which none matters.
        test: ``welch``; ``by_correlation`` pairs by seed from ten common seeds on, where the lower
            end of the correlation's 95 % interval is above 0 and the interval is narrower for it.

    Returns:
        With one seed of either, or no deviation at all, the gain alone.
    """
    a, b = np.array([*better.values()]), np.array([*than.values()])
    bare = Comparison("welch", (len(a), len(b)), float(a.mean() - b.mean()))
    # equal to the last bit is not equal: 79.6 and 79.6 may differ by rounding
    if min(bare.n) < 2 or (_nearly_constant(a) and _nearly_constant(b)):
        return bare
    deviation = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    welch = stats.ttest_ind(a, b, equal_var=False)
    interval = welch.confidence_interval(0.95)
    found = replace(
        bare,
        low=float(interval.low),
        high=float(interval.high),
        p=float(welch.pvalue),
        p_equivalent=float(ttost_ind(a, b, -smallest, smallest, usevar="unequal")[0]),
        deviation=deviation,
    )
    common = sorted(set(better) & set(than))
    paired = len(common) >= FEW and len(common) == len(a) == len(b)
    if paired:
        x, y = (np.array([sample[seed] for seed in common]) for sample in (better, than))
        found = _paired(found, x, y, smallest, use=test == "by_correlation")
        paired = found.test == "paired"
    if min(found.n) >= FEW:
        pair = (x - y,) if paired else (a, b)
        statistic: Callable[..., float] = _mean if paired else _difference
        drawn = stats.bootstrap(pair, statistic, vectorized=True, method="BCa", rng=0)
        low, high = drawn.confidence_interval
        found = replace(found, bootstrap_low=float(low), bootstrap_high=float(high))
    return found


def _nearly_constant(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= 1e-9)


def _mean(values: np.ndarray, axis: int = -1) -> float:
    return np.mean(values, axis=axis)  # type: ignore[no-any-return]


def _difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> float:
    return np.mean(a, axis=axis) - np.mean(b, axis=axis)  # type: ignore[no-any-return]


def _paired(
    found: Comparison, x: np.ndarray, y: np.ndarray, smallest: float, *, use: bool
) -> Comparison:
    """The same with the seeds' correlation, and by pairs where they are to be used and pay."""
    if _nearly_constant(x) or _nearly_constant(y):
        return found
    correlation = stats.pearsonr(x, y)
    found = replace(found, correlation=float(correlation.statistic))
    test = stats.ttest_rel(x, y)
    interval = test.confidence_interval(0.95)
    assert found.low is not None
    assert found.high is not None
    narrower = interval.high - interval.low < found.high - found.low
    if not (use and narrower and correlation.confidence_interval(0.95).low > 0):
        return found
    if _nearly_constant(x - y):
        return found
    return replace(
        found,
        test="paired",
        low=float(interval.low),
        high=float(interval.high),
        p=float(test.pvalue),
        p_equivalent=float(ttost_paired(x, y, -smallest, smallest)[0]),
        deviation=float((x - y).std(ddof=1)) / math.sqrt(2),
    )


def in_order(steps: Sequence[Comparison]) -> Comparison:
    """An order from the comparisons of its neighbours, by intersection and union.

    It holds where every step does: the p-value is the largest of them. Where a step goes the
    other way it is the least of those times the number of steps (Bonferroni). It is equivalent
    where every step is. The gain is that of the weakest step.
    """
    weakest = min(steps, key=lambda step: step.gain)
    n = tuple(min(sizes) for sizes in zip(*(step.n for step in steps), strict=True))
    if any(step.p is None for step in steps):
        return Comparison("order", n, weakest.gain)
    against = [step.p for step in steps if step.gain <= 0 and step.p is not None]
    p = min(1.0, len(steps) * min(against)) if against else max(step.p or 0 for step in steps)
    return replace(
        weakest,
        test="order",
        n=n,
        p=p,
        p_equivalent=max(step.p_equivalent or 0 for step in steps),
        deviation=max(step.deviation or 0 for step in steps),
        correlation=None,
        bootstrap_low=None,
        bootstrap_high=None,
    )


def against_a_figure(values: BySeed, figure: float, tolerance: float) -> Comparison:
    """Whether one printed run could be another draw of ours, within a tolerance.

    The printed figure is one run's, so the difference has a prediction's deviation, s·√(1 + 1/n).
    ``p`` is small where the difference is beyond the tolerance, ``p_equivalent`` where within.
    """
    a = np.array([*values.values()])
    gain = float(a.mean() - figure)
    if len(a) < 2 or _nearly_constant(a):
        return Comparison("prediction", (len(a),), gain)
    deviation = float(a.std(ddof=1))
    scale, df = deviation * math.sqrt(1 + 1 / len(a)), len(a) - 1
    half = stats.t.ppf(0.975, df) * scale
    return Comparison(
        "prediction",
        (len(a),),
        gain,
        low=gain - half,
        high=gain + half,
        p=float(stats.t.sf((abs(gain) - tolerance) / scale, df)),
        p_equivalent=float(stats.t.sf((tolerance - abs(gain)) / scale, df)),
        deviation=deviation,
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction over a family; what has not been tested counts as tested in vain."""
    adjusted = multipletests([1.0 if p is None else p for p in p_values], method="holm")[1]
    return [
        None if p is None else float(value) for p, value in zip(p_values, adjusted, strict=True)
    ]


def seeds_to_find(
    effect: float, deviation: float, alpha: float, power: float, test: str
) -> int | None:
    """Seeds of each sample that find an effect with that power.

    Args:
        effect: the true difference, in points, above 0.
        deviation: over seeds.
        alpha: two-sided level of this one test: over a family, divided by its size.
        power: of the test.
        test: ``paired``, or Welch's.

    Returns:
        None above ten thousand.
    """
    if test == "paired":
        # of the differences, whose deviation is √2 times the one of a sample
        size = effect / (deviation * math.sqrt(2))
        return _fewest(lambda n: float(TTestPower().power(size, n, alpha)), power)
    size = effect / deviation
    return _fewest(lambda n: float(TTestIndPower().power(size, n, alpha)), power)


def seeds_to_rule_out(
    smallest: float, deviation: float, alpha: float, power: float, test: str
) -> int | None:
    """Seeds of each sample that show equivalence with that power where there is no difference.

    By the noncentral t-distribution, two one-sided tests at ``alpha``; otherwise as
    ``seeds_to_find``. Of a printed figure the sample is one, whatever ours is.
    """

    def achieved(n: int) -> float:
        if test == "prediction":
            scale, df = deviation * math.sqrt(1 + 1 / n), n - 1
        else:
            scale, df = deviation * math.sqrt(2 / n), (n - 1 if test == "paired" else 2 * n - 2)
        margin, critical = smallest / scale, stats.t.ppf(1 - alpha, df)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inside = stats.nct.cdf(-critical, df, -margin) - stats.nct.cdf(critical, df, margin)
        return max(0.0, float(inside)) if math.isfinite(inside) else 1.0

    return _fewest(achieved, power)


def _fewest(achieved: Callable[[int], float], power: float) -> int | None:
    """The smallest number of seeds, two or more, that reaches the power."""
    high = 2
    while achieved(high) < power:
        if high >= MOST_SEEDS:
            return None
        high = min(2 * high, MOST_SEEDS)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if achieved(middle) >= power else (middle, high)
    return max(high, 2)


def best_of(samples: Sequence[tuple[float, float, int]]) -> int | None:
    """The sample that is better than every other, by Welch's test with Holm's correction at 0.05.

    Args:
        samples: mean, standard deviation and number of each; larger is better.

    Returns:
        Its place; None where none is, where one has no deviation to test with.
    """
    if len(samples) < 2 or any(n < 2 for *_, n in samples):
        return None
    best = max(range(len(samples)), key=lambda place: samples[place][0])
    p_values = []
    for place, other in enumerate(samples):
        if place != best:
            if max(samples[best][1], other[1]) <= 1e-9:
                return None
            test = stats.ttest_ind_from_stats(*samples[best], *other, equal_var=False)
            p_values.append(float(test.pvalue))
    adjusted = holm(p_values)
    return best if all(p is not None and p < 0.05 for p in adjusted) else None
