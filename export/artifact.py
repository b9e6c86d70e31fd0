"""What is in an artifact folder: tokenizer, template, manifest; and where it goes by default."""

from __future__ import annotations

import datetime
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adakv_model.checkpoints.tokenizer import open_tokenizer
from adakv_model.checkpoints.weights import Checkpoint
from adakv_model.digest import sha256_of
from adakv_model.plan import CachePlan
from adakv_model.runtime.manifest import FORMAT, MANIFEST, TEMPLATE, TOKENIZER

VERSIONED = ("adakv", "torch", "executorch", "torchao", "coremltools", "transformers", "numpy")


def write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """tokenizer.json, chat template and the token names ExecuTorch's tokenizer looks for."""
    if checkpoint.tokenizer is None:
        return
    (folder / TOKENIZER).write_bytes(checkpoint.tokenizer)
    tokens = {t["id"]: t["content"] for t in json.loads(checkpoint.tokenizer).get("added_tokens", [])}
    config = checkpoint.config
    names = {
        "bos_token": tokens.get(config.bos_token_id),
        "eos_token": tokens.get(next(iter(config.eos_token_ids), None)),
    } | (checkpoint.special_tokens or {})
    text = json.dumps({k: v for k, v in names.items() if v}, indent=1)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    if checkpoint.chat_template:
        (folder / TEMPLATE).write_text(checkpoint.chat_template, encoding="utf-8", newline="")


def checkpoint_notes(checkpoint: Checkpoint) -> list[str]:
    """What a user should know about how a checkpoint was read and what its artifact cannot do."""
    notes = list(checkpoint.notes)
    if checkpoint.tokenizer is None:
        if not checkpoint.random:
            notes.append("the checkpoint has no tokenizer: the program takes token ids, no text")
        return notes
    highest = max(open_tokenizer(checkpoint.tokenizer).get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= (size := checkpoint.config.vocab_size):
        notes.append(f"the tokenizer has ids up to {highest}, the weights only {size}: texts with those are refused")
    return notes


def write_manifest(
    folder: Path,
    *,
    checkpoint: Checkpoint,
    plan: CachePlan,
    sections: dict[str, object],
    command: list[str],
) -> dict[str, Any]:
    """manifest.json: model, versions, shapes, cache plan, options, hashes of every other file."""
    config = checkpoint.config
    returned = 1 if sections.get("logits") == "last" else f"1..{plan.chunk}"
    manifest = {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "model": {
            "name": checkpoint.name,
            "source": checkpoint.source,
            "random_weights": checkpoint.random,
            **config.__dict__,
            "eos_token_ids": list(config.eos_token_ids),
            "special_tokens": checkpoint.special_tokens,
            "notes": checkpoint_notes(checkpoint),
        },
        "kv_cache": plan.to_manifest(),
        "methods": {
            "forward": {
                "inputs": {"tokens": ["int64", [1, f"1..{plan.chunk}"]], "input_pos": ["int64", [1]]},
                "outputs": {"logits": ["float32", [1, returned, config.vocab_size]]},
            }
        },
        **sections,
        "versions": {name: version(name) for name in VERSIONED} | {"python": platform.python_version()},
        "files": {str(p.relative_to(folder)): describe(p) for p in sorted(folder.rglob("*")) if p.is_file()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def describe(path: Path) -> dict[str, object]:
    """Size and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
