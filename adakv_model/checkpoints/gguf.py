"""Reads a llama.cpp GGUF checkpoint: configuration, dequantised weights, tokenizer.json and chat template."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, quants
from gguf.gguf_reader import ReaderTensor

from adakv_model.checkpoints.tokenizer import with_edges
from adakv_model.checkpoints.weights import Checkpoint, StoredTensor, read_weights
from adakv_model.config import LlamaConfig
from adakv_model.digest import sha256_of
from adakv_model.errors import UserError

_TOP_NAMES = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Tokens at which llama.cpp ends a text: end of text, of turn, of message.
_ENDS = ("eos", "eot", "eom")
_UNKNOWN = object()
_SCALING = ("rope.scaling.factor", "rope.scaling.attn_factor", "rope.scale_linear")
# Keys below `llama.`: values at which the key changes nothing, or None where it is read elsewhere or is mere
# information. Keys of rope and attention that are not here are refused.
_NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "rope.freq_base": None,
    "rope.dimension_count": None,
    "rope.scaling.type": None,
    "rope.scaling.finetuned": None,
    "rope.scaling.original_context_length": None,
    **dict.fromkeys(_SCALING, (0.0, 1.0)),
    "attention.head_count": None,
    "attention.head_count_kv": None,
    "attention.key_length": None,
    "attention.value_length": None,
    "attention.layer_norm_rms_epsilon": None,
    "attention.layer_norm_epsilon": None,
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.scale": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "expert_count": (0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
}
# llama.cpp's token types (enum llama_token_type).
_CONTROL, _USER_DEFINED = 3, 4


def read_gguf(path: Path, *, name: str, source: dict[str, Any], dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Reads the GGUF file `path`; `source` gets its `sha256`.

    Raises UserError for a truncated or foreign file, another architecture, or an unsupported tokenizer.
    """
    reader = open_gguf(path)
    metadata = Metadata(reader)
    config = gguf_config(metadata, has_output="output.weight" in {tensor.name for tensor in reader.tensors})
    stored = {hf_name(tensor.name): _stored(tensor, config) for tensor in reader.tensors}
    # rope_freqs.weight, rope_factors_long.weight and rope_factors_short.weight scale the frequencies.
    scaled = next((name for name in stored if name.split(".")[-2:-1] and "rope_f" in name), None)
    if scaled is not None:
        raise UserError(f"unsupported {scaled.removesuffix('.weight')} in {path.name}: only plain RoPE is exported")
    return Checkpoint(
        config=config,
        weights=read_weights(config, stored, path.name, dtype),
        tokenizer=gguf_tokenizer(metadata),
        chat_template=metadata.get("tokenizer.chat_template"),
        name=name,
        source={**source, "sha256": sha256_of(path)},
        special_tokens=gguf_special_tokens(metadata),
    )


def open_gguf(path: Path) -> GGUFReader:
    """Opens a GGUF file, memory-mapped. Raises UserError where it is unreadable, truncated or not GGUF."""
    try:
        return GGUFReader(path)
    except OSError as error:
        detail = f"{path} ({error.strerror or error})"
        raise UserError(f"cannot read {detail}: check the path and its permissions") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        # The reader has no exception of its own: a short file fails wherever missing bytes are first touched.
        raise UserError(f"{path} is truncated or not a GGUF file: download it again") from error


class Metadata:
    """The key-value pairs of a GGUF file, decoded on demand: the vocabulary's are large."""

    def __init__(self, reader: GGUFReader) -> None:
        self._fields = reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def keys_below(self, prefix: str) -> list[str]:
        """Names of the keys that begin with `prefix`, without it."""
        return [key.removeprefix(prefix) for key in self._fields if key.startswith(prefix)]

    def require(self, key: str) -> Any:
        """Raises UserError where the key is missing."""
        if key not in self._fields:
            raise UserError(f"the GGUF file has no {key}: convert the model again with a current llama.cpp")
        return self.get(key)


