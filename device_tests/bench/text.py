"""The tokens that a benchmark feeds."""

from __future__ import annotations

import random
from pathlib import Path

from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from adakv_model.text_file import read_text
from device_tests.bench.probe import probe_length

DEFAULT_TEXT = Path(__file__).parents[1] / "parity" / "text.txt"
RANDOM_TOKENS = 1024  # where there is no tokenizer


def tokens_of(artifact: Artifact, path: Path) -> list[int]:
    """Ids of the text, repeated until they fill a probe; fixed random ids for an artifact without a tokenizer.

    Raises UserError for a text that cannot be read or is empty.
    """
    needed = sum(probe_length(artifact))
    if not artifact.has_tokenizer:
        draw = random.Random(0)
        return [draw.randrange(artifact.plan.vocab_size) for _ in range(max(needed, RANDOM_TOKENS))]
    ids = artifact.codec.encode_start(read_text(path))
    if not ids:
        raise UserError(f"{path} is empty: pass some text with --text")
    return ids if len(ids) >= needed else (ids * (needed // len(ids) + 1))[:needed]
