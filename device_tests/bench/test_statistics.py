"""Ratios: what they ignore, what they see, and how often the interval is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_tests.bench.statistics import mean_interval, paired_ratio, unpaired_ratio

times = st.floats(0.01, 1000.0)
pairs = st.lists(st.tuples(times, times), min_size=2, max_size=12)


@given(pairs, st.lists(st.floats(0.2, 5.0), min_size=12, max_size=12), st.floats(0.1, 10.0))
def test_what_both_share_in_a_repetition_does_not_count(
    samples: list[tuple[float, float]], drift: list[float], scale: float
) -> None:
    """A device that gets slower from one repetition to the next, however much, leaves the interval as it is."""
    a, b = zip(*samples, strict=True)
    plain = paired_ratio(a, b)
    drifted = paired_ratio(
        [x * d * scale for x, d in zip(a, drift, strict=False)], [x * d for x, d in zip(b, drift, strict=False)]
    )
    for one, other in ((plain.value, drifted.value), (plain.low, drifted.low), (plain.high, drifted.high)):
        assert math.log(other) - math.log(scale) == pytest.approx(math.log(one), abs=1e-6)


@given(pairs)
def test_exchanging_the_sides_inverts_the_ratio(samples: list[tuple[float, float]]) -> None:
    a, b = zip(*samples, strict=True)
    for ratio in (paired_ratio, unpaired_ratio):
        one, other = ratio(a, b), ratio(b, a)
        assert one.value * other.value == pytest.approx(1)
        assert one.low * other.high == pytest.approx(1)
        assert one.low <= one.value <= one.high


@given(st.lists(times, min_size=2, max_size=9))
def test_nothing_differs_from_itself(samples: list[float]) -> None:
    ratio = paired_ratio(samples, samples)
    assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)
    assert ratio.verdict == "no difference shown"


def test_the_interval_holds_the_truth_19_times_in_20() -> None:
    """4,000 runs of 5 repetitions with a true ratio of .9, noise of 5 % and a common drift of 30 %."""
    draw = np.random.default_rng(0)
    drift = np.exp(draw.normal(0, 0.3, (4000, 5)))
    a, b = (factor * drift * np.exp(draw.normal(0, 0.05, (4000, 5))) for factor in (0.9, 1.0))
    hits = [r.low <= 0.9 <= r.high for r in map(paired_ratio, a, b)]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.012)
    loose = [r.low <= 0.9 <= r.high for r in map(unpaired_ratio, a, b)]
    assert np.mean(loose) > 0.94, "without pairs the interval is wider, not wrong"


def test_against_hand_worked_numbers() -> None:
    """ln a/b = -.2, -.1, 0: mean -.1, standard error .1 / sqrt(3), t(2, .975) = 4.3027."""
    ratio = paired_ratio([math.exp(-0.2), math.exp(-0.1), 1.0], [1.0, 1.0, 1.0])
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert ratio.low == pytest.approx(math.exp(-0.1 - half), rel=1e-4)
    assert ratio.high == pytest.approx(math.exp(-0.1 + half), rel=1e-4)
    assert ratio.pairs == 3


@pytest.mark.parametrize(
    ("a", "verdict"),
    [([0.5, 0.51, 0.49], "faster"), ([2.0, 2.1, 1.9], "slower"), ([0.5, 1.0, 2.0], "no difference shown")],
)
def test_verdicts(a: list[float], verdict: str) -> None:
    assert paired_ratio(a, [1.0, 1.0, 1.0]).verdict == verdict


def test_too_few_samples_have_no_interval() -> None:
    assert paired_ratio([1.0], [2.0]).verdict == "too few samples"
    assert unpaired_ratio([1.0], [2.0, 3.0]).verdict == "too few samples"
    assert math.isnan(mean_interval([3.0])[1])
    with pytest.raises(ValueError, match="paired samples"):
        paired_ratio([1.0], [1.0, 2.0])
