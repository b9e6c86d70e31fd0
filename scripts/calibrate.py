"""Calibrate a checkpoint: means, K transforms, sensitivities and token frequencies for its KV cache.

in:  a checkpoint (--model or --checkpoint) and a text
out: FILE.safetensors (adakv_model.tables.CalibrationTables) and FILE.calibrate.json, what was measured

    python scripts/calibrate.py --text wikitext2_valid.txt.gz --tokens 65536 --out tables.safetensors

The controller inside the file is the shipped one until scripts/train_controller.py trains it. Work is
resumable: every finished window is kept under --work-dir. Formulas: docs/training.md, training/collect.py.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from adakv_model.cache_options import DEFAULT_CHUNK, DEFAULT_WINDOW
from adakv_model.checkpoints.load import load_checkpoint
from adakv_model.config import DEFAULT_MODEL, LlamaConfig
from adakv_model.controller import ImportanceScorer
from adakv_model.corpus import cut_windows, read_tokens
from adakv_model.digest import default_cache_dir
from adakv_model.errors import UserError
from adakv_model.features import FEATURE_SETS, FEATURES
from adakv_model.tables import DEFAULT_CONTROLLER, CalibrationTables, RowTables, reading_gains, shipped_tables
from adakv_model.window import largest_chunk
from training import cli
from training.collect import Settings, WindowRecord, collect, mean_rows
from training.fit import QUANTILES, spearman
from training.frequency import log_frequencies
from training.measure import PROBE_BITS, Probe, measure
from training.positions import PositionAverage
from training.transforms import band_transforms

app = typer.Typer(add_completion=False)

SHORTEST = 512  # tokens of the smallest cache with tables of its own


@app.command()
@cli.one_line_errors
def main(
    text_file: Annotated[Path, typer.Option("--text", help="UTF-8 text, .gz allowed.")],
    out: Annotated[Path, typer.Option(help="Calibration tables to write (.safetensors).")],
    tokens: Annotated[int, typer.Option(help="Tokens to use, in whole windows spread over the text.")] = 65536,
    model: Annotated[str, typer.Option(help="Registered model name.")] = DEFAULT_MODEL,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder or .gguf instead of --model.")] = None,
    context: Annotated[int, typer.Option(help="Tokens of one window of text.", min=8)] = 2048,
    window: Annotated[int, typer.Option(help="Newest tokens that the cache keeps at 8 bits.", min=1)] = DEFAULT_WINDOW,
    chunk: Annotated[int, typer.Option(help="Prefill chunk of the cache.", min=1)] = DEFAULT_CHUNK,
    departure: Annotated[int, typer.Option(help="Tokens that leave the window together.", min=1)] = DEFAULT_CHUNK,
    seed: Annotated[int, typer.Option(help="Seed of the sampled targets.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: torch decides.")] = 0,
    work_dir: Annotated[Path | None, typer.Option(help="Resumable work; default ~/.cache/adakv/training.")] = None,
) -> None:
    """Measure a checkpoint's calibration tables on a text."""
    cli.check_output(out)
    cli.set_threads(threads)
    settings = checked_settings(context, window, chunk, departure, seed)
    loaded = load_checkpoint(model, path=checkpoint)
    source = read_tokens(text_file, loaded)
    windows = cut_windows(source.ids, tokens, context)
    frequency, added = log_frequencies(source.ids, loaded.config.vocab_size)
    work = work_dir or default_cache_dir() / "training"
    k_mean, v_mean = mean_rows(loaded, windows, work)
    records = collect(loaded, windows, k_mean, v_mean, frequency, settings, work, has_second_sample)
    rows = row_tables(loaded.config, records, settings, k_mean)
    tables = CalibrationTables(
        rows=rows,
        v_mean=v_mean,
        scale_modes=reading_gains(*v_mean.shape[:2]),
        token_log_frequency=frequency,
        info={"calibrated": True},
        **donor(out),
    )
    damage = far_damage(records, settings)
    report = {"sensitivity": sensitivity_report(damage), "damage_per_token": float(damage.mean(0).sum())}
    report |= measure(Probe(loaded, tables, windows[0], settings.window, work))
    calibration = {
        "command": cli.command_line("calibrate.py"),
        "checkpoint": {"name": loaded.name, **loaded.source},
        "text": {"name": source.name, "sha256": source.sha256, "tokens": len(source.ids)},
        "tokens": windows.numel(),
        "smoothing": added,
        "contexts": [r.context for r in rows],
        **asdict(settings),
        **report,
    }
    tables.info["calibration"] = calibration
    tables.check(loaded.config)
    tables.save(out)
    cli.write_json(out.with_suffix(".calibrate.json"), calibration)
    typer.echo(f"{windows.numel():,} tokens in {len(windows)} windows; unit sensitivities {report['sensitivity']}")
    typer.echo(f"KL with codes of {PROBE_BITS} bits, nats a token: {report['measured']}")
    typer.echo(f"wrote {out}; next: scripts/train_controller.py --tables {out}")


def checked_settings(context: int, window: int, chunk: int, departure: int, seed: int) -> Settings:
    if chunk > largest_chunk(window, departure):
        limit = "--window" if departure == 1 else "--departure"
        raise UserError(f"--chunk {chunk} must be at most {limit}, {largest_chunk(window, departure)}")
    if window + departure >= context:
        raise UserError(f"--context {context} must be more than --window {window} + --departure {departure}")
    return Settings(context, window, chunk, departure, seed)


def has_second_sample(index: int) -> bool:
    """Every fourth window is held out; two samples there tell a real oracle from a lucky one."""
    return index % 4 == 3


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


if __name__ == "__main__":
    app()
