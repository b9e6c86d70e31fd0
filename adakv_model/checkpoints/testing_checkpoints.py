"""Small synthetic checkpoints for tests (two layers, hidden size 64): Hugging Face folders and GGUF files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from adakv_model.config import LlamaConfig

Weights = dict[str, torch.Tensor]

SMALL = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=96,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    rope_theta=100000.0,
    rms_norm_eps=1e-5,
    max_position_embeddings=128,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_ids=(2,),
)
UNTIED = replace(SMALL, tie_word_embeddings=False)


def same(a: Weights, b: Weights) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def hf_names(weights: Weights) -> Weights:
    return {name if name.startswith("lm_head") else f"model.{name}": tensor for name, tensor in weights.items()}


def write_folder(folder: Path, weights: Weights, config: LlamaConfig = SMALL, **hf: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config.to_hf(), "model_type": "llama", **hf}), encoding="utf-8")
    save_file(hf_names(weights), folder / "model.safetensors")
    return folder


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def small_tokenizer() -> Tokenizer:
    """Byte-level: ids 0 to 2 are SPECIAL, added and special; then the 256 bytes, but only those that fit SMALL."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: SMALL.vocab_size - len(SPECIAL)]
    tokenizer = Tokenizer(models.BPE({text: index for index, text in enumerate([*SPECIAL, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer | None = None, **config: Any) -> bytes:
    """tokenizer.json, whose content is returned, and tokenizer_config.json where there is something to say."""
    content = (tokenizer or small_tokenizer()).to_str().encode()
    (folder / "tokenizer.json").write_bytes(content)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return content


GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("layers."):
        return f"{GGUF_NAMES[stem]}.weight"
    _, index, part = stem.split(".", 2)
    return f"blk.{index}.{GGUF_NAMES[part]}.weight"


def permute_rope(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k."""
    rows, columns = weight.shape
    return weight.reshape(n_heads, 2, rows // n_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def stored_rows(name: str, tensor: torch.Tensor, config: LlamaConfig) -> np.ndarray:
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}
    count = next((count for part, count in heads.items() if part in name), None)
    return tensor.numpy() if count is None else permute_rope(tensor.numpy(), count)


def write_gguf(
    path: Path,
    weights: Weights,
    config: LlamaConfig = SMALL,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    architecture: str = "llama",
    edit: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.n_layers)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    edit(writer)
    for name, tensor in weights.items():
        rows = np.ascontiguousarray(stored_rows(name, tensor, config))
        kind = gguf.GGMLQuantizationType.F32 if tensor.ndim == 1 else quantization
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: gguf.GGUFWriter, pre: str = "smollm", model: str = "gpt2") -> None:
    tokens = ["<|endoftext|>", "<tool>", "a", "b", "ab", "1", "11"]
    types = [gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED] + [gguf.TokenType.NORMAL] * 5
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["a b", "1 1"])
    writer.add_chat_template("{{ messages[0].content }}")
