"""Fitting and judging the controller's importance score. Everything here works on pooled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adakv_model.controller import HIDDEN, ImportanceScorer
from adakv_model.features import FEATURES
from adakv_model.quantizer import GAUSSIAN_MSE, WIDE_MSE

LOSSES = ("exponential", "mse", "huber")
TIER_BITS = (2, 3, 4, 8)
MSE = {**GAUSSIAN_MSE, 8: WIDE_MSE[8]}
QUANTILES = 257  # of a score, kept in the tables


@dataclass(frozen=True)
class Recipe:
    """How a scorer is fitted. loss: "exponential" is w exp(-s) + s, the negative log-likelihood of damage w ~
    Exponential with mean exp(s), so that s estimates log E[w | features]; "mse" and "huber" regress log w.
    columns: the features that the scorer may use; the others get a constant."""

    loss: str = "exponential"
    columns: tuple[int, ...] = tuple(range(len(FEATURES)))
    steps: int = 600
    rate: float = 0.01
    seed: int = 0


def fit_scorer(features: Tensor, damage: Tensor, recipe: Recipe) -> ImportanceScorer:
    """Full-batch Adam with a cosine schedule. features: float32 [n, 8]; damage: float32 [n] > 0.

    Returns a scorer of raw features: the standardisation is folded into its first layer.
    """
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    used = torch.zeros(features.shape[1])
    used[list(recipe.columns)] = 1.0
    inputs = (features - mean) / std * used
    offset = damage.mean().log()
    target = damage.clamp(min=float(damage.mean()) * 1e-6) / damage.mean()
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        scorer = ImportanceScorer(HIDDEN)
    torch.nn.init.zeros_(scorer.score.bias)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=recipe.rate, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for _ in range(recipe.steps):
        optimizer.zero_grad()
        _loss(recipe.loss, scorer(inputs)[:, 0], target).backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        weight = scorer.hidden.weight * used / std
        scorer.hidden.bias.sub_(weight @ mean)
        scorer.hidden.weight.copy_(weight)
        scorer.score.bias.add_(offset)
    return scorer.requires_grad_(False)


def _loss(name: str, score: Tensor, target: Tensor) -> Tensor:
    if name == "exponential":
        return (target * torch.exp(-score) + score).mean()
    if name == "mse":
        return F.mse_loss(score, target.log())
    return F.huber_loss(score, target.log())


def allocate(score: Tensor, mean_bits: float) -> Tensor:
    """Widths int64 [n] out of TIER_BITS that minimise the sum of exp(score) * MSE(bits) at an average of
    `mean_bits`.

    Greedy by gain per bit, which is optimal because MSE is convex in bits over the tiers.
    """
    widths = torch.tensor(TIER_BITS)
    error = torch.tensor([MSE[b] for b in TIER_BITS])
    cost = widths.diff()
    gain = (-error.diff() / cost).log() + score.unsqueeze(1)  # [n, tiers - 1]
    order = gain.flatten().argsort(descending=True, stable=True)
    spent = cost.repeat(len(score))[order].cumsum(0)
    taken = torch.zeros(gain.numel(), dtype=torch.int64)
    taken[order] = (spent <= round((mean_bits - TIER_BITS[0]) * len(score))).long()
    return widths[taken.view(gain.shape).cumprod(1).sum(1)]


def expected_loss(damage: Tensor, bits: Tensor) -> float:
    """Sum of damage * MSE(bits)."""
    table = torch.zeros(17, dtype=torch.float64)
    for width in TIER_BITS:
        table[width] = MSE[width]
    return float((damage.double() * table[bits]).sum())


def static_loss(damage: Tensor, mean_bits: float) -> float:
    """The same width for every token; between two widths, each for its share of the tokens regardless of damage."""
    low = int(mean_bits)
    below, above = (expected_loss(damage, torch.full(damage.shape, b)) for b in (low, min(low + 1, 4)))
    return below + (mean_bits - low) * (above - below)


def by_window(score: Tensor, damage: Tensor, windows: int, mean_bits: float = 3.0) -> list[float]:
    """Damage over static in each of `windows` equal runs of tokens, under one allocation over all of them."""
    parts = zip(allocate(score, mean_bits).chunk(windows), damage.chunk(windows), strict=True)
    return [expected_loss(d, bits) / static_loss(d, mean_bits) for bits, d in parts]


def judge(score: Tensor, damage: Tensor, oracle: Tensor, mean_bits: float = 3.0, seed: int = 0) -> dict[str, float]:
    """Damage under the score's allocation, relative to the same width for every token, against random and
    oracle.

    damage: the labels to be judged on; oracle: independent labels of the same tokens, which the oracle
    ranks by. captured: the score's gain over static as a share of what the lucky oracle, which sees
    `damage` itself, gains.
    """
    static = static_loss(damage, mean_bits)
    bits = allocate(score, mean_bits)
    shuffled = bits[torch.randperm(len(bits), generator=torch.Generator().manual_seed(seed))]
    ratios = {
        "score": expected_loss(damage, bits),
        "random": expected_loss(damage, shuffled),
        "oracle_other_sample": expected_loss(damage, allocate(oracle.clamp(min=1e-12).log(), mean_bits)),
        "oracle": expected_loss(damage, allocate(damage.clamp(min=1e-12).log(), mean_bits)),
    }
    ratios = {name: value / static for name, value in ratios.items()}
    return {
        "spearman": spearman(score, damage),
        "mean_bits": float(bits.float().mean()),
        **{f"{name}_over_static": value for name, value in ratios.items()},
        "captured": (1 - ratios["score"]) / (1 - ratios["oracle"]),
    }


def quantiles(score: Tensor, count: int = QUANTILES) -> Tensor:
    """`count` equally spaced quantiles float32, minimum and maximum included."""
    ordered = score.sort().values
    at = torch.linspace(0, len(ordered) - 1, count, dtype=torch.float64)
    low = at.floor().long()
    high = (low + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], (at - low).float())


def spearman(x: Tensor, y: Tensor) -> float:
    """Rank correlation, ties averaged."""
    return float(torch.corrcoef(torch.stack((_ranks(x), _ranks(y))))[0, 1])


def _ranks(x: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]


def without(name: str) -> tuple[int, ...]:
    return tuple(i for i, feature in enumerate(FEATURES) if feature != name)


def only(names: Sequence[str]) -> tuple[int, ...]:
    return tuple(FEATURES.index(name) for name in names)
