"""Cache policies by name (names.py), for the simulator: ours, and the baselines they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adakv_model.budget import default_budget, plan_cache
from adakv_model.cache_options import CacheOptions
from adakv_model.config import LlamaConfig
from adakv_model.controller import Controller
from adakv_model.errors import UserError
from adakv_model.features import FEATURES, PREDICTIONS
from adakv_model.plan import CachePlan
from adakv_model.simulation.baselines import AsymmetricRows, ExactRows, SymmetricRows
from adakv_model.simulation.names import ADAPTIVE, BUDGETED, NAMES, PAPER_TIERS, RULES
from adakv_model.simulation.plan_rows import PlanRows
from adakv_model.simulation.simulator import Decide, RowFormat
from adakv_model.tables import CalibrationTables
from adakv_model.window import observed_queries


@dataclass(frozen=True)
class Policy:
    """How the simulator keeps a cache. stored_bits(counts [K], tokens): bits per value of what is held then, scales
    included. bits_per_value: of a full context, everything allocated. chunk: largest step that decisions allow (a
    long one if nothing is decided)."""

    name: str
    rows: RowFormat
    window: int
    lag: int
    capacities: tuple[int, ...]
    keeps_sink: bool
    decide: Decide | None
    chunk: int
    bits_per_value: float
    stored_bits: Callable[[list[int], int], float]
    plan: CachePlan | None = None
    departure: int = 1


def make_policy(
    name: str, config: LlamaConfig, tables: CalibrationTables, options: CacheOptions | None = None, seed: int = 0
) -> Policy:
    """The named policy for a model of this shape. `options` gives context, window, budget, and features of
    `adaptive`; its `policy` is ignored. Without a budget it takes the one that an export without --kv-bits takes.

    seed: of `random`. Raises UserError for an unknown name or a budget out of reach.
    """
    options = options or CacheOptions()
    if name not in NAMES:
        raise UserError(f"unknown policy {name!r}: one of {', '.join(NAMES)}")
    if name == "fp16":
        return _uniform(name, ExactRows(config), options.context, 16.0)
    family, _, width = name.partition("-")
    if family in ("naive", "kivi"):
        rows = (SymmetricRows if family == "naive" else AsymmetricRows)(config, (int(width),))
        return _uniform(name, rows, options.context, rows.costs[0])
    if name == "paper":
        return _paper(config, tables, options)
    if name == "recency":
        return _recency(config, tables, options)
    budgeted, rules = name in BUDGETED, ("random", *RULES)
    kind = name if not budgeted or name == "tables" else "adaptive"
    kv_bits = options.kv_bits if budgeted else None
    features = ADAPTIVE.get(name) or (_rule_features(name) if name in rules else options.features)
    options = replace(options, policy=kind, kv_bits=kv_bits, features=features)
    if name in rules:
        quantiles = tables.score_quantiles | {features: _rule_quantiles(name, tables)}
        tables = replace(tables, score_quantiles=quantiles)
    planned = plan_cache(config, tables, options)
    decide: Decide | None = None
    if name in rules:
        decide = _by_score(_rule(name, seed), planned.thresholds)
    elif controller := planned.controller(tables):
        decide = _learned(controller)
    return _planned(name, planned.plan, tables, decide)


def _planned(name: str, plan: CachePlan, tables: CalibrationTables, decide: Decide | None) -> Policy:
    return Policy(
        name=name,
        rows=PlanRows(plan, tables),
        window=plan.window,
        lag=plan.lag if decide else 0,
        capacities=plan.capacities,
        keeps_sink=True,
        decide=decide,
        chunk=plan.chunk if decide else LONG_CHUNK,
        bits_per_value=plan.bits_per_value,
        stored_bits=plan.stored_bits,
        plan=plan,
        departure=plan.departure,
    )


LONG_CHUNK = 64  # tokens a step where nothing is decided: short enough for attention scores to stay in cache


def _uniform(name: str, rows: RowFormat, context: int, bits: float) -> Policy:
    """Every token alike, from the moment it arrives."""
    return Policy(
        name=name,
        rows=rows,
        window=0,
        lag=0,
        capacities=(context,),
        keeps_sink=False,
        decide=None,
        chunk=LONG_CHUNK,
        bits_per_value=bits,
        stored_bits=lambda counts, tokens: bits,
    )


def _learned(controller: Controller) -> Decide:
    controller.requires_grad_(False)
    return lambda features, positions: controller(features).argmax(-1)


Score = Callable[[Tensor, Tensor], Tensor]


def _by_score(score: Score, thresholds: tuple[float, ...]) -> Decide:
    bounds = torch.tensor(thresholds, dtype=torch.float32)
    return lambda features, positions: torch.searchsorted(bounds, score(features, positions).contiguous())


def _rule(name: str, seed: int) -> Score:
    if name == "random":

        def draw(features: Tensor, positions: Tensor) -> Tensor:
            table = torch.rand(1 << 16, generator=torch.Generator().manual_seed(seed))
            rows = torch.arange(features.shape[0]).unsqueeze(1) * 7919
            return table[(positions + rows) % (1 << 16)]

        return draw
    feature, sign = RULES[name]
    return lambda features, positions: sign * features[..., FEATURES.index(feature)]


def _rule_features(name: str) -> str:
    """The feature set of a cache that a rule decides: predictions cost state only where the rule reads them."""
    return "all" if name in RULES and RULES[name][0] in PREDICTIONS else "fast"


def _rule_quantiles(name: str, tables: CalibrationTables) -> Tensor:
    """Quantiles of a rule's score on the calibration text: uniform for `random`."""
    count = tables.feature_quantiles.shape[1]
    if name == "random":
        return torch.linspace(0, 1, count)
    feature, sign = RULES[name]
    quantiles = tables.feature_quantiles[FEATURES.index(feature)] * sign
    return quantiles.sort().values