def gguf_config(metadata: Metadata, *, has_output: bool) -> LlamaConfig:
    """Translates `llama.*` keys to a Hugging Face configuration, so that the same features are refused.

    `has_output`: the file has an output matrix of its own, so the embedding is not tied.
    """
    architecture = metadata.require("general.architecture")
    if architecture != "llama":
        raise UserError(f"unsupported architecture '{architecture}': pass a SmolLM or SmolLM2 (llama)")
    _refuse_unsupported(metadata)
    hf = {
        "vocab_size": metadata.get("llama.vocab_size") or len(metadata.require("tokenizer.ggml.tokens")),
        "hidden_size": metadata.require("llama.embedding_length"),
        "intermediate_size": metadata.require("llama.feed_forward_length"),
        "num_hidden_layers": metadata.require("llama.block_count"),
        "num_attention_heads": metadata.require("llama.attention.head_count"),
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv"),
        "head_dim": metadata.get("llama.attention.key_length"),
        "rope_theta": _float32_decimal(metadata.get("llama.rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "rms_norm_eps": _float32_decimal(metadata.require("llama.attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": metadata.require("llama.context_length"),
        "tie_word_embeddings": not has_output,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _ENDS],
    }
    config = LlamaConfig.from_hf(hf)
    for key in ("rope.dimension_count", "attention.value_length"):
        width = metadata.get(f"llama.{key}", config.head_dim)
        if width != config.head_dim:
            raise UserError(f"unsupported {key} {width} of head_dim {config.head_dim}: pass a SmolLM")
    return config


def _refuse_unsupported(metadata: Metadata) -> None:
    """Raises UserError for any key that changes attention, RoPE or a scale and that the graph does not have."""
    kind = metadata.get("llama.rope.scaling.type")
    if kind not in (None, "none"):
        raise UserError(f"unsupported rope_scaling '{kind}': only plain RoPE is exported; choose another model")
    # llama.cpp takes a factor without a type as linear scaling.
    neutral = _NEUTRAL | ({} if kind is None else dict.fromkeys(_SCALING))
    for key in metadata.keys_below("llama."):
        known = neutral.get(key, _UNKNOWN)
        if known is None or (known is _UNKNOWN and not key.startswith(("rope.", "attention."))):
            continue
        value = metadata.get(f"llama.{key}")
        if known is _UNKNOWN or value not in known:
            raise UserError(f"unsupported llama.{key} = {value!r}: the graph has no such feature; choose another model")


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `layers.3.self_attn.q_proj.weight`; unknown names stay as they are."""
    match name.split("."):
        case ["blk", index, part, kind] if part in _LAYER_NAMES:
            return f"layers.{index}.{_LAYER_NAMES[part]}.{kind}"
    return _TOP_NAMES.get(name, name)


def dequantize(tensor: ReaderTensor) -> np.ndarray:
    """Any GGUF tensor as a new float32 array of its logical shape (outermost dimension first)."""
    return np.array(quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)


def unpermute_rope(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorders q or k rows [n_heads * head_dim, in] from llama.cpp's interleaved RoPE pairs to halves.

    llama.cpp's converter stores row (h, half, i) at (h, i, half), because ggml rotates neighbouring rows
    (`LlamaModel.permute` in convert_hf_to_gguf.py); this is the inverse.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(n_heads, rows // n_heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def gguf_tokenizer(metadata: Metadata) -> bytes | None:
    """The vocabulary as the content of a tokenizer.json, or None where the file has none. With the BOS and EOS that
    `add_bos_token` and `add_eos_token` ask for.

    Raises UserError for anything but byte-level BPE with the pre-tokenizer of SmolLM or GPT-2.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return None
    model, pre = metadata.require("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "")
    if model != "gpt2" or pre not in ("smollm", "gpt-2"):
        raise UserError(f"unsupported tokenizer '{model}' with pre-tokenizer '{pre}': pass a Hugging Face folder")
    types = metadata.require("tokenizer.ggml.token_type")
    special = {index: kind == _CONTROL for index, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(index, tokens[index], flag) for index, flag in special.items()],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(split_digits=pre == "smollm"),
        "post_processor": None,
        "decoder": _byte_level(add_prefix_space=True),
        "model": _bpe(tokens, metadata.require("tokenizer.ggml.merges")),
    }
    tokenizer_json = json.dumps(content, ensure_ascii=False).encode()
    named = gguf_special_tokens(metadata)
    bos, eos = (
        named.get(f"{name}_token") if metadata.get(f"tokenizer.ggml.add_{name}_token") else None
        for name in ("bos", "eos")
    )
    return with_edges(tokenizer_json, bos, eos) if bos or eos else tokenizer_json


def gguf_special_tokens(metadata: Metadata) -> dict[str, str]:
    """`bos_token`, `eos_token`, ... -> text, as transformers names them."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: tokens[index] for name, index in ids.items() if tokens and index is not None and index < len(tokens)}


def _float32_decimal(value: float) -> float:
    """Shortest decimal that rounds to a float32: GGUF returns 1e-5 as 9.99999974e-06."""
    return float(str(np.float32(value)))


def _stored(tensor: ReaderTensor, config: LlamaConfig) -> StoredTensor:
    heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}
    n_heads = next((count for part, count in heads.items() if f".{part}." in tensor.name), None)

    def read() -> torch.Tensor:
        weight = dequantize(tensor)
        return torch.from_numpy(weight if n_heads is None else unpermute_rope(weight, n_heads))

    # GGUF lists the innermost dimension first.
    return StoredTensor(tuple(reversed(tensor.shape.tolist())), read)


def _pre_tokenizer(*, split_digits: bool) -> dict[str, Any]:
    # transformers' own GGUF conversion leaves the Digits step out: non-ASCII numbers then get other ids.
    byte_level = _byte_level(add_prefix_space=False)
    if not split_digits:
        return byte_level
    return {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}


def _byte_level(*, add_prefix_space: bool) -> dict[str, Any]:
    flags = {"trim_offsets": True, "use_regex": True}
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, **flags}


def _added_token(index: int, content: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": content, **flags, "special": special}


def _bpe(tokens: list[str], merges: list[str]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": [merge.split(" ") for merge in merges],
    }
