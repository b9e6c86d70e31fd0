"""Statistics of the evaluation against hand computations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evaluation.measurement import Measurement, against_static, differences, metrics
from evaluation.results import with_error
from evaluation.statistics import at_equal_bits, clustered_mean, mean, wilson


def measurement(nll: list[float], counts: list[float], bits: float = 4.0, **extra: Any) -> Measurement:
    clusters = len(nll)
    return Measurement(
        nll=np.array(nll), counts=np.array(counts), bits=np.full(clusters, bits), lengths=np.ones(clusters),
        tiers=np.zeros(1, dtype=int), **extra,
    )  # fmt: skip


def test_standard_error_of_clusters_by_hand() -> None:
    # mean = 12 / 6 = 2; residuals 1 - 2 * 1 = -1, 5 - 2 * 2 = 1, 6 - 2 * 3 = 0; se = sqrt(3 / 2 * 2) / 6
    estimate = clustered_mean(np.array([1.0, 5.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert estimate.value == pytest.approx(2.0)
    assert estimate.se == pytest.approx(math.sqrt(3.0) / 6)


@pytest.mark.parametrize("se", [None, math.nan, clustered_mean(np.array([3.0]), np.array([2.0])).se])
def test_what_has_no_standard_error_is_shown_without(se: float | None) -> None:
    assert with_error(1.5, se, 2) == "1.50"
    assert with_error(1.5, 0.25, 2, sign="+") == "+1.50 ± 0.25"


def test_standard_error_of_equal_clusters_is_that_of_the_mean() -> None:
    values = np.array([0.0, 1.0, 1.0, 4.0])
    assert mean(values).se == pytest.approx(values.std(ddof=1) / 2)


def test_one_cluster_has_no_standard_error() -> None:
    assert math.isnan(clustered_mean(np.array([3.0]), np.array([2.0])).se)


def test_paired_error_ignores_what_both_policies_share() -> None:
    """Windows differ by whole nats, the policies by 0.1 on each token of every window."""
    counts = [10.0, 20.0, 30.0]
    reference = measurement([30.0, 20.0, 120.0], counts)
    policy = measurement([31.0, 22.0, 123.0], counts)
    out = differences(policy, reference)
    assert out["loss_diff"] == pytest.approx(0.1)
    assert out["loss_diff_se"] == pytest.approx(0.0, abs=1e-12)
    assert metrics(policy)["loss_se"] > 0.3


def test_paired_accuracy_by_hand() -> None:
    gold = np.array([0, 1, 1, 0])
    right: dict[str, Any] = {"choice": np.array([0, 1, 0, 0]), "choice_norm": np.array([0, 1, 1, 0]), "gold": gold}
    worse: dict[str, Any] = {"choice": np.array([1, 1, 0, 0]), "choice_norm": np.array([1, 0, 1, 0]), "gold": gold}
    ones = [1.0] * 4
    out = differences(measurement(ones, ones, **worse), measurement(ones, ones, **right))
    assert (out["acc_diff"], out["acc_norm_diff"]) == (-0.25, -0.5)
    assert out["acc_norm_diff_se"] == pytest.approx(np.array([-1.0, -1.0, 0.0, 0.0]).std(ddof=1) / 2)
    assert (out["same_choice"], out["same_choice_norm"]) == (0.75, 0.5)


def test_damage_is_interpolated_exponentially_between_widths() -> None:
    """Halfway between 0.16 at 3 bits and 0.01 at 5 bits lies their geometric mean."""
    equal = at_equal_bits(4.0, (3.0, 0.16), (5.0, 0.01), log=True)
    assert equal.value == pytest.approx(0.04)
    # The weights are the value's derivatives with respect to the two losses.
    step = 1e-6
    moved = at_equal_bits(4.0, (3.0, 0.16 + step), (5.0, 0.01 - step), log=True)
    assert (moved.value - equal.value) / step == pytest.approx(equal.low - equal.high, rel=1e-3)


@pytest.mark.parametrize(("bits", "value"), [(2.0, 0.5), (3.0, 0.5), (6.0, 0.1), (9.0, 0.1)])
def test_outside_the_widths_the_nearer_one_stands(bits: float, value: float) -> None:
    assert at_equal_bits(bits, (3.0, 0.5), (5.0, 0.1), log=True).value == value


def test_a_policy_that_mixes_windows_of_two_widths_is_no_better_than_static() -> None:
    """Its loss is the chord between the widths, and the static curve below it."""
    counts = [8.0] * 4
    fp16 = measurement([8.0, 9.0, 10.0, 11.0], counts, bits=16)
    narrow = measurement([12.0, 13.0, 14.0, 15.5], counts, bits=3)
    wide = measurement([8.5, 9.5, 10.5, 11.0], counts, bits=5)
    half = measurement([10.25, 11.25, 12.25, 13.25], counts, bits=4)
    out = against_static(half, fp16, ("static-3", narrow), ("static-5", wide))
    assert out["loss_diff_static"] > 0
    assert out["static_reference"]["rule"] == "log-linear in bits"
    itself = against_static(wide, fp16, ("static-3", narrow), ("static-5", wide))
    assert itself["loss_diff_static"] == pytest.approx(0)
    assert itself["loss_diff_static_se"] == pytest.approx(0)


def test_wilson_interval() -> None:
    low, high = wilson(9, 10)  # Wilson 1927: (centre 0.78895) -+ 0.19266
    assert (low, high) == (pytest.approx(0.5958, abs=1e-3), pytest.approx(0.9821, abs=1e-3))
    assert math.isnan(wilson(0, 0)[0])
