"""Weight quantization recipes of the Android target: `export.py --quantize` and `--embedding`.

What each loses and costs is measured by scripts/weight_recipes.py; docs/weights.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from adakv_model.checkpoints.weights import weight_shapes
from adakv_model.config import LlamaConfig
from adakv_model.errors import UserError
from adakv_model.linear.blocks import GROUP, ROWS
from adakv_model.linear.table import TableHead, TokenTable
from adakv_model.model import Llama
from export.asymmetric import int4_block, int4_norm_linear
from export.options import DEFAULT_RECIPE


def quantize_weights(model: Llama, recipe: str, embedding: str, wide_layers: Collection[int] = ()) -> None:
    """Quantize in place, one module at a time so that float copies are freed as it goes; see RECIPES, EMBEDDINGS.

    With embedding `table` the output layer reads the same table if the two are tied, else one of its own; otherwise
    the output layer follows the recipe. The controller stays float. wide_layers: decoder layers that a stock recipe
    leaves at 8 bits. Raises UserError where a width of the model is no multiple of the group size.
    """
    check_widths(model, recipe, embedding)
    tied = model.lm_head.weight is model.embed_tokens.weight
    if embedding == "table":
        _use_table(model, tied)
    elif tied and (recipe != "none" or embedding != "none"):
        model.lm_head.weight = nn.Parameter(model.embed_tokens.weight.clone(), requires_grad=False)
    if recipe == DEFAULT_RECIPE:
        _use_asymmetric(model)
    elif recipe != "none":
        wide = {id(m) for i, block in enumerate(model.blocks()) if i in wide_layers for m in block.modules()}
        _quantize_linears(model, "8da8w", lambda m: id(m) in wide)
        _quantize_linears(model, recipe, lambda m: id(m) not in wide)
    if embedding in ("8", "4"):
        _quantize_embedding(model, embedding)


def check_widths(model: Llama, recipe: str, embedding: str) -> None:
    """Raises UserError where the recipe's groups do not divide the model's widths."""
    c = model.config
    size = 64 if recipe.endswith("g64") else 32 if "4w" in recipe or embedding in ("table", "4") else 1
    widths = {"hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size}
    for name, width in {**widths, "num_attention_heads * head_dim": c.n_heads * c.head_dim}.items():
        if width % size:
            raise UserError(
                f"{name} {width} is not a multiple of {size}: use --quantize 8da8w --embedding 8 for this checkpoint"
            )
    if recipe == DEFAULT_RECIPE and embedding != "table" and c.vocab_size % ROWS:
        raise UserError(f"vocab_size {c.vocab_size} is not a multiple of {ROWS}: use --embedding table")


def stored_bits(model: Llama, config: LlamaConfig) -> dict[str, float]:
    """Bits of all weights as the artifact stores them, scales and norms included, over the checkpoint's weights.

    Counted from the tensors themselves: a table stored twice counts twice, one that is shared once. Tied weights of
    the checkpoint are counted once in the denominator. -> {"bits_per_weight", "weight_bytes", "weights"}.
    """
    bits = 0.0
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not name.startswith("cache.") and id(tensor) not in seen:
            seen.add(id(tensor))
            bits += _tensor_bits(tensor)
    weights = sum(torch.Size(shape).numel() for shape in weight_shapes(config).values())
    return {"bits_per_weight": round(bits / weights, 4), "weight_bytes": int(bits / 8), "weights": weights}


def _tensor_bits(tensor: Tensor) -> float:
    from torchao.quantization import IntxUnpackedToInt8Tensor

    data = tensor.data
    if not isinstance(data, IntxUnpackedToInt8Tensor):
        return tensor.numel() * tensor.element_size() * 8
    width = 8 if data.target_dtype == torch.int8 else 4
    # XNNPACK stores scales of groups as bfloat16, of rows as float32; the quantized embedding keeps float32.
    grouped = data.scale.shape[1] > 1 and data.activation_quantization is not None
    return data.qdata.numel() * width + data.scale.numel() * (16 if grouped else 32)


def _use_table(model: Llama, tied: bool) -> None:
    table = TokenTable(model.embed_tokens.weight.data)
    head = table if tied else TokenTable(model.lm_head.weight.data)
    model.embed_tokens, model.lm_head = table, TableHead(head, shared=tied)  # type: ignore[assignment]


def _use_asymmetric(model: Llama) -> None:
    for i, block in enumerate(model.blocks()):
        model.layers[i] = int4_block(block)
    if isinstance(model.lm_head, nn.Linear):
        model.lm_head = int4_norm_linear(model.norm, model.lm_head.weight.data)  # type: ignore[assignment]
        model.norm = nn.Identity()  # type: ignore[assignment]


def _quantize_linears(model: Llama, recipe: str, chosen: Callable[[nn.Module], bool]) -> None:
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    if recipe == "8da8w":
        config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    else:
        size = 64 if recipe.endswith("g64") else GROUP
        granularity = PerGroup(size)
        config = Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]
            weight_granularity=granularity,
        )
    quantize_(model, config, lambda m, name: isinstance(m, nn.Linear) and not name.startswith("cache.") and chosen(m))


def _quantize_embedding(model: Llama, bits: str) -> None:
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    config = (
        IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
        if bits == "8"
        else IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP))  # type: ignore[attr-defined]
    )
    quantize_(model, config, lambda m, _: isinstance(m, nn.Embedding))
