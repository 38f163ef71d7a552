"""Intervals: of a share (Wilson 1927), and of anything over prompts by the bootstrap (all resamples at once, as one
matrix product).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
_VALUES_AT_ONCE = 10_000_000
_FEW_VALUES = 64
_MOST_VALUES = 200_000_000  # past it fewer resamples are drawn: with so many prompts they hardly differ


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def mean_interval(values: Floats, *, samples: int, confidence: float, seed: int) -> Interval:
    """The mean of `values` [n] (n >= 1) with its interval."""
    if np.ptp(values) == 0 and set(np.unique(values)) <= {0.0, 1.0}:
        return _wilson(float(values[0]), len(values), confidence)
    means = _resampled_few(values, samples, seed)
    if means is None:
        means = resampled_means(values[:, None], samples, seed)[:, 0]
    low, high = _bounds(means, len(values), confidence)
    return Interval(float(values.mean()), low, high)


def ratio_interval(numerators: Floats, denominators: Floats, *, samples: int, confidence: float,
                   seed: int) -> Interval:
    """sum(numerators) / sum(denominators) [n each], resampled together: for means over tokens of texts."""
    sums = resampled_means(np.stack([numerators, denominators], axis=1), samples, seed)
    low, high = _bounds(sums[:, 0] / sums[:, 1], len(numerators), confidence)
    return Interval(float(numerators.sum() / denominators.sum()), low, high)


def _resampled_few(values: Floats, samples: int, seed: int) -> Floats | None:
    """Means of resamples [samples] where few different values occur, such as yes and no: their counts are multinomial.

    None where there are many.
    """
    different, counts = np.unique(values, return_counts=True)
    if len(different) > _FEW_VALUES:
        return None
    random = np.random.Generator(np.random.PCG64(seed))
    drawn = random.multinomial(len(values), counts / len(values), size=samples)
    return np.asarray(drawn @ different / len(values), dtype=np.float64)


def resampled_means(values: Floats, samples: int, seed: int) -> Floats:
    """Means of `samples` resamples of the rows of `values` [n, m]: [samples, m]; rows stay together."""
    count = len(values)
    random = np.random.Generator(np.random.PCG64(seed))
    samples = max(1000, min(samples, _MOST_VALUES // count))
    at_once = max(1, min(samples, _VALUES_AT_ONCE // count))
    parts = []
    for first in range(0, samples, at_once):
        size = min(at_once, samples - first)
        drawn = random.integers(count, size=(size, count), dtype=np.int64)
        drawn += np.arange(size)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        parts.append(weights @ values / count)
    return np.concatenate(parts)


@lru_cache(maxsize=64)
def _expanded_tail(count: int, confidence: float) -> float:
    """The share to cut off at each end so that the interval has the t distribution's width."""
    if count < 2:
        return 0.0
    quantile = stats.t.ppf((1 + confidence) / 2, count - 1)
    return float(stats.norm.cdf(-quantile * np.sqrt(count / (count - 1))))


def _bounds(estimates: Floats, count: int, confidence: float) -> tuple[float, float]:
    tail = _expanded_tail(count, confidence)
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)


def _wilson(share: float, count: int, confidence: float) -> Interval:
    """All equal to 0 or 1: resampling cannot vary, the Wilson score interval can."""
    z2 = float(stats.norm.ppf((1 + confidence) / 2)) ** 2
    reach = z2 / (count + z2)
    return Interval(share, 0.0, reach) if share == 0 else Interval(share, 1 - reach, 1.0)


def share_interval(count: int, of: int, confidence: float = 0.95) -> dict[str, float]:
    """A share with its Wilson score interval (Wilson 1927); NaN and the whole range without any case."""
    if not of:
        return {"value": math.nan, "low": 0.0, "high": 1.0}
    z = float(stats.norm.ppf((1 + confidence) / 2))
    share = count / of
    middle = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    reach = z / (1 + z**2 / of) * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    low = 0.0 if count == 0 else middle - reach
    high = 1.0 if count == of else middle + reach
    return {"value": share, "low": low, "high": high}
