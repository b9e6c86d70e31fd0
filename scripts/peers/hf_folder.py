"""The checkpoint as a Hugging Face folder, which the converters of other systems read."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from adakv_model.checkpoints.weights import Checkpoint

#: GPT-2's class reads tokenizer.json as it stands.
TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}


def write_hf_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """Weights as they are in memory (float32), config.json and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**checkpoint.config.to_hf(), "model_type": "llama", "hidden_act": "silu", "torch_dtype": "float32"}
    # Readers older than transformers 5 know only this spelling.
    config |= {"rope_theta": checkpoint.config.rope_theta, "attention_bias": False, "mlp_bias": False}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    if checkpoint.tokenizer is not None:
        (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer)
        special = {} if not checkpoint.chat_template else {"chat_template": checkpoint.chat_template}
        (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG | special), encoding="utf-8")
    names = {n if n.startswith("lm_head") else f"model.{n}": w.contiguous() for n, w in checkpoint.weights.items()}
    save_file(names, folder / "model.safetensors", metadata={"format": "pt"})
