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
from safetensors.torch import save_file
from torch import Tensor

from adakv_model.config import LlamaConfig
from adakv_model.controller import ImportanceScorer
from adakv_model.errors import UserError
from adakv_model.plan import CachePlan
from adakv_model.quantizer import hadamard, n_bands

SHIPPED = Path(__file__).parent / "calibrated"
DEFAULT_CONTROLLER = "smollm2-135m-instruct"


@dataclass
class CalibrationTables:
    """k_mean, v_mean: float32 [L, KV, D], of K after RoPE and of V. k_transform: float16 [L, KV, D, D], invertible,
    applied to K after RoPE and without its mean; its rows are the channels that are stored, the most sensitive band
    first. sensitivity: float32 [L, KV, 2, bands], the loss added per unit of relative quantization noise in a band
    (mean 1). scale_modes: uint8 [L, KV, 2].
    token_log_frequency: float32 [V], natural log. score_quantiles: float32 [Q], equally spaced quantiles of
    the scorer's output on the calibration text; feature_quantiles: float32 [8, Q], of the features. paper_scorer,
    paper_quantiles: the same from the paper's four features alone, for comparison. info: provenance (commands,
    texts, token counts)."""

    k_mean: Tensor
    v_mean: Tensor
    k_transform: Tensor
    sensitivity: Tensor
    scale_modes: Tensor
    token_log_frequency: Tensor
    scorer: ImportanceScorer
    score_quantiles: Tensor
    feature_quantiles: Tensor
    paper_scorer: ImportanceScorer
    paper_quantiles: Tensor
    info: dict = field(default_factory=dict)

    @cached_property
    def q_transform(self) -> Tensor:
        """float32 [L, KV, D, D], inverse transpose of k_transform: what queries are multiplied by."""
        return torch.linalg.inv(self.k_transform.double()).transpose(-1, -2).float().contiguous()

    def for_plan(self, plan: CachePlan) -> CalibrationTables:
        """The tables as a cache of this plan uses them. The calibrated K transform sorts channels into bands of unequal
        sensitivity: where every band is equally wide it does harm, and a Hadamard transform takes its place."""
        if plan.banded:
            return self
        layers, heads, dim = self.k_mean.shape
        return replace(self, k_transform=hadamard_transforms(layers, heads, dim))

    def save(self, path: Path) -> None:
        """Write atomically."""
        tensors = {name: getattr(self, name).contiguous().clone() for name in _PLAIN}
        for part in _SCORERS:
            state = getattr(self, part).state_dict()
            tensors |= {f"{part}.{name}": value.clone() for name, value in state.items()}
        temporary = path.with_name(f".{path.name}.tmp")
        save_file(tensors, temporary, metadata={"info": json.dumps(self.info, sort_keys=True)})
        temporary.chmod(0o644)  # safetensors creates private files
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> CalibrationTables:
        """Raises UserError for a missing, truncated or foreign file."""
        if not path.is_file():
            raise UserError(f"no calibration tables at {path}: make them with scripts/calibrate.py")
        try:
            with safe_open(path, "pt") as f:
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
                info = json.loads((f.metadata() or {}).get("info", "{}"))
            content: dict[str, Any] = {name: tensors[name] for name in _PLAIN}
            content |= {part: _scorer(tensors, f"{part}.") for part in _SCORERS}
            return cls(**content, info=info)
        except (SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as e:
            raise UserError(f"{path} is not a calibration table file ({e}): make it with scripts/calibrate.py") from e

    def check(self, config: LlamaConfig) -> None:
        """Raise UserError unless the tables fit a model of this shape."""
        expected = (config.n_layers, config.n_kv_heads, config.head_dim)
        units = (*expected[:2], 2)
        shapes: dict[str, tuple[int, ...]] = {
            "k_mean": expected,
            "v_mean": expected,
            "k_transform": (*expected, config.head_dim),
            "sensitivity": (*units, n_bands(config.head_dim)),
            "scale_modes": units,
        }
        shapes["token_log_frequency"] = (config.vocab_size,)
        if any(tuple(getattr(self, name).shape) != shape for name, shape in shapes.items()):
            raise UserError(
                f"the calibration tables are for a model of {tuple(self.k_mean.shape)} (layers, kv heads, head_dim),"
                f" not {expected}: run scripts/calibrate.py on this checkpoint"
            )


_PLAIN = (
    "k_mean", "v_mean", "k_transform", "sensitivity", "scale_modes", "token_log_frequency", "score_quantiles",
    "feature_quantiles", "paper_quantiles",
)  # fmt: skip
_SCORERS = ("scorer", "paper_scorer")


def _scorer(tensors: Mapping[str, Tensor], prefix: str) -> ImportanceScorer:
    scorer = ImportanceScorer(tensors[f"{prefix}hidden.bias"].shape[0])
    scorer.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return scorer.requires_grad_(False)


def hadamard_transforms(layers: int, heads: int, dim: int) -> Tensor:
    """The transform of an uncalibrated K: float16 [L, KV, D, D]."""
    return hadamard(torch.eye(dim)).half().expand(layers, heads, -1, -1).contiguous()


def neutral_tables(config: LlamaConfig) -> CalibrationTables:
    """Tables of an uncalibrated checkpoint: no means, equal units, the default checkpoint's controller."""
    donor = CalibrationTables.load(shipped_tables(DEFAULT_CONTROLLER))
    mean = torch.zeros(config.n_layers, config.n_kv_heads, config.head_dim)
    units = (config.n_layers, config.n_kv_heads, 2)
    frequency = donor.token_log_frequency.float()
    if frequency.shape[0] != config.vocab_size:  # nothing is known: every token as frequent as a typical one
        frequency = torch.full((config.vocab_size,), float((frequency.exp() * frequency).sum()))
    return CalibrationTables(
        k_mean=mean,
        v_mean=mean.clone(),
        k_transform=hadamard_transforms(config.n_layers, config.n_kv_heads, config.head_dim),
        sensitivity=torch.ones(*units, n_bands(config.head_dim)),
        scale_modes=torch.zeros(units, dtype=torch.uint8),
        token_log_frequency=frequency,
        scorer=donor.scorer,
        score_quantiles=donor.score_quantiles,
        feature_quantiles=donor.feature_quantiles,
        paper_scorer=donor.paper_scorer,
        paper_quantiles=donor.paper_quantiles,
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


def shipped_tables(model: str) -> Path:
    """Where the package keeps a named checkpoint's tables (the file may not exist)."""
    return SHIPPED / f"{model}.safetensors"
