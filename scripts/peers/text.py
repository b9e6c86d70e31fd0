"""The tokens that every system is fed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from adakv_model.checkpoints.weights import Checkpoint
from adakv_model.runtime.text import codec_for
from adakv_model.text_file import read_text


def tokens_of(path: Path, checkpoint: Checkpoint, count: int) -> tuple[list[int], str]:
    """`count` token ids of the text, which is repeated if it is shorter, and a hash of them."""
    ids = list(codec_for(checkpoint).encode_start(read_text(path)))
    tokens = (ids * (count // len(ids) + 1))[:count]
    return tokens, hashlib.sha256(repr(ids).encode()).hexdigest()[:16]
