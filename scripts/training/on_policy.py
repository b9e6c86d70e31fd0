"""Trains the importance score on the loss itself: KL divergence to the unquantized cache + lambda x bits, on-policy.

A step takes a window of text and one of several budgets. The exact simulated cache, run with the present score at
that budget, yields the features; tiers are then drawn by straight-through Gumbel-softmax (Jang et al., arXiv
1611.01144) from the controller's own logits, and one differentiable pass (``soft_cache.py``) gives the loss.
Thresholds are solved anew for the budget at every step, so one score serves all of them. lambda is what a bit is
worth at the operating point: the divergence falls by 4 a bit, hence by ln 4 times itself.
"""

from __future__ import annotations

import io
import json
import logging
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from adakv_model.budget import plan_cache
from adakv_model.cache_options import CacheOptions
from adakv_model.checkpoints.load import Checkpoint
from adakv_model.controller import ImportanceScorer, tier_terms
from adakv_model.model import build_model
from adakv_model.simulation.plan_rows import PlanRows
from adakv_model.simulation.policies import make_policy
from adakv_model.simulation.scoring import Simulator
from adakv_model.tables import CalibrationTables
from adakv_model.whole_file import write_whole
from training.cli import WORK_REMEDY, digest_of, track, work_folder
from training.divergence import divergence, exact_log_probs
from training.fit import quantiles
from training.soft_cache import SoftTierCache

log = logging.getLogger(__name__)

SMOOTH = 0.9  # of the running mean of the divergence at a budget


@dataclass(frozen=True)
class OnPolicy:
    """budgets: total bits, taken in turn. tokens: of one step's window. temperature: of the controller's logits under
    Gumbel noise."""

    steps: int = 64
    budgets: tuple[float, ...] = (2.5, 2.75, 3.25, 4.0)
    tokens: int = 1024
    window: int = 16
    rate: float = 2e-3
    temperature: float = 0.3
    seed: int = 0

    def options(self, budget: float) -> CacheOptions:
        return CacheOptions(context=self.tokens, window=self.window, policy="adaptive", kv_bits=budget, features="all")


class Judge:
    """Divergence of each window int64 [W, T] under any tables."""

    def __init__(self, checkpoint: Checkpoint, tables: CalibrationTables, windows: Tensor) -> None:
        self.checkpoint, self.windows = checkpoint, windows
        self.expected = exact_log_probs(checkpoint, tables, windows)

    def of(self, tables: CalibrationTables, options: CacheOptions) -> list[float]:
        """In nats a token: [W]."""
        policy = make_policy(options.policy, self.checkpoint.config, tables, options)
        simulator = Simulator(self.checkpoint, policy, tables)
        return divergence(simulator, self.windows, self.expected).tolist()


