"""Calibration tables of one checkpoint: what the quantizer and the controller learned offline.

A small safetensors file, written by scripts/calibrate.py and scripts/train_controller.py and shipped in
``adakv_model/calibrated/`` for the default checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from adakv_model.config import LlamaConfig
from adakv_model.controller import ImportanceScorer
from adakv_model.errors import UserError
from adakv_model.features import FEATURE_SETS
from adakv_model.plan import CachePlan
from adakv_model.quantizer import ScaleMode, hadamard, n_bands
from adakv_model.utf8_path import utf8_path
from adakv_model.whole_file import write_whole

SHIPPED = Path(__file__).parent / "calibrated"
DEFAULT_CONTROLLER = "smollm2-135m-instruct"


@dataclass(frozen=True)
class RowTables:
    """How a cache of up to `context` tokens transforms its rows, and what noise in them costs.

    RoPE makes statistics of K depend on the position, so these are averages over the positions of that context.
    k_mean: float32 [L, KV, D], of K after RoPE. k_transform: float16 [L, KV, D, D], invertible, applied to K after
    RoPE and without its mean; its rows are the channels that are stored, the most sensitive band first. sensitivity:
    float32 [L, KV, 2, bands], the loss added per unit of relative quantization noise in a band (mean 1)."""

    context: int
    k_mean: Tensor
    k_transform: Tensor
    sensitivity: Tensor

    @cached_property
    def q_transform(self) -> Tensor:
        """float32 [L, KV, D, D], inverse transpose of k_transform: what queries are multiplied by."""
        return torch.linalg.inv(self.k_transform.double()).transpose(-1, -2).float().contiguous()


@dataclass
class CalibrationTables:
    """rows: by rising context. v_mean: float32 [L, KV, D]. scale_modes: uint8 [L, KV, 2].
    token_log_frequency: float32 [V], natural log. scorers: of each set of FEATURE_SETS; score_quantiles: float32 [Q],
    equally spaced quantiles of its output on the calibration text; feature_quantiles: float32 [8, Q], of the features.
    info: provenance (commands, texts, token counts)."""

    rows: tuple[RowTables, ...]
    v_mean: Tensor
    scale_modes: Tensor
    token_log_frequency: Tensor
    scorers: dict[str, ImportanceScorer]
    score_quantiles: dict[str, Tensor]
    feature_quantiles: Tensor
    info: dict[str, Any] = field(default_factory=dict)

    def at(self, context: int) -> RowTables:
        """Those of the shortest context that holds this one (of the longest, if none does)."""
        return next((rows for rows in self.rows if rows.context >= context), self.rows[-1])

    def only(self, context: int) -> CalibrationTables:
        """The tables with what a cache of this context needs."""
        return replace(self, rows=(self.at(context),))

    def for_plan(self, plan: CachePlan) -> RowTables:
        """The row tables as a cache of this plan uses them. The calibrated K transform sorts channels into bands of
        unequal sensitivity: where every band is equally wide it does harm, and a Hadamard transform takes its place."""
        rows = self.at(plan.context)
        return rows if plan.banded else replace(rows, k_transform=hadamard_transforms(*rows.k_mean.shape))

    def save(self, path: Path) -> None:
        """Raises UserError where it cannot be written."""
        tensors = {name: getattr(self, name).contiguous().clone() for name in _PLAIN}
        for rows in self.rows:
            tensors |= {f"{rows.context}.{name}": getattr(rows, name).contiguous().clone() for name in _ROWS}
        for features in FEATURE_SETS:
            state = {**self.scorers[features].state_dict(), _QUANTILES: self.score_quantiles[features]}
            tensors |= {f"{features}.{name}": value.contiguous().clone() for name, value in state.items()}
        write_whole(path, save(tensors, {"info": json.dumps(self.info, sort_keys=True)}))

    @classmethod
    def load(cls, path: Path) -> CalibrationTables:
        """Raises UserError for a missing, truncated or foreign file."""
        if not path.is_file():
            raise UserError(f"no calibration tables at {path}: make them with adakv calibrate")
        try:
            with utf8_path(path) as named, safe_open(named, "pt") as f:
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
                info = json.loads((f.metadata() or {}).get("info", "{}"))
            wrong = next((name for name, t in tensors.items() if not bool(t.isfinite().all())), None)
            if wrong is not None:
                raise ValueError(f"{wrong} holds NaN or infinity")
            content: dict[str, Any] = {name: tensors[name] for name in _PLAIN}
            contexts = sorted(int(name.split(".")[0]) for name in tensors if name.endswith(".k_mean"))
            if not contexts:
                raise KeyError("k_mean")
            content["rows"] = tuple(RowTables(n, *(tensors[f"{n}.{name}"] for name in _ROWS)) for n in contexts)
            content["scorers"] = {features: _scorer(tensors, features) for features in FEATURE_SETS}
            content["score_quantiles"] = {features: tensors[f"{features}.{_QUANTILES}"] for features in FEATURE_SETS}
            return cls(**content, info=info)
        except (SafetensorError, KeyError, RuntimeError, ValueError) as e:
            raise UserError(f"{path} is not a calibration table file ({e}): make it with adakv calibrate") from e

    def check(self, config: LlamaConfig) -> None:
        """Raise UserError unless the tables fit a model of this shape."""
        expected = (config.n_layers, config.n_kv_heads, config.head_dim)
        units = (*expected[:2], 2)
        shapes: list[tuple[Tensor, tuple[int, ...]]] = [
            (self.v_mean, expected),
            (self.scale_modes, units),
            (self.token_log_frequency, (config.vocab_size,)),
        ]
        for rows in self.rows:
            shapes += [
                (rows.k_mean, expected),
                (rows.k_transform, (*expected, config.head_dim)),
                (rows.sensitivity, (*units, n_bands(config.head_dim))),
            ]
        if any(tuple(tensor.shape) != shape for tensor, shape in shapes):
            raise UserError(
                f"the calibration tables are for a model of {tuple(self.v_mean.shape)} (layers, kv heads, head_dim),"
                f" not {expected}: run adakv calibrate on this checkpoint"
            )


_ROWS = ("k_mean", "k_transform", "sensitivity")
_PLAIN = ("v_mean", "scale_modes", "token_log_frequency", "feature_quantiles")
_QUANTILES = "score_quantiles"


def _scorer(tensors: Mapping[str, Tensor], features: str) -> ImportanceScorer:
    scorer = ImportanceScorer(tensors[f"{features}.hidden.bias"].shape[0])
    scorer.load_state_dict({name: tensors[f"{features}.{name}"] for name in scorer.state_dict()})
    return scorer.requires_grad_(False)


def hadamard_transforms(layers: int, heads: int, dim: int) -> Tensor:
    """The transform of an uncalibrated K: float16 [L, KV, D, D]."""
    return hadamard(torch.eye(dim)).half().expand(layers, heads, -1, -1).contiguous()


def reading_gains(layers: int, heads: int) -> Tensor:
    """Scale modes uint8 [L, KV, 2]: what to trade bias for (docs/training.md). A softmax exponentiates noise in K, so K
    is shrunk to its least mean square error; V is averaged over many rows, which leaves bias only, so V is unbiased."""
    modes = torch.full((layers, heads, 2), int(ScaleMode.RMS), dtype=torch.uint8)
    modes[..., 1] = int(ScaleMode.UNBIASED)
    return modes


def neutral_tables(config: LlamaConfig) -> CalibrationTables:
    """Tables of an uncalibrated checkpoint: no means, equal units, the default checkpoint's controller."""
    donor = CalibrationTables.load(shipped_tables(DEFAULT_CONTROLLER))
    mean = torch.zeros(config.n_layers, config.n_kv_heads, config.head_dim)
    units = (config.n_layers, config.n_kv_heads, 2)
    frequency = donor.token_log_frequency.float()
    if frequency.shape[0] != config.vocab_size:  # nothing is known: every token as frequent as a typical one
        frequency = torch.full((config.vocab_size,), float((frequency.exp() * frequency).sum()))
    rows = RowTables(
        context=config.max_position_embeddings,
        k_mean=mean,
        k_transform=hadamard_transforms(*mean.shape),
        sensitivity=torch.ones(*units, n_bands(config.head_dim)),
    )
    return CalibrationTables(
        rows=(rows,),
        v_mean=mean.clone(),
        scale_modes=reading_gains(*mean.shape[:2]),
        token_log_frequency=frequency,
        scorers=donor.scorers,
        score_quantiles=donor.score_quantiles,
        feature_quantiles=donor.feature_quantiles,
        info={"calibrated": False, "controller": DEFAULT_CONTROLLER},
    )


def find_tables(name: str, source: Mapping[str, object]) -> CalibrationTables | None:
    """Shipped tables made from the same data as this checkpoint, or from the hub model of the same name."""
    for path in sorted(SHIPPED.glob("*.safetensors")):
        tables = CalibrationTables.load(path)
        made_from = tables.info.get("calibration", {}).get("checkpoint", {})
        same_data = source.get("sha256") is not None and source.get("sha256") == made_from.get("sha256")
        same_hub_model = source.get("kind") == "hub" and name.rpartition("/")[2].lower() == path.stem
        if same_data or same_hub_model:
            return tables
    return None


def choose_tables(
    name: str, source: Mapping[str, object], config: LlamaConfig, explicit: Path | None = None
) -> CalibrationTables:
    """The user's tables, the shipped ones of this checkpoint, or neutral ones. Raises UserError for a damaged file."""
    if explicit is not None:
        return CalibrationTables.load(explicit)
    return find_tables(name, source) or neutral_tables(config)


def shipped_tables(model: str) -> Path:
    """Where the package keeps a named checkpoint's tables (the file may not exist)."""
    return SHIPPED / f"{model}.safetensors"
