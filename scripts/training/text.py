"""Calibration text: reading, tokenizing, cutting into windows, and token frequencies."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from adakv_model.checkpoints import Checkpoint
from adakv_model.errors import UserError

SMOOTHING = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)


@dataclass(frozen=True)
class TokenizedText:
    """ids: int64 [n] of the whole text; sha256 of its (decompressed) bytes."""

    ids: Tensor
    sha256: str
    name: str


def read_tokens(path: Path, checkpoint: Checkpoint) -> TokenizedText:
    """Read a UTF-8 text, gzip-compressed if its name ends in .gz. Raises UserError."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): pass a text file with --text") from error
    except (UnicodeDecodeError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): pass a text file with --text") from error
    if checkpoint.tokenizer is None:
        raise UserError(f"the checkpoint {checkpoint.name} has no tokenizer.json: add it to the folder")
    ids = Tokenizer.from_buffer(checkpoint.tokenizer).encode(text, add_special_tokens=False).ids
    return TokenizedText(torch.tensor(ids, dtype=torch.int64), hashlib.sha256(data).hexdigest(), path.name)


def cut_windows(ids: Tensor, tokens: int, context: int) -> Tensor:
    """int64 [W, context]: W = tokens // context windows, evenly spread over the text, none overlapping."""
    wanted, available = tokens // context, len(ids) // context
    if wanted < 1:
        raise UserError(f"--tokens {tokens} is less than one window of {context}: ask for more")
    if wanted > available:
        raise UserError(f"the text has {len(ids):,} tokens, fewer than the {wanted * context:,} asked for")
    chosen = torch.arange(wanted) * available // wanted
    return ids[: available * context].reshape(available, context)[chosen]


def log_frequencies(ids: Tensor, vocab_size: int) -> tuple[Tensor, float]:
    """Natural log of unigram probabilities float32 [V], and the constant added to every count (Lidstone
    smoothing).

    The constant is the one under which the first half of the text predicts the second half best.
    """
    first, second = (_counts(half, vocab_size) for half in ids.tensor_split(2))

    def likelihood(added: float) -> float:
        return float(second @ _log_probability(first, added))

    added = max(SMOOTHING, key=likelihood)
    return _log_probability(_counts(ids, vocab_size), added).float(), added


def _counts(ids: Tensor, vocab_size: int) -> Tensor:
    return torch.bincount(ids, minlength=vocab_size).double()


def _log_probability(counts: Tensor, added: float) -> Tensor:
    return torch.log((counts + added) / (counts.sum() + added * len(counts)))
