"""From a bit budget to a cache plan: unit tables, tier capacities and the controller's thresholds.

The loss added by storing token t in tier k is modelled as w_t D_k with w_t = exp(score) the token's importance and
D_k = sum_u s_u MSE(bits[u, k]) / sum_u s_u over the units' sensitivities. Minimising sum_t w_t D_k(t) + lambda
c_k(t) (c_k: bits of a row) gives one threshold on the score between neighbouring tiers; lambda is set so that the
expected size, over the calibrated score distribution, meets the budget. Greedy allocation over the convex hull is
optimal up to one step (Shoham and Gersho, "Efficient bit allocation", IEEE Trans. ASSP 1988).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from adakv_model.config import LlamaConfig
from adakv_model.errors import UserError
from adakv_model.plan import CachePlan
from adakv_model.quantizer import GAUSSIAN_MSE, SCALE_BYTES
from adakv_model.tables import CalibrationTables

POLICIES = ("adaptive", "static-2", "static-3", "static-4", "static-8", "fp16")
ADAPTIVE_TIERS = (2, 3, 4, 8, 16)
UNIT_WIDTHS = (2, 3, 4, 8)  # widths a unit may take inside the tiers below 8 bits

DEFAULT_CONTEXT, DEFAULT_WINDOW, DEFAULT_BITS = 2048, 32, 3.5
DEFAULT_WINDOW_BITS = 8


@dataclass(frozen=True)
class CacheOptions:
    """What a user asks of the cache. kv_bits: allocated bits per value, everything included (adaptive only)."""

    context: int = DEFAULT_CONTEXT
    window: int = DEFAULT_WINDOW
    policy: str = "adaptive"
    kv_bits: float | None = None
    window_bits: int | None = None
    chunk: int | None = None

    def check(self, config: LlamaConfig) -> None:
        """Raise UserError for options no cache can satisfy."""
        if self.policy not in POLICIES:
            raise UserError(f"unknown --kv {self.policy!r}: one of {', '.join(POLICIES)}")
        if self.policy != "adaptive" and self.kv_bits is not None:
            raise UserError(f"--kv-bits is the budget of --kv adaptive; --kv {self.policy} has a fixed width")
        if self.window < 1:
            raise UserError(f"--window {self.window} must be at least 1")
        if self.window_bits not in (None, 8, 16):
            raise UserError(f"--window-bits {self.window_bits} must be 8 or 16")
        if self.context < self.window + 2:
            raise UserError(f"--context {self.context} must be at least --window + 2 = {self.window + 2}")
        if self.context > config.max_position_embeddings:
            raise UserError(
                f"--context {self.context} is more than the {config.max_position_embeddings} positions the model"
                " was trained for: choose a smaller one"
            )
        if self.chunk is not None and not 1 <= self.chunk <= self.window:
            raise UserError(f"--prefill-chunk {self.chunk} must lie between 1 and --window ({self.window})")


@dataclass(frozen=True)
class PlannedCache:
    """A plan and the score thresholds between its tiers (rising, one fewer than tiers)."""

    plan: CachePlan
    thresholds: tuple[float, ...]


def plan_cache(config: LlamaConfig, tables: CalibrationTables, options: CacheOptions) -> PlannedCache:
    """The cache for these options. Raises UserError where the budget is out of reach."""
    options.check(config)
    tables.check(config)
    if options.policy != "adaptive":
        return PlannedCache(_static_plan(config, tables, options), ())
    target = DEFAULT_BITS if options.kv_bits is None else options.kv_bits
    sensitivity = tables.sensitivity.double().numpy()
    unit_bits = np.stack([allocate_unit_bits(sensitivity, b) for b in ADAPTIVE_TIERS], axis=-1)
    scores = _Scores(tables.score_quantiles.double().numpy())
    costs = tier_costs(unit_bits, config.head_dim)
    window_bits = options.window_bits or DEFAULT_WINDOW_BITS
    damages = tier_damages(np.minimum(unit_bits, window_bits), sensitivity)  # a tier cannot undo the window's loss
    base = _base_plan(config, tables, options, ADAPTIVE_TIERS, unit_bits, chunk=max(1, options.window // 2))
    low, high = (_with_all_in(base, k).bits_per_value for k in (0, len(ADAPTIVE_TIERS) - 1))
    if not low <= target <= high:
        bounds = f"{math.ceil(low * 100) / 100:.2f} and {math.floor(high * 100) / 100:.2f}"
        raise UserError(
            f"--kv-bits {target:g} is impossible at context {options.context} with a window of {options.window}:"
            f" choose between {bounds} (sink, window, scales and bookkeeping included)"
        )
    tokens = base.stored_in_tiers
    mean_cost = (target - low) * base.values / (tokens * base.values_per_token) + costs[0]
    thresholds = solve_thresholds(scores, costs, damages, mean_cost)
    capacities = _integer_capacities(scores.shares(thresholds), tokens)
    plan = _fit(replace(base, capacities=capacities), target)
    return PlannedCache(plan, tuple(float(t) for t in thresholds))


def allocate_unit_bits(sensitivity: np.ndarray, mean_bits: float) -> np.ndarray:
    """Widths of every unit with the given mean and a small sum s_u MSE(b_u). Same shape as `sensitivity`.

    Greedy in gain per bit: optimal but for what one step from 4 to 8 bits that no longer fits leaves over.
    Means of 8 bits and more are uniform: beyond 8 bits quantization noise is below the fp16 activations'.
    """
    if mean_bits >= UNIT_WIDTHS[-1]:
        return np.full(sensitivity.shape, int(mean_bits))
    flat = sensitivity.reshape(-1)
    steps = []
    for narrow, wide in pairwise(UNIT_WIDTHS):
        gain = (GAUSSIAN_MSE[narrow] - GAUSSIAN_MSE[wide]) / (wide - narrow)
        steps += [(-s * gain, u, wide, wide - narrow) for u, s in enumerate(flat)]
    bits, room = np.full(flat.shape, UNIT_WIDTHS[0]), round((mean_bits - UNIT_WIDTHS[0]) * flat.size)
    for _, unit, width, cost in sorted(steps):
        if cost <= room and bits[unit] < width:
            bits[unit] = width
            room -= cost
    return bits.reshape(sensitivity.shape)


def tier_costs(unit_bits: np.ndarray, head_dim: int) -> np.ndarray:
    """Mean bits per value of a token's rows in each tier, scales included: [K]."""
    return unit_bits.reshape(-1, unit_bits.shape[-1]).mean(0) + 8 * SCALE_BYTES / head_dim


