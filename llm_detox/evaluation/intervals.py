"""Intervals: of a share (Wilson 1927), and of anything over prompts by the bootstrap (Efron 1979).

Both are our own, though SciPy has them. `scipy.stats.binomtest` gives the same Wilson interval but for the last
digit, at eight milliseconds a share, for it computes a p value first. `scipy.stats.bootstrap` calls the statistic on
resampled columns; here all resamples are one matrix product over rows that stay together, few different values are
resampled by their counts, and the percentile bounds are widened to the t distribution's (the expanded percentile
interval of Hesterberg 2015), for over few prompts plain ones are too narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llm_detox.recipe.evaluation import EvaluationSection
from llm_detox.runs.artifacts import Number

Floats = NDArray[np.float64]
_VALUES_AT_ONCE = 10_000_000
_FEW_VALUES = 64
_MOST_VALUES = 200_000_000  # past it fewer resamples are taken: with so many prompts they hardly differ


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval; NaN is the share of nothing."""

    value: Number
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there was anything to estimate from."""
        return not math.isnan(self.value)


@dataclass(frozen=True)
class Bootstrap:
    """How intervals over prompts are made: number of resamples, confidence, seed of the resampling."""

    samples: int
    confidence: float
    seed: int

    @classmethod
    def of(cls, settings: EvaluationSection, seed: int) -> Bootstrap:
        """As a recipe says."""
        return cls(settings.bootstrap_samples, settings.confidence, seed)


def mean_interval(values: Floats, bootstrap: Bootstrap) -> Interval:
    """The mean of `values` [n] (n >= 1) with its interval; of n equal shares of 0 or 1, Wilson's interval."""
    if np.ptp(values) == 0 and set(np.unique(values)) <= {0.0, 1.0}:
        return _wilson_of_equal_values(float(values[0]), len(values), bootstrap.confidence)
    means = _resampled_counts(values, bootstrap)
    if means is None:
        means = resampled_means(values[:, None], bootstrap)[:, 0]
    return percentile_interval(float(values.mean()), means, len(values), bootstrap.confidence)


def ratio_interval(numerators: Floats, denominators: Floats, bootstrap: Bootstrap) -> Interval:
    """sum(numerators) / sum(denominators) [n each], resampled together: for means over tokens of texts."""
    sums = resampled_means(np.stack([numerators, denominators], axis=1), bootstrap)
    return percentile_interval(float(numerators.sum() / denominators.sum()), sums[:, 0] / sums[:, 1], len(numerators),
                               bootstrap.confidence)


def _resampled_counts(values: Floats, bootstrap: Bootstrap) -> Floats | None:
    """Means of resamples [samples] where few different values occur, such as yes and no: their counts are multinomial.

    None where there are many.
    """
    different, counts = np.unique(values, return_counts=True)
    if len(different) > _FEW_VALUES:
        return None
    random = np.random.Generator(np.random.PCG64(bootstrap.seed))
    resampled = random.multinomial(len(values), counts / len(values), size=bootstrap.samples)
    return np.asarray(resampled @ different / len(values), dtype=np.float64)


def resampled_means(values: Floats, bootstrap: Bootstrap) -> Floats:
    """Means of resamples of the rows of `values` [n, m]: [samples, m]; rows stay together."""
    count = len(values)
    random = np.random.Generator(np.random.PCG64(bootstrap.seed))
    samples = max(1000, min(bootstrap.samples, _MOST_VALUES // count))
    at_once = max(1, min(samples, _VALUES_AT_ONCE // count))
    parts = []
    for first in range(0, samples, at_once):
        size = min(at_once, samples - first)
        rows = random.integers(count, size=(size, count), dtype=np.int64)
        rows += np.arange(size)[:, None] * count
        weights = np.bincount(rows.ravel(), minlength=size * count).reshape(size, count)
        parts.append(weights @ values / count)
    return np.concatenate(parts)


@lru_cache(maxsize=64)
def _expanded_tail(count: int, confidence: float) -> float:
    """The share to cut off at each end so that the interval has the t distribution's width."""
    if count < 2:
        return 0.0
    quantile = stats.t.ppf((1 + confidence) / 2, count - 1)
    return float(stats.norm.cdf(-quantile * np.sqrt(count / (count - 1))))


def percentile_interval(value: float, estimates: Floats, count: int, confidence: float) -> Interval:
    """An estimate with the bounds that its resamples give.

    Args:
        value: the estimate from all `count` rows.
        estimates: [samples] the same from each resample of the rows.
    """
    tail = _expanded_tail(count, confidence)
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _wilson_of_equal_values(share: float, count: int, confidence: float) -> Interval:
    """All equal to 0 or 1: resampling cannot vary, the Wilson score interval can."""
    z2 = float(stats.norm.ppf((1 + confidence) / 2)) ** 2
    reach = z2 / (count + z2)
    return Interval(share, 0.0, reach) if share == 0 else Interval(share, 1 - reach, 1.0)


def share_interval(count: float, of: float, confidence: float = 0.95) -> Interval:
    """A share with its Wilson score interval (Wilson 1927); NaN and the whole range without any case.

    Cases that hang together, such as the continuations of one prompt, are no more evidence than one of them: give
    their share of the number of groups, as `count` of `of` groups. Resampling groups would say too little here: of a
    rare event most resamples hold none.
    """
    if not of:
        return Interval(math.nan, 0.0, 1.0)
    z = float(stats.norm.ppf((1 + confidence) / 2))
    share = count / of
    middle = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    reach = z / (1 + z**2 / of) * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    low = 0.0 if count == 0 else middle - reach
    high = 1.0 if count == of else middle + reach
    return Interval(share, low, high)


def cases_needed(share: float, most: float, confidence: float) -> int:
    """How many cases with this share (below `most`) bring the upper end of its Wilson interval down to `most`."""
    z = float(stats.norm.ppf((1 + confidence) / 2))
    return math.ceil(z**2 * most * (1 - most) / (most - share) ** 2)