class Trainer:
    """Fine-tunes the scorer of `tables` in place. windows: int64 [W, T]; features: float32 [n, 8] of the calibration
    text, which standardise the inputs and give the score's quantiles."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tables: CalibrationTables,
        windows: Tensor,
        features: Tensor,
        settings: OnPolicy,
        work: Path,
    ) -> None:
        self.checkpoint, self.tables, self.settings = checkpoint, tables, settings
        self.windows, self.pool = windows[:, : settings.tokens], features
        self.scorer, self.undo = _standardised(tables.scorers["all"], features)
        self.optimizer = torch.optim.Adam(self.scorer.parameters(), lr=settings.rate, betas=(0.9, 0.99))
        self.running: dict[float, float] = {}
        self.log: list[dict[str, float]] = []
        rows = tables.at(settings.tokens)
        identity = digest_of(windows, features, rows.k_transform, rows.sensitivity, tables.scorers["all"].hidden.weight)
        self.folder = work_folder(
            work, stage="on-policy, leaving in blocks", source=checkpoint.source, inputs=identity, settings=settings
        )

    def run(self) -> list[dict[str, float]]:
        """All steps, from where an interrupted run left off; returns the log: step, budget, divergence, bits."""
        start = self._restore()
        for step in track("on-policy", range(start, self.settings.steps)):
            self._step(step)
            self._save(step + 1)
        self._publish()
        return self.log

    def _step(self, step: int) -> None:
        s = self.settings
        torch.manual_seed(s.seed * 1_000_003 + step)
        budget, window = s.budgets[step % len(s.budgets)], self.windows[(step * 7) % len(self.windows)]
        self._publish()
        planned = plan_cache(self.checkpoint.config, self.tables, s.options(budget))
        features = self._features(window, budget)
        logits = self._controller(planned.thresholds)(self.undo.forward_features(features))
        weights = F.gumbel_softmax(logits / s.temperature, hard=True)
        cache = SoftTierCache(self.checkpoint.config, PlanRows(planned.plan, self.tables), s.tokens)
        cache.weights = weights
        expected = exact_log_probs(self.checkpoint, self.tables, window.unsqueeze(0))[0]
        model = build_model(self.checkpoint.config, self.checkpoint.weights, cache, prescale_norm=False)
        model.requires_grad_(False)
        actual = model(window.unsqueeze(0), torch.tensor([0]))[0].log_softmax(-1)
        kl = F.kl_div(actual, expected, log_target=True, reduction="sum") / len(window)
        costs = torch.from_numpy(planned.plan.tier_costs).float()
        bits = (weights[1 : planned.plan.left(len(window) - 1)] @ costs).mean()
        self.running[budget] = SMOOTH * self.running.get(budget, kl.item()) + (1 - SMOOTH) * kl.item()
        loss = kl + math.log(4) * self.running[budget] * bits
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.scorer.parameters(), 10 * self.running[budget])
        for group in self.optimizer.param_groups:
            group["lr"] = s.rate * 0.5 * (1 + math.cos(math.pi * step / s.steps))
        self.optimizer.step()
        entry = {"step": step, "budget": budget, "kl": kl.item(), "bits": bits.item(), "gradient": float(norm)}
        self.log.append({name: round(value, 6) for name, value in entry.items()})

    def _controller(self, thresholds: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
        rank, offsets = tier_terms(thresholds)
        return lambda inputs: rank * self.scorer(inputs) - offsets

    def _features(self, window: Tensor, budget: float) -> Tensor:
        """What the exact cache sees at this budget with the present score: float32 [T, 8]."""
        options = self.settings.options(budget)
        seen: list[Tensor] = []
        policy = make_policy("adaptive", self.checkpoint.config, self.tables, options)
        decide = policy.decide
        assert decide is not None

        def record(features: Tensor, positions: Tensor) -> Tensor:
            seen.append(features[0])
            return decide(features, positions)

        Simulator(self.checkpoint, replace(policy, decide=record), self.tables).score(window.unsqueeze(0))
        left = torch.cat(seen)
        return F.pad(left, (0, 0, 1, len(window) - 1 - len(left)))  # the sink and the last window are never read

    def _publish(self) -> None:
        """Put the present score and its quantiles into the tables."""
        self.tables.scorers["all"] = self.undo.folded(self.scorer)
        self.tables.score_quantiles["all"] = quantiles(self.tables.scorers["all"](self.pool)[:, 0])

    def _save(self, step: int) -> None:
        state = {
            "step": step,
            "scorer": self.scorer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "running": self.running,
            "log": json.dumps(self.log),
        }
        written = io.BytesIO()
        torch.save(state, written)
        write_whole(self.folder / "state.pt", written.getvalue(), WORK_REMEDY)

    def _restore(self) -> int:
        path = self.folder / "state.pt"
        if not path.is_file():
            return 0
        try:
            state = torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            log.warning("%s is damaged: its steps are taken again", path)
            return 0
        self.scorer.load_state_dict(state["scorer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.running, self.log = state["running"], json.loads(state["log"])
        return int(state["step"])


@dataclass(frozen=True)
class _Scaling:
    """Standardisation of features, folded into and out of a scorer's first layer."""

    mean: Tensor
    std: Tensor

    def forward_features(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    def folded(self, scorer: ImportanceScorer) -> ImportanceScorer:
        """The same scorer for raw features, without gradients."""
        raw = ImportanceScorer(scorer.hidden.out_features)
        raw.load_state_dict(scorer.state_dict())
        with torch.no_grad():
            raw.hidden.weight.div_(self.std)
            raw.hidden.bias.sub_(raw.hidden.weight @ self.mean)
        return raw.requires_grad_(False)


def _standardised(scorer: ImportanceScorer, features: Tensor) -> tuple[ImportanceScorer, _Scaling]:
    scaling = _Scaling(features.mean(0), features.std(0).clamp(min=1e-6))
    inner = ImportanceScorer(scorer.hidden.out_features)
    inner.load_state_dict(scorer.state_dict())
    with torch.no_grad():
        inner.hidden.bias.add_(inner.hidden.weight @ scaling.mean)
        inner.hidden.weight.mul_(scaling.std)
    return inner.requires_grad_(True), scaling
