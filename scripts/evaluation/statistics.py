"""Means with standard errors, paired differences, and the comparison at equal bits.

Losses of neighbouring tokens are correlated, so tokens are grouped into clusters (windows of text, items), and the
standard error is the cluster-robust one of a ratio of sums: with cluster sums s, sizes n and m = sum s / sum n,

    se = sqrt(W / (W - 1) * sum (s_w - m n_w)^2) / sum n        (Cochran, Sampling Techniques, 1977, section 6)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error (NaN with fewer than two clusters)."""

    value: float
    se: float


def clustered_mean(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """Mean over everything counted. sums, counts: float [W], one entry a cluster."""
    total = float(counts.sum())
    value = float(sums.sum()) / total
    clusters = len(sums)
    if clusters < 2:
        return Estimate(value, math.nan)
    residual = sums - value * counts
    return Estimate(value, math.sqrt(clusters / (clusters - 1) * float(residual @ residual)) / total)


def mean(values: np.ndarray) -> Estimate:
    """Mean of independent values [n]."""
    return clustered_mean(np.asarray(values, dtype=float), np.ones(len(values)))


@dataclass(frozen=True)
class EqualBits:
    """A static cache between two widths: weights of the narrower and the wider one, for per-cluster losses.

    `value` is the interpolated quantity; `low` and `high` multiply the per-cluster values of the two policies and
    give its first-order dependence on them, which is what a paired standard error needs.
    """

    value: float
    low: float
    high: float
    rule: str


def at_equal_bits(bits: float, low: tuple[float, float], high: tuple[float, float], *, log: bool) -> EqualBits:
    """What a static cache would lose at `bits`, between (bits, loss difference to fp16) of two static widths.

    log: quantization damage falls exponentially with width, so its logarithm is interpolated; that is lower, hence
    stricter towards the policy compared, than the chord. Where a difference is not positive, or log is False (for
    accuracies), the chord is used. Outside the two widths the nearer one stands alone.
    """
    (bits_low, loss_low), (bits_high, loss_high) = low, high
    share = 1.0 if bits_high <= bits_low else float(np.clip((bits - bits_low) / (bits_high - bits_low), 0.0, 1.0))
    if share in (0.0, 1.0):
        return EqualBits(loss_high if share else loss_low, 1.0 - share, share, "nearest width")
    if not log or min(loss_low, loss_high) <= 0:
        return EqualBits((1 - share) * loss_low + share * loss_high, 1 - share, share, "linear in bits")
    value = math.exp((1 - share) * math.log(loss_low) + share * math.log(loss_high))
    return EqualBits(value, (1 - share) * value / loss_low, share * value / loss_high, "log-linear in bits")


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson, JASA 1927). (NaN, NaN) without trials."""
    if trials == 0:
        return math.nan, math.nan
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
