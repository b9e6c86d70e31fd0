"""Texts to calibrate on and to score: tokenizing, cutting into windows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adakv_model.checkpoints.weights import Checkpoint
from adakv_model.errors import UserError
from adakv_model.runtime.text import codec_for
from adakv_model.text_file import read_text


@dataclass(frozen=True)
class TokenizedText:
    """ids: int64 [n] of the whole text; sha256 of its UTF-8 bytes."""

    ids: Tensor
    sha256: str
    name: str


def read_tokens(path: Path, checkpoint: Checkpoint) -> TokenizedText:
    """A text as ids of the checkpoint's tokenizer. Raises UserError."""
    text = read_text(path)
    ids = torch.tensor(codec_for(checkpoint).encode_start(text), dtype=torch.int64)
    return TokenizedText(ids, hashlib.sha256(text.encode()).hexdigest(), path.name)


def window_starts(available: int, wanted: int, context: int) -> list[int]:
    """First tokens of `wanted` of the `available` windows of `context` tokens, evenly spread, none overlapping."""
    return [index * available // wanted * context for index in range(wanted)]


def cut_windows(ids: Tensor, tokens: int, context: int) -> Tensor:
    """int64 [W, context]: W = tokens // context windows, evenly spread over the text, none overlapping."""
    wanted, available = tokens // context, len(ids) // context
    if wanted < 1:
        raise UserError(f"--tokens {tokens} is less than one window of {context}: ask for more")
    if wanted > available:
        raise UserError(f"the text has {len(ids):,} tokens, fewer than the {wanted * context:,} asked for")
    return torch.stack([ids[start : start + context] for start in window_starts(available, wanted, context)])
