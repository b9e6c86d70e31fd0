"""ExecuTorch's stock export of the same checkpoint, as its examples document it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from adakv_model.checkpoints.weights import Checkpoint

CHECKPOINT, PARAMS, PROGRAM = "checkpoint.pth", "params.json", "model.pte"

#: Meta's names of Hugging Face's tensors.
NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
}


def meta_name(name: str) -> str:
    """`layers.0.self_attn.q_proj.weight` -> `layers.0.attention.wq.weight`."""
    for hf, meta in NAMES.items():
        if f"{hf}.weight" == name or name.endswith(f".{hf}.weight"):
            return name.replace(hf, meta)
    return name


def write_meta_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """checkpoint.pth and params.json; rotary embedding in Hugging Face's order, so that weights stay as they are."""
    config = checkpoint.config
    weights = {meta_name(name): weight for name, weight in checkpoint.weights.items()}
    weights.setdefault("output.weight", weights["tok_embeddings.weight"])
    torch.save(weights, folder / CHECKPOINT)
    params = {
        "dim": config.hidden_size,
        "ffn_dim_multiplier": 1,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "n_layers": config.n_layers,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": False,
        "vocab_size": config.vocab_size,
        "use_hf_rope": True,
        "attention_qkv_bias": False,
    }
    (folder / PARAMS).write_text(json.dumps(params), encoding="utf-8")


def export_command(folder: Path, context: int, int8_cache: bool) -> list[str]:
    """Arguments of the interpreter: 8da4w in groups of 32, 8-bit embedding, dynamic shapes, its own attention."""
    options = ["--model", "smollm2", "-c", str(folder / CHECKPOINT), "-p", str(folder / PARAMS), "-d", "fp32"]
    options += ["-kv", "--use_sdpa_with_kv_cache", "-X", "--xnnpack-extended-ops", "-qmode", "8da4w", "-G", "32"]
    options += ["-E", "8,0", "--max_seq_length", str(context), "--max_context_length", str(context)]
    options += ["--quantize_kv_cache"] if int8_cache else []
    options += ["-n", str(folder / PROGRAM)]  # a name that ends in .pte is a path; -o does not apply to it
    return ["-m", "executorch.examples.models.llama.export_llama", *options]
