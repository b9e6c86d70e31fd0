"""The eager twin of a Core ML artifact, and the codes both hold: what parity of a package is measured against."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adakv_model.attention import UnitView
from adakv_model.budget import PlannedCache
from adakv_model.checkpoints.load import Checkpoint
from adakv_model.kv_cache import MixedPrecisionCache
from adakv_model.model import Llama, build_model
from adakv_model.packing import Side
from adakv_model.plan import FIRST_TIER, IN_WINDOW
from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.manifest import CALIBRATION
from adakv_model.tables import CalibrationTables
from device_tests.coreml.run import CoreMLModel
from export.coreml.rows import by_channel, unpack_row
from export.coreml.weights import rounded
from export.options import FEATURES_USED


def twin(artifact: Artifact, checkpoint: Checkpoint) -> Llama:
    """adakv_model.reference over the artifact's plan, tables and thresholds, with the package's own weights."""
    tables = CalibrationTables.load(artifact.folder / CALIBRATION)
    planned = PlannedCache(artifact.plan, tuple(artifact.manifest["controller"]["thresholds"]), FEATURES_USED)
    recipe, vocabulary = artifact.manifest["weights"], checkpoint.config.vocab_size
    weights = {
        name: rounded(value, recipe, vocabulary) if value.ndim == 2 else value.half().float()
        for name, value in checkpoint.weights.items()
    }
    cache = MixedPrecisionCache(checkpoint.config, artifact.plan, tables, planned.controller(tables))
    for name, value in cache.named_buffers():
        if name in ("cos", "sin") or name.startswith(("k_mean", "v_mean", "k_columns", "q_columns")):
            value.copy_(value.half())  # constants of the package are fp16
    return build_model(checkpoint.config, weights, cache)


def tiers_of(model: CoreMLModel) -> Tensor:
    """uint8 [N]: tier of each position that left the window, as reference.assign's table; 255 elsewhere."""
    tiers = torch.full((model.plan.context,), IN_WINDOW, dtype=torch.uint8)
    for position, tier in enumerate(model.plans[:, 0].tolist()):
        if tier >= 0:
            tiers[position - model.plan.window] = tier
    return tiers


def package_codes(model: CoreMLModel, layer: int, tier: int, rows: int) -> np.ndarray:
    """Codes [units, D, rows] of the first rows of a tier in the package's state. Units: K heads, then V heads."""
    layout = model.layout
    pool = layout.window_pool(layer) if tier in layout.copied_tiers else layout.tier_pool(layer, tier)
    first = pool.first_columns[pool.tiers.index(tier)]
    state = torch.from_numpy(model.state(pool.name).astype(np.float32))
    levels, _ = unpack_row(pool.row, state[..., first : first + rows])
    size = torch.exp2(by_channel(pool.row, "bits"))
    return ((levels / by_channel(pool.row, "gain") * size + (size - 1)) / 2).round().numpy()


def reference_codes(cache: MixedPrecisionCache, layer: int, tier: int, rows: int) -> np.ndarray:
    """The same from the reference's packed bytes."""
    plan = cache.plan
    table, buffer = getattr(cache, f"layout_{layer}"), getattr(cache, f"cache_{layer}")
    units = []
    for side in Side:
        for head in range(plan.n_kv_heads):
            view = UnitView(table[2 * head + side], buffer, plan.head_dim, side)
            units.append(view.codes(FIRST_TIER + tier)[:rows].T)
    return torch.stack(units).float().numpy()