def _recency(config: LlamaConfig, tables: CalibrationTables, options: CacheOptions) -> Policy:
    """The longest 8-bit window that fits the budget, everything older at 2 bits."""

    def plan(window: int) -> CachePlan:
        chosen = replace(options, policy="static-2", kv_bits=None, window=window, chunk=None)
        return plan_cache(config, tables, chosen).plan

    low, high = 1, options.context - options.block - 1
    target = options.kv_bits or default_budget(plan(low).bits_per_value, plan(high).bits_per_value)
    if plan(low).bits_per_value > target:
        raise UserError(
            f"a budget of {target:g} bits is out of reach for recency: {plan(low).bits_per_value:.2f} or more"
        )
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if plan(middle).bits_per_value <= target else (low, middle - 1)
    return _planned("recency", plan(low), tables, None)


def _paper(config: LlamaConfig, tables: CalibrationTables, options: CacheOptions) -> Policy:
    """Tier shares of tokens are set so that the mean over calibrated scores meets the budget."""
    rows = SymmetricRows(config, PAPER_TIERS)
    window = options.window
    tokens = options.context - window
    low, high = ((16 * window + cost * tokens) / options.context for cost in (rows.costs[0], rows.costs[-1]))
    target = options.kv_bits or default_budget(low, high)
    scorer, quantiles = tables.scorers["paper"], tables.score_quantiles["paper"]
    thresholds, shares = paper_thresholds(quantiles, rows.costs, (target * options.context - 16 * window) / tokens)
    capacities = [int(s * tokens) for s in shares]
    capacities[0] += tokens - sum(capacities)
    bits = (16 * window + sum(c * n for c, n in zip(rows.costs, capacities, strict=True))) / options.context

    def stored(counts: list[int], held: int) -> float:
        return (16 * (held - sum(counts)) + sum(c * n for c, n in zip(rows.costs, counts, strict=True))) / max(held, 1)

    chunk = options.chunk or max(1, window // 2)
    return Policy(
        name="paper",
        rows=rows,
        window=window,
        lag=observed_queries(window, chunk, departure=1),
        capacities=tuple(capacities),
        keeps_sink=False,
        decide=_by_score(lambda features, positions: scorer(features)[..., 0], thresholds),
        chunk=chunk,
        bits_per_value=bits,
        stored_bits=stored,
    )


def paper_thresholds(
    quantiles: Tensor, costs: tuple[float, ...], mean_cost: float
) -> tuple[tuple[float, ...], list[float]]:
    """Score thresholds and tier shares under which the mean cost is met; raises UserError out of range.

    The paper trains its tier choice against a fixed bit penalty; here that penalty is solved for, with each step of
    width judged by the squared error it removes (6 dB a bit).
    """
    if not costs[0] <= mean_cost <= costs[-1]:
        raise UserError(f"a budget of {mean_cost:.2f} bits outside the window is out of reach for paper")
    errors = [4.0**-b for b in PAPER_TIERS]
    slopes = [(c2 - c1) / (e1 - e2) for c1, c2, e1, e2 in zip(costs, costs[1:], errors, errors[1:], strict=False)]
    offsets = torch.tensor(slopes).log()
    grid = torch.linspace(0, 1, quantiles.numel())

    def shares(shift: float) -> list[float]:
        bounds = offsets + shift
        below = [float(grid[(quantiles <= b).sum().clamp(1, grid.numel()) - 1]) for b in bounds]
        return [b - a for a, b in zip([0.0, *below], [*below, 1.0], strict=True)]

    low, high = float(quantiles[0] - offsets[-1]) - 1, float(quantiles[-1] - offsets[0]) + 1
    for _ in range(60):
        middle = (low + high) / 2
        if sum(c * s for c, s in zip(costs, shares(middle), strict=True)) > mean_cost:
            low = middle
        else:
            high = middle
    return tuple((offsets + high).tolist()), shares(high)
