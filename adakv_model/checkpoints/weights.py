"""What a checkpoint is in memory, which tensors it must have, and weights drawn at random.

Tensor names are those of Hugging Face's Llama without the leading `model.`; linear weights are [out, in].
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from adakv_model.config import LlamaConfig
from adakv_model.errors import UserError

# Llama's initializer_range: with norm gains of 1, activations of every registered shape stay finite.
INIT_STD = 0.02


@dataclass
class Checkpoint:
    """Weights with everything needed to run them.

    weights: name -> tensor, all of one float dtype (float32 unless asked otherwise); `lm_head.weight` only
        when the embedding is not tied.
    tokenizer: content of a tokenizer.json, or None.
    chat_template: Jinja source, or None.
    source: provenance: `kind` (package, folder, gguf, hub or random), what names it, `sha256` of the data.
    random: the weights mean nothing, so only latency and memory may be reported from them.
    special_tokens: `bos_token`, `eos_token`, ... -> text, as chat templates use them; None: those of the config's ids.
    notes: what a user should know about how the files were read, a line each.
    """

    config: LlamaConfig
    weights: dict[str, torch.Tensor]
    tokenizer: bytes | None
    chat_template: str | None
    name: str
    source: dict[str, Any]
    random: bool = False
    special_tokens: dict[str, str] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor still on disk: `shape` outermost dimension first; `read` returns it in any float dtype."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def weight_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the model, in the order in which a forward pass reads them."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q_width, hidden),
        "self_attn.k_proj.weight": (kv_width, hidden),
        "self_attn.v_proj.weight": (kv_width, hidden),
        "self_attn.o_proj.weight": (hidden, q_width),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.n_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def read_weights(
    config: LlamaConfig, stored: Mapping[str, StoredTensor], origin: str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Checks names and shapes before reading anything, then reads the expected tensors as `dtype`.

    Extra tensors (`rotary_emb.inv_freq`, the `lm_head` of a tied model) are left unread. A bias is refused:
    without it the model would run and be wrong. `origin` names the checkpoint in messages.
    Raises UserError with the first missing or mis-shaped tensor and their number, or with one that holds NaN or
    infinity, in the file or in `dtype`.
    """
    biases = [name for name in stored if name.endswith(".bias")]
    if biases:
        raise UserError(f"unsupported tensor {biases[0]} in {origin}: biases are not exported; choose another model")
    shapes = weight_shapes(config)
    problems = [problem for name, shape in shapes.items() if (problem := _problem(name, shape, stored))]
    if problems:
        raise UserError(
            f"{problems[0]} in {origin} ({len(problems)} of {len(shapes)} tensors missing or mis-shaped): "
            "check that the configuration belongs to these weights, or download the checkpoint again"
        )
    return {name: _finite(name, stored[name].read().to(dtype).contiguous(), origin) for name in shapes}


def draw_weights(config: LlamaConfig, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Normal weights of standard deviation 0.02, norm gains of 1, drawn in place (1.7B float32: 6.8 GB).

    The same config, seed and dtype give the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        tensor = torch.empty(shape, dtype=dtype)
        is_norm = len(shape) == 1
        weights[name] = tensor.fill_(1.0) if is_norm else tensor.normal_(0.0, INIT_STD, generator=generator)
    return weights


def _finite(name: str, tensor: torch.Tensor, origin: str) -> torch.Tensor:
    # NaN wins in both extremes, so no mask of the tensor's size is made.
    if not all(math.isfinite(extreme) for extreme in tensor.aminmax()):
        raise UserError(f"tensor {name} in {origin} holds NaN or infinity: the file is damaged, download it again")
    return tensor


def _problem(name: str, shape: tuple[int, ...], stored: Mapping[str, StoredTensor]) -> str | None:
    if name not in stored:
        return f"tensor {name} is missing"
    if stored[name].shape != shape:
        return f"tensor {name} has shape {list(stored[name].shape)} instead of {list(shape)}"
    return None
