"""Per-cluster results of one policy on one task, its metrics, and paired differences between two policies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.choices import EncodedItem
from evaluation.perplexity import Window
from evaluation.statistics import Estimate, at_equal_bits, clustered_mean, mean
from evaluation.store import ItemStore


@dataclass(frozen=True)
class Measurement:
    """Clusters are windows of text or items.

    nll, counts: float [W], summed loss (nats) and number of the tokens it covers: every position from 1 on of a
    window, the right choice of an item. bits, lengths: float [S], stored bits per value at the end of each sequence
    that was scored, and its tokens. tiers: [K] tokens in each tier, over all sequences. choice, choice_norm, gold:
    int [W] for items, else None: largest log-likelihood, the same per character, and the right answer.
    """

    nll: np.ndarray
    counts: np.ndarray
    bits: np.ndarray
    lengths: np.ndarray
    tiers: np.ndarray
    choice: np.ndarray | None = None
    choice_norm: np.ndarray | None = None
    gold: np.ndarray | None = None

    @property
    def total_bits(self) -> float:
        """Stored bits per value with every overhead, over all stored tokens."""
        return float(self.bits @ self.lengths / self.lengths.sum())

    @property
    def loss(self) -> Estimate:
        return clustered_mean(self.nll, self.counts)


def of_windows(windows: Sequence[Window], store: ItemStore) -> Measurement:
    """From the records of `score_windows`."""
    records = [store[window.key] for window in windows]
    return Measurement(
        nll=np.array([math.fsum(r["nll"]) for r in records]),
        counts=np.array([len(r["nll"]) for r in records], dtype=float),
        bits=np.array([r["bits"] for r in records]),
        lengths=np.array([len(window.tokens) for window in windows], dtype=float),
        tiers=np.array([r["tiers"] for r in records]).sum(0),
    )


def of_items(items: Sequence[EncodedItem], store: ItemStore) -> Measurement:
    """From the records of `score_items`."""
    records = [store[item.key] for item in items]
    likelihoods = [np.array(r["log_likelihood"]) for r in records]
    pairs = list(zip(items, likelihoods, strict=True))
    return Measurement(
        nll=np.array([-values[item.gold] for item, values in pairs]),
        counts=np.array([len(item.choices[item.gold]) for item in items], dtype=float),
        bits=np.array([bits for r in records for bits in r["bits"]]),
        lengths=np.array([len(item.query) + len(c) for item in items for c in item.choices], dtype=float),
        tiers=np.array([t for r in records for t in r["tiers"]]).sum(0),
        choice=np.array([int(values.argmax()) for values in likelihoods]),
        choice_norm=np.array([int((values / np.array(item.lengths)).argmax()) for item, values in pairs]),
        gold=np.array([item.gold for item in items]),
    )


def metrics(m: Measurement) -> dict[str, Any]:
    """Loss in nats a token, perplexity, bits; accuracies in [0, 1] for items."""
    loss = m.loss
    out: dict[str, Any] = {
        "n": len(m.nll),
        "tokens": int(m.counts.sum()),
        "loss": loss.value,
        "loss_se": loss.se,
        "ppl": math.exp(loss.value),
        "total_bits": m.total_bits,
        "tokens_by_tier": m.tiers.tolist(),
    }
    for name, right in _right(m).items():
        estimate = mean(right)
        out |= {name: estimate.value, f"{name}_se": estimate.se}
    return out


def differences(m: Measurement, reference: Measurement) -> dict[str, float]:
    """m minus reference on the same clusters, with paired standard errors, and the share of equal choices."""
    loss = clustered_mean(m.nll - reference.nll, m.counts)
    out = {"loss_diff": loss.value, "loss_diff_se": loss.se, "ppl_increase": math.expm1(loss.value)}
    theirs = _right(reference)
    for name, right in _right(m).items():
        estimate = mean(right - theirs[name])
        out |= {f"{name}_diff": estimate.value, f"{name}_diff_se": estimate.se}
    if m.choice is not None and m.choice_norm is not None:
        out["same_choice"] = float((m.choice == reference.choice).mean())
        out["same_choice_norm"] = float((m.choice_norm == reference.choice_norm).mean())
    return out


def against_static(
    m: Measurement, fp16: Measurement, low: tuple[str, Measurement], high: tuple[str, Measurement]
) -> dict[str, Any]:
    """m minus a static cache of equal total bits, interpolated between two widths (`statistics.at_equal_bits`)."""
    bits = (low[1].total_bits, high[1].total_bits)
    damage = [clustered_mean(s.nll - fp16.nll, fp16.counts).value for s in (low[1], high[1])]
    equal = at_equal_bits(m.total_bits, (bits[0], damage[0]), (bits[1], damage[1]), log=True)
    mine = clustered_mean(m.nll - fp16.nll, fp16.counts).value
    static = equal.low * (low[1].nll - fp16.nll) + equal.high * (high[1].nll - fp16.nll)
    out: dict[str, Any] = {
        "static_reference": {"narrow": low[0], "wide": high[0], "narrow_bits": bits[0], "wide_bits": bits[1],
                             "rule": equal.rule},
        "loss_diff_static": mine - equal.value,
        "loss_diff_static_se": clustered_mean(m.nll - fp16.nll - static, fp16.counts).se,
    }  # fmt: skip
    narrow, wide = _right(low[1]), _right(high[1])
    for name, right in _right(m).items():
        at = at_equal_bits(m.total_bits, (bits[0], narrow[name].mean()), (bits[1], wide[name].mean()), log=False)
        estimate = mean(right - at.low * narrow[name] - at.high * wide[name])
        out |= {f"{name}_diff_static": estimate.value, f"{name}_diff_static_se": estimate.se}
    return out


def _right(m: Measurement) -> dict[str, np.ndarray]:
    """1 where an item's choice is right, by metric; empty for text."""
    if m.gold is None or m.choice is None or m.choice_norm is None:
        return {}
    return {"acc": np.equal(m.choice, m.gold) * 1.0, "acc_norm": np.equal(m.choice_norm, m.gold) * 1.0}
