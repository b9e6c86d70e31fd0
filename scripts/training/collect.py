"""One pass over the calibration windows: means, then features and damage labels of every token.

Label. For quantization noise e of a K or V row the loss rises by (g . e)^2 / 2 on average, where g is the
gradient of log p(y) and the targets y are drawn from the model's own predictions (the Fisher matrix is
E[g g^T]; Martens, arXiv 1412.1193). Targets of different positions are independent, so one backward pass of
the sum of log p(y) per window is an unbiased estimate. The noise of b bits has variance MSE(b) times the
row's mean square in every rotated channel; hence with damage w = |g|^2 * mean_square / 2 the expected loss
is w * MSE(b), in nats over the window. g counts far queries only, see attention.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from adakv_model.checkpoints.load import Checkpoint
from adakv_model.kv_cache import FloatCache
from adakv_model.model import Llama, build_model
from adakv_model.reference import ATTENTION_FLOOR, VARIANCE_FLOOR
from training.attention import LayerTrace, TracingCache
from training.cli import digest_of, resumable, track, work_folder
from training.positions import before_rope
from training.settings import Settings

MEAN_WINDOWS = 8  # windows for the means: more changes nothing measurable


@dataclass
class WindowRecord:
    """features: float32 [T, 8]; damage: float32 [2 samples, L, KV, 2, T] (the second sample is zero where
    it was not drawn); k_outer: float32 [L, 2, KV, D, D], see ``attention.LayerTrace``."""

    features: Tensor
    damage: Tensor
    k_outer: Tensor


def mean_rows(checkpoint: Checkpoint, windows: Tensor, work: Path) -> tuple[Tensor, Tensor]:
    """Means float32 [L, KV, D] of K before RoPE and of V over all positions but the sink of up to 8 windows."""
    windows = windows[:: -(-len(windows) // MEAN_WINDOWS)]
    cache = FloatCache(checkpoint.config, windows.shape[1])
    model = build_model(checkpoint.config, checkpoint.weights, cache, prescale_norm=False)
    model.lm_head = torch.nn.Identity()  # type: ignore[assignment]
    folder = work_folder(work, stage="means before RoPE", source=checkpoint.source, ids=digest_of(windows))

    def compute(index: int) -> Callable[[], dict[str, Tensor]]:
        def run() -> dict[str, Tensor]:
            with torch.no_grad():
                model(windows[index : index + 1], torch.tensor([0]))
            keys = [before_rope(x[0], cache.cos, cache.sin) for x in cache.keys]
            pairs = (("k", keys), ("v", [x[0] for x in cache.values]))
            return {name: torch.stack([x[:, 1:].mean(1) for x in rows]) for name, rows in pairs}

        return run

    parts = [resumable(folder / f"{i:04d}.safetensors", compute(i)) for i in track("means", range(len(windows)))]
    k_mean, v_mean = (torch.stack([p[name] for p in parts]).mean(0) for name in "kv")
    return k_mean, v_mean


def collect(
    checkpoint: Checkpoint,
    windows: Tensor,
    k_mean: Tensor,
    v_mean: Tensor,
    log_frequency: Tensor,
    settings: Settings,
    work: Path,
    twice: Callable[[int], bool] = lambda index: False,
) -> list[WindowRecord]:
    """Trace every window int64 [W, T]; finished windows are read back from `work`.

    twice: whether window i gets a second, independent set of sampled targets.
    """
    config = checkpoint.config
    cache = TracingCache(config, windows.shape[1], k_mean, v_mean, settings.window, settings.lag, settings.departure)
    model = build_model(config, checkpoint.weights, cache, prescale_norm=False)
    inputs = digest_of(windows, k_mean, v_mean, log_frequency)
    folder = work_folder(
        work, stage="damage, rows before RoPE", source=checkpoint.source, inputs=inputs, settings=settings
    )
    records = []
    for i in track("gradients", range(len(windows))):
        samples = 2 if twice(i) else 1

        def compute(index: int = i, samples: int = samples) -> dict[str, Tensor]:
            seeds = [settings.seed * 1_000_003 + 2 * index + s for s in range(samples)]
            record = trace_window(model, cache, windows[index], log_frequency, seeds)
            return {f.name: getattr(record, f.name) for f in fields(record)}

        records.append(WindowRecord(**resumable(folder / f"{i:04d}-{samples}.safetensors", compute)))
    return records


def trace_window(
    model: Llama,
    cache: TracingCache,
    tokens: Tensor,
    log_frequency: Tensor,
    seeds: list[int],
) -> WindowRecord:
    """tokens: int64 [T] from position 0. One backward pass for each seed (at most two)."""
    config, count = model.config, len(tokens)
    damage = torch.zeros(2, config.n_layers, config.n_kv_heads, 2, count)
    logits = model(tokens.unsqueeze(0), torch.tensor([0]))[0]
    log_p = logits.detach().log_softmax(-1)
    features = token_features(tokens, log_p, cache.traces, log_frequency, config.n_layers * config.n_heads, cache.lag)
    for sample, seed in enumerate(seeds):
        p = log_p.exp()
        drawn = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed))
        gradient = p.neg_().scatter_add_(1, drawn, torch.ones(count, 1))
        logits.backward(gradient, retain_graph=sample + 1 < len(seeds))
        for layer, trace in enumerate(cache.traces):
            damage[sample, layer] = (0.5 * trace.gradient_square * trace.mean_square).transpose(0, 1)
    damage[..., 0] = 0.0  # the sink is never quantized below 16 bits
    return WindowRecord(features, damage, torch.stack([trace.k_outer for trace in cache.traces]))


def token_features(
    tokens: Tensor,
    log_p: Tensor,
    traces: list[LayerTrace],
    log_frequency: Tensor,
    n_attentions: int,
    lag: int,
) -> Tensor:
    """reference.depart's features float32 [T, 8] for all positions at once.

    tokens: int64 [T]; log_p: float32 [T, V], row t predicts token t + 1; n_attentions: layers x heads.
    """
    previous = log_p[:-1]
    quality = torch.stack(
        (
            previous.amax(-1).exp(),
            -(previous.exp() * previous).sum(-1),
            -previous.gather(1, tokens[1:].unsqueeze(1))[:, 0],
        )
    )
    confidence, entropy, surprisal = F.pad(quality, (1, 0))  # nothing predicts position 0
    repeats = (tokens.unsqueeze(0) == tokens.unsqueeze(1)).tril(-1).sum(1)
    own = sum_of(traces, "own") / n_attentions
    variance = (sum_of(traces, "own_squared") / n_attentions - own * own).clamp(min=0)
    received = sum_of(traces, "received") / (n_attentions * max(lag, 1))
    columns = [
        log_frequency[tokens],
        confidence,
        torch.log(variance + VARIANCE_FLOOR),
        entropy,
        surprisal,
        torch.log(own + ATTENTION_FLOOR),
        torch.log1p(repeats.float()),
        torch.log(received + ATTENTION_FLOOR),
    ]
    return torch.stack(columns, dim=1)


def sum_of(traces: list[LayerTrace], name: str) -> Tensor:
    return torch.stack([getattr(trace, name) for trace in traces]).sum(0)
