"""A policy as the command line names it, and the simulator it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adakv_model.cache_options import DEFAULT_CONTEXT, DEFAULT_WINDOW, CacheOptions
from adakv_model.checkpoints.load import Checkpoint
from adakv_model.config import LlamaConfig
from adakv_model.errors import UserError
from adakv_model.simulation.names import BUDGETED, NAMES
from adakv_model.simulation.policies import Policy, make_policy
from adakv_model.tables import CalibrationTables, choose_tables
from evaluation.scorers import SimulatorScorer
from export.dry_run import shape_of
from export.options import ExportOptions
from export.plan_drawing import notes as plan_notes
from training.cli import digest_of

REFERENCE = "fp16"
STATIC_WIDTHS = (2, 3, 4, 8)
UNCALIBRATED = (REFERENCE, "naive", "kivi")


@dataclass(frozen=True)
class PolicySpec:
    """One cache policy. kv_bits: the budget of those that have one; context: the capacity it is planned for;
    departure: tokens of a block that leave the window together, None for a chunk of prefill."""

    name: str
    kv_bits: float | None = None
    context: int = DEFAULT_CONTEXT
    window: int = DEFAULT_WINDOW
    window_bits: int | None = None
    departure: int | None = None

    @property
    def title(self) -> str:
        return self.name if self.kv_bits is None else f"{self.name}-{self.kv_bits:g}"

    def named(self, name: str) -> PolicySpec:
        """Another policy with the same context and window, without a budget."""
        return replace(self, name=name, kv_bits=None)

    def identity(self, tables: Tables) -> dict[str, Any]:
        """What its results depend on; for fp16 and foreign quantizers that is nothing but the weights."""
        family = self.name.split("-")[0]
        if family in UNCALIBRATED:
            return {"name": self.name}
        return {**asdict(self), "departure": self.options.block, "tables": tables.digest(family, self.context)}

    @property
    def options(self) -> CacheOptions:
        return CacheOptions(
            self.context, self.window, "adaptive", self.kv_bits, self.window_bits, departure=self.departure
        )

    def make(self, config: LlamaConfig, tables: Tables) -> Policy:
        """Raises UserError for an unknown name or an impossible budget."""
        if self.name in NAMES and self.name not in BUDGETED and self.kv_bits is not None:
            raise UserError(f"--policy {self.name} has a fixed width: drop --kv-bits")
        return make_policy(self.name, config, tables.tables, self.options)

    def simulator(self, checkpoint: Checkpoint, tables: Tables, length: int | None = None) -> SimulatorScorer:
        """The policy's simulated cache. length: longest sequence to score, where that is less than the context, which
        saves memory and changes nothing else. Raises UserError like `make`."""
        return SimulatorScorer(checkpoint, self.make(checkpoint.config, tables), tables.tables, length or self.context)


@dataclass(frozen=True)
class Tables:
    """Calibration tables, and what of them a policy depends on."""

    tables: CalibrationTables

    def digest(self, family: str, context: int) -> str:
        """Of what this family of policies reads."""
        t, rows = self.tables, self.tables.at(context)
        parts = [rows.k_mean, t.v_mean, t.scale_modes]
        if family not in ("static", "recency"):
            parts += [rows.k_transform, rows.sensitivity]
        if family not in ("static", "recency", "tables"):
            parts += [t.token_log_frequency, t.feature_quantiles, *t.score_quantiles.values()]
            parts += [value for scorer in t.scorers.values() for value in scorer.state_dict().values()]
        return digest_of(*parts)


def load_tables(checkpoint: Checkpoint, path: Path | None) -> Tables:
    """The file at `path`, or the shipped tables of this checkpoint, or neutral ones. Raises UserError."""
    tables = choose_tables(checkpoint.name, checkpoint.source, checkpoint.config, path)
    tables.check(checkpoint.config)
    return Tables(tables)


def check_policies(
    specs: Iterable[PolicySpec], model: str, checkpoint: Path | None, explicit: Path | None
) -> Iterator[str]:
    """What to know about the policies' budgets, from the model's shape and tables alone: weights are not read.

    Raises UserError for an unknown policy or an impossible budget, as `PolicySpec.make` does.
    """
    shape = shape_of(ExportOptions(model=model, checkpoint=checkpoint))
    tables = Tables(choose_tables(shape.name, shape.source, shape.config, explicit))
    tables.tables.check(shape.config)
    for spec in specs:
        policy = spec.make(shape.config, tables)
        if policy.plan is not None and spec.name in BUDGETED:
            yield from (f"{spec.title}: {note}" for note in plan_notes(policy.plan.to_manifest(), spec.kv_bits))


def parse_policy(text: str, base: PolicySpec, option: str) -> PolicySpec:
    """NAME or NAME@BITS, otherwise like `base`. Raises UserError naming the option."""
    name, _, bits = text.partition("@")
    try:
        return replace(base, name=name, kv_bits=float(bits) if bits else None)
    except ValueError as error:
        raise UserError(f"{option} {text!r} is not NAME or NAME@BITS, such as static-3 or random@3.25") from error
