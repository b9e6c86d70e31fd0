"""A checkpoint of a few thousand weights, for the tests of the scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from adakv_model.checkpoints.weights import draw_weights
from adakv_model.config import LlamaConfig

WORDS = 32
CONFIG = LlamaConfig(
    vocab_size=WORDS + 1,
    hidden_size=32,
    intermediate_size=48,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    rope_theta=10000.0,
    rms_norm_eps=1e-5,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_ids=(),
)


def tiny_weights(seed: int = 0) -> dict[str, Tensor]:
    """Weights large enough that attention is far from uniform."""
    return {k: v * (1 if v.dim() == 1 else 12) for k, v in draw_weights(CONFIG, seed).items()}


def write_tiny_folder(folder: Path) -> None:
    """A Hugging Face folder with a word-level tokenizer, and text.txt of 640 words."""
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **CONFIG.to_hf()}), encoding="utf-8")
    names = {k if k.startswith("lm_head") else f"model.{k}": v for k, v in tiny_weights().items()}
    save_file(names, folder / "model.safetensors")
    vocabulary = {f"w{i}": i for i in range(WORDS)} | {"?": WORDS}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    draws = torch.randint(WORDS, (640,), generator=torch.Generator().manual_seed(1)).tolist()
    (folder / "text.txt").write_text(" ".join(f"w{i}" for i in draws), encoding="utf-8")


def arguments(folder: Path, tables: Path, **changes: Any) -> list[str]:
    """Command line of calibrate.py for the tiny checkpoint."""
    options: dict[str, Any] = {
        "checkpoint": folder,
        "text": folder / "text.txt",
        "out": tables,
        "tokens": 256,
        "context": 64,
        "window": 8,
        "chunk": 4,
        "departure": 4,
        "work-dir": tables.parent / "work",
        **changes,
    }
    return [str(x) for name, value in options.items() for x in (f"--{name}", value)]