def tier_damages(unit_bits: np.ndarray, sensitivity: np.ndarray) -> np.ndarray:
    """Sensitivity-weighted relative quantization error of each tier: [K]."""
    error = np.vectorize(GAUSSIAN_MSE.__getitem__)(unit_bits)
    weights = sensitivity[..., None] / sensitivity.sum()
    return (error * weights).reshape(-1, unit_bits.shape[-1]).sum(0)


class _Scores:
    """The calibrated distribution of the controller's score, from equally spaced quantiles."""

    def __init__(self, quantiles: np.ndarray) -> None:
        self.quantiles = quantiles

    def below(self, score: np.ndarray) -> np.ndarray:
        """Share of tokens with a lower score."""
        return np.interp(score, self.quantiles, np.linspace(0, 1, self.quantiles.size))

    def shares(self, thresholds: np.ndarray) -> np.ndarray:
        """Share of tokens in each tier: [K]."""
        return np.diff(np.concatenate(([0.0], self.below(thresholds), [1.0])))


def solve_thresholds(scores: _Scores, costs: np.ndarray, damages: np.ndarray, mean_cost: float) -> np.ndarray:
    """Rising thresholds [K - 1] whose expected bits per value are `mean_cost`."""
    slopes = np.diff(costs) / np.maximum(-np.diff(damages), 1e-30)  # bits paid per unit of damage avoided
    offsets = np.maximum.accumulate(np.log(slopes))
    low, high = scores.quantiles[0] - offsets[-1] - 1, scores.quantiles[-1] - offsets[0] + 1
    for _ in range(60):
        middle = (low + high) / 2
        if float(scores.shares(offsets + middle) @ costs) > mean_cost:
            low = middle
        else:
            high = middle
    return offsets + high


def _integer_capacities(shares: np.ndarray, tokens: int) -> tuple[int, ...]:
    """Shares of `tokens` as whole numbers (largest remainders)."""
    exact = shares * tokens
    whole = np.floor(exact).astype(int)
    for k in np.argsort(whole - exact, kind="stable")[: tokens - int(whole.sum())]:
        whole[k] += 1
    return tuple(int(n) for n in whole)


def _fit(plan: CachePlan, target: float) -> CachePlan:
    """Lower single tokens until everything allocated, alignment included, is within the target."""
    while plan.bits_per_value > target:
        capacities = list(plan.capacities)
        donor = max(k for k in range(1, plan.n_tiers) if capacities[k] > 0)
        capacities[donor] -= 1
        capacities[donor - 1] += 1
        plan = replace(plan, capacities=tuple(capacities))
    return plan


def _with_all_in(plan: CachePlan, tier: int) -> CachePlan:
    capacities = tuple(plan.stored_in_tiers if k == tier else 0 for k in range(plan.n_tiers))
    return replace(plan, capacities=capacities)


def _static_plan(config: LlamaConfig, tables: CalibrationTables, options: CacheOptions) -> CachePlan:
    bits = 16 if options.policy == "fp16" else int(options.policy.split("-")[1])
    if options.window_bits is None:
        options = replace(options, window_bits=16 if bits == 16 else DEFAULT_WINDOW_BITS)
    units = (config.n_layers, config.n_kv_heads, 2, 1)
    return _base_plan(config, tables, options, (bits,), np.full(units, bits), chunk=options.window)


def _base_plan(
    config: LlamaConfig,
    tables: CalibrationTables,
    options: CacheOptions,
    tier_bits: tuple[int, ...],
    unit_bits: np.ndarray,
    chunk: int,
) -> CachePlan:
    """A plan with every tiered token in the first tier."""
    tokens = options.context - 1 - options.window
    return CachePlan(
        context=options.context,
        window=options.window,
        window_bits=options.window_bits or DEFAULT_WINDOW_BITS,
        chunk=options.chunk or chunk,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        n_layers=config.n_layers,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        tier_bits=tier_bits,
        capacities=(tokens, *[0] * (len(tier_bits) - 1)),
        unit_bits=unit_bits,
        scale_modes=tables.scale_modes.long().numpy(),
        policy=options.policy,
    )
