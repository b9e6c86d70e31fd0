"""Ratios of times with confidence intervals.

Times are positive and noise on them is multiplicative (clock, heat, other work), so everything is done on logarithms.
Of two systems that were measured in turn, repetition i of one and repetition i of the other shared their conditions:
the differences d_i = ln a_i - ln b_i lose what both had in common, and

    ratio = exp(mean d +- t(n - 1, .975) * s_d / sqrt(n))                         (Student, Biometrika 1908, paired)

is the ratio of their geometric means with a 95 % interval. Across runs nothing is paired; there the interval is
Welch's, on the logarithms, with his degrees of freedom (Biometrika 1947).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """a over b with its interval; NaN bounds where there are too few samples. pairs: n, 0 if nothing was paired."""

    value: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> str:
        """Of a against b, times: lower is faster."""
        if math.isnan(self.low):
            return "too few samples"
        if self.high < 1:
            return "faster"
        return "slower" if self.low > 1 else "no difference shown"


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """a[i] and b[i] > 0 were measured next to each other. Raises ValueError for unequal lengths or none."""
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired samples are needed, not {len(a)} and {len(b)}")
    d = np.log(a) - np.log(b)
    n = len(d)
    if n < 2:
        return Ratio(float(np.exp(d.mean())), math.nan, math.nan, n)
    return _interval(float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n), n - 1, n)


def unpaired_ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Independent samples > 0 of each. Raises ValueError for none."""
    if not len(a) or not len(b):
        raise ValueError("samples of both are needed")
    x, y = np.log(a), np.log(b)
    difference = float(x.mean() - y.mean())
    if len(x) < 2 or len(y) < 2:
        return Ratio(math.exp(difference), math.nan, math.nan, 0)
    u, v = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    spread = float(u + v)
    freedom = spread**2 / float(u**2 / (len(x) - 1) + v**2 / (len(y) - 1)) if spread > 0 else math.inf
    return _interval(difference, math.sqrt(spread), freedom, 0)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of values > 0 and its interval; NaN bounds for a single one."""
    logs = np.log(values)
    if len(logs) < 2:
        return float(np.exp(logs.mean())), math.nan, math.nan
    ratio = _interval(float(logs.mean()), float(logs.std(ddof=1)) / math.sqrt(len(logs)), len(logs) - 1, 0)
    return ratio.value, ratio.low, ratio.high


def _interval(mean: float, error: float, freedom: float, pairs: int) -> Ratio:
    quantile = 1.959964 if math.isinf(freedom) else float(stdtrit(freedom, (1 + LEVEL) / 2))
    half = quantile * error
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), pairs)
