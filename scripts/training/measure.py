"""Measured sensitivity: what the cache's own rows cost, in KL divergence, one side (K or V) of one layer at a time.

The Fisher estimate of ``collect.py`` adds up noise as if it were independent between tokens and small. Neither holds:
errors of similar rows agree and add up in attention's sums, and a softmax exponentiates those of K. So the estimate
only divides a layer's side among its heads and bands. How much K and V are worth as a whole is measured first, then
every layer's side at the widths which that gives, then K and V once more, because costs of layers do not quite add.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adakv_model.budget import one_tier_plan, unit_damages
from adakv_model.cache_options import CacheOptions
from adakv_model.checkpoints.load import Checkpoint
from adakv_model.plan import CachePlan
from adakv_model.simulation.plan_rows import PlanRows
from adakv_model.simulation.policies import make_policy
from adakv_model.simulation.scoring import Simulator
from adakv_model.tables import CalibrationTables, RowTables
from training.cli import digest_of, resumable, track, work_folder
from training.divergence import divergence, exact_log_probs

PROBE_BITS = 2.5  # of a code, on average, in the rows that are measured
PROBE_TOKENS = 1024

Part = tuple[int, int]  # layer, side
Measured = tuple[list[Part], float]  # what parts cost together


class SomeRows(PlanRows):
    """Rows of a plan in some layers' K or V; everything else exact."""

    def __init__(self, plan: CachePlan, tables: CalibrationTables, parts: Iterable[Part]) -> None:
        super().__init__(plan, tables)
        self.parts = frozenset(parts)

    def window(self, layer: int, side: int, x: Tensor) -> Tensor:
        return super().window(layer, side, x) if (layer, side) in self.parts else x

    def sink(self, layer: int, side: int, x: Tensor) -> Tensor:
        return x

    def demoted(self, layer: int, side: int, x: Tensor, tiers: Tensor) -> Tensor:
        return super().demoted(layer, side, x, tiers) if (layer, side) in self.parts else x


@dataclass
class Probe:
    """Measures on the first PROBE_TOKENS of `window`, int64 [T], as rows of a cache of T tokens. recent: the cache's
    window. work: where finished measurements are kept."""

    checkpoint: Checkpoint
    tables: CalibrationTables
    window: Tensor
    recent: int
    work: Path

    @property
    def tokens(self) -> Tensor:
        return self.window[:PROBE_TOKENS]

    @cached_property
    def options(self) -> CacheOptions:
        return CacheOptions(context=len(self.window), window=self.recent, policy="static-2")

    @cached_property
    def expected(self) -> Tensor:
        return exact_log_probs(self.checkpoint, self.tables, self.tokens.unsqueeze(0))

    @property
    def rows(self) -> RowTables:
        return self.tables.at(self.options.context)

    def plan(self) -> CachePlan:
        """What the tables, as they are now, give at PROBE_BITS."""
        sensitivity = self.rows.sensitivity.double().numpy()
        return one_tier_plan(self.checkpoint.config, self.tables, self.options, sensitivity, PROBE_BITS)

    def cost(self, plan: CachePlan, parts: Iterable[Part]) -> float:
        """KL divergence to the exact cache in nats a token."""
        parts = sorted(parts)
        identity = digest_of(
            self.tokens,
            *(self.rows.k_mean, self.tables.v_mean, self.rows.k_transform),
            *(torch.from_numpy(np.stack([x[i, :, j] for i, j in parts])) for x in (plan.unit_bits, plan.scale_modes)),
        )
        folder = work_folder(
            self.work, stage="measured", source=self.checkpoint.source, recent=self.recent, departure=self.options.block
        )
        name = f"{hash_of(parts)}-{identity[:24]}.safetensors"
        return float(resumable(folder / name, lambda: {"cost": self._divergence(plan, parts)})["cost"])

    def _divergence(self, plan: CachePlan, parts: list[Part]) -> Tensor:
        policy = make_policy(self.options.policy, self.checkpoint.config, self.tables, self.options)
        policy = replace(policy, rows=SomeRows(plan, self.tables, parts))
        simulator = Simulator(self.checkpoint, policy, self.tables, len(self.tokens))
        return divergence(simulator, self.tokens.unsqueeze(0), self.expected)[0]


def hash_of(parts: list[Part]) -> str:
    return digest_of(torch.tensor(parts))[:12]


def measure(probe: Probe) -> dict:
    """Put measured sensitivities into the probe's tables; returns what to report about them."""
    layers = probe.checkpoint.config.n_layers
    sides = [[(layer, side) for layer in range(layers)] for side in (0, 1)]
    estimate = _by_part(probe.rows)
    plan = probe.plan()
    _rescale(probe, plan, [(parts, probe.cost(plan, parts)) for parts in sides])
    plan = probe.plan()
    measured: list[Measured] = []
    for part in track("measure", [*sides[0], *sides[1]]):
        measured.append(([part], probe.cost(plan, [part])))
    _rescale(probe, plan, measured)
    plan = probe.plan()
    whole = [probe.cost(plan, parts) for parts in sides]
    _rescale(probe, plan, list(zip(sides, whole, strict=True)))
    both = probe.cost(probe.plan(), [*sides[0], *sides[1]])
    return {
        "measured": {"k": round(whole[0], 5), "v": round(whole[1], 5), "both": round(both, 5)},
        "measured_over_estimate": (_by_part(probe.rows) / estimate).T.tolist(),
    }


def _rescale(probe: Probe, plan: CachePlan, measured: list[Measured]) -> None:
    """Give every group of parts the sensitivity under which the plan's predicted damage is what was measured. Rows of
    every context are scaled alike: how their costs differ is in the estimate."""
    tables, sensitivity = probe.tables, probe.rows.sensitivity.double()
    predicted = torch.from_numpy(unit_damages(plan.unit_bits, sensitivity.numpy())[..., 0]).sum(1)  # [L, 2]
    factors = torch.zeros_like(predicted)
    for parts, cost in measured:
        ratio = cost / max(sum(float(predicted[part]) for part in parts), 1e-30)
        for layer, side in parts:
            factors[layer, side] = ratio
    tables.rows = tuple(_scaled(rows, factors) for rows in tables.rows)


def _scaled(rows: RowTables, factors: Tensor) -> RowTables:
    """factors: float64 [L, 2]."""
    scaled = rows.sensitivity.double() * factors[:, None, :, None]
    return replace(rows, sensitivity=(scaled / scaled.mean()).float())


def _by_part(rows: RowTables) -> Tensor:
    """Sensitivities [L, 2]."""
    return rows.sensitivity.double().sum((1, 3))
