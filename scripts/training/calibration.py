"""What calibrate.py does once its options are known: calibration tables from a text, and a report on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adakv_model.config import LlamaConfig
from adakv_model.controller import ImportanceScorer
from adakv_model.features import FEATURE_SETS, FEATURES
from adakv_model.tables import DEFAULT_CONTROLLER, CalibrationTables, RowTables, shipped_tables
from training.collect import WindowRecord
from training.fit import QUANTILES, spearman
from training.positions import PositionAverage
from training.settings import Settings
from training.transforms import band_transforms

SHORTEST = 512  # tokens of the smallest cache with tables of its own


def far_damage(records: list[WindowRecord], settings: Settings) -> Tensor:
    """Mean over the tokens of each window: float32 [W, L, KV, 2]."""
    return torch.stack([r.damage[0][..., settings.departing].mean(-1) for r in records])


def row_tables(
    config: LlamaConfig, records: list[WindowRecord], settings: Settings, k_mean: Tensor
) -> tuple[RowTables, ...]:
    """Estimated row tables of caches from SHORTEST tokens to the longest that the model takes, doubling.

    k_mean: float32 [L, KV, D], before RoPE.
    """
    gradients, rows = (torch.stack([r.k_outer for r in records]).double().mean(0) / (settings.context - 1)).unbind(1)
    rows = rows + k_mean.double().unsqueeze(-1) * k_mean.double().unsqueeze(-2)  # about zero: the mean turns as well
    damage = far_damage(records, settings).mean(0).double()  # [L, KV, 2]
    longest = config.max_position_embeddings
    contexts = [n for n in (SHORTEST << i for i in range(longest.bit_length())) if n < longest] + [longest]
    estimates = {n: _keys(config, settings.context, n, gradients, rows, k_mean) for n in contexts}
    reference = next((n for n in contexts if n >= settings.context), longest)
    k_scale = damage[..., 0].sum(1) / estimates[reference][2].sum((1, 2))  # K's share, where the damage was measured
    out = []
    for context, (mean, transform, cost) in estimates.items():
        v_cost = damage[..., 1:2].expand_as(cost) / cost.shape[-1]
        both = torch.stack((cost * k_scale[:, None, None], v_cost), dim=2)  # [L, KV, 2, bands]
        out.append(RowTables(context, mean.float(), transform.half(), (both / both.mean()).float()))
    return tuple(out)


def _keys(
    config: LlamaConfig, window: int, context: int, gradients: Tensor, rows: Tensor, k_mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, transform and cost by band of K after RoPE in a cache of `context` tokens.

    Rows hardly depend on the position before RoPE, so their second moment is averaged over all positions. Gradients
    come from the queries of one window of text; attention sees relative positions only, so the same window further on
    has the same gradients, turned: a longer context is as many windows one after another.
    """
    average, windows = PositionAverage(config, context), PositionAverage(config, max(1, context // window), window)
    mean = average.mean(k_mean)
    central = average.second_moment(rows) - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    return mean, *band_transforms(windows.second_moment(gradients), central)


def donor(out: Path) -> dict[str, Any]:
    """The shipped controllers, which transfer between checkpoints better than none; constant ones if there are none."""
    names = ("scorers", "score_quantiles", "feature_quantiles")
    path = shipped_tables(DEFAULT_CONTROLLER)
    if path.is_file() and path.resolve() != out.resolve():
        tables = CalibrationTables.load(path)
        return {name: getattr(tables, name) for name in names}
    scorer = ImportanceScorer()
    for parameter in scorer.parameters():
        torch.nn.init.zeros_(parameter)
    scorer.requires_grad_(False)
    return {
        "scorers": dict.fromkeys(FEATURE_SETS, scorer),
        "score_quantiles": dict.fromkeys(FEATURE_SETS, torch.zeros(QUANTILES)),
        "feature_quantiles": torch.zeros(len(FEATURES), QUANTILES),
    }


def sensitivity_report(damage: Tensor) -> dict[str, float]:
    """damage: [W, L, KV, 2]. Agreement of even and odd windows over units, and how unequal the units are."""
    units = damage.flatten(1)
    top = units.mean(0).sort(descending=True).values
    report = {"worst_tenth_share": float(top[: -(-len(top) // 10)].sum() / top.sum())}
    if len(units) > 1:
        even, odd = units[::2].mean(0), units[1::2].mean(0)
        report["split_half_spearman"] = spearman(even, odd)
        report["split_half_log_pearson"] = float(torch.corrcoef(torch.stack((even, odd)).log())[0, 1])
    return {name: round(value, 4) for name, value in report.items()}
