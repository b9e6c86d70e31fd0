"""A GGUF file of a registered shape with random Q4_1 weights, to time peers on shapes without a checkpoint.

The tokenizer and the types of the tensors are those of the default model's file.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from adakv_model.config import LlamaConfig

BLOCK, BLOCK_BYTES = 32, 20  # Q4_1: fp16 step, fp16 minimum, 16 bytes of codes
SCALE = 0.04  # weights are uniform in about +- this


def write_random_gguf(template: Path, config: LlamaConfig, path: Path, seed: int = 0) -> None:
    """template: a llama GGUF whose tokenizer has config.vocab_size tokens."""
    reader = gguf.GGUFReader(template)
    temporary = path.with_name(f".{path.name}")
    writer = gguf.GGUFWriter(temporary, "llama")
    sizes = {
        "llama.block_count": config.n_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.rope.freq_base": config.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.vocab_size": config.vocab_size,
        "llama.rope.dimension_count": config.head_dim,
    }
    for field in reader.fields.values():
        if field.name.startswith(("GGUF.", "general.")):
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, sizes.get(field.name, field.contents()), kind, sub_type)
    rng = np.random.default_rng(seed)
    shapes = _shapes(config)
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
        elif name == "token_embd.weight":
            weights = rng.standard_normal(shape, np.float32) * SCALE
            packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, _q4_1(rng, shape), raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(path)


def _q4_1(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random blocks, uint8 [rows, columns / 32 * 20]."""
    rows, columns = shape
    blocks = rng.integers(0, 256, (rows, columns // BLOCK, BLOCK_BYTES), dtype=np.uint8)
    header = np.array([SCALE / 7.5, -SCALE], np.float16)
    blocks[:, :, :4] = header.view(np.uint8)
    return blocks.reshape(rows, -1)


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Tensors of a llama GGUF, [out, in] each."""
    width, inner = config.hidden_size, config.intermediate_size
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config.vocab_size, width),
        "output_norm.weight": (width,),
    }
    for layer in range(config.n_layers):
        block = f"blk.{layer}."
        shapes |= {
            block + "attn_norm.weight": (width,),
            block + "ffn_norm.weight": (width,),
            block + "attn_q.weight": (q, width),
            block + "attn_k.weight": (kv, width),
            block + "attn_v.weight": (kv, width),
            block + "attn_output.weight": (width, q),
            block + "ffn_gate.weight": (inner, width),
            block + "ffn_up.weight": (inner, width),
            block + "ffn_down.weight": (width, inner),
        }
    return shapes
