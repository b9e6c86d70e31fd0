"""Weight quantization recipes of the Android target (torchao configurations that XNNPACK executes)."""

from __future__ import annotations

import torch
from torch import nn

from adakv_model.model import Llama

RECIPES = ("8da8w", "8da4w", "none")
EMBEDDINGS = ("8", "4", "none")
GROUP_SIZE = 32


def quantize_weights(model: Llama, recipe: str, embedding: str) -> None:
    """Quantize in place, one module at a time so that float copies are freed as it goes.

    recipe: 8da8w (int8 activations per token, int8 weights per channel), 8da4w (int4 weights in groups of 32) or
    none. embedding: 8 or 4 bits (weight only, per row or in groups of 32) or none. The controller stays float.
    """
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    if model.lm_head.weight is model.embed_tokens.weight and (recipe != "none" or embedding != "none"):
        model.lm_head.weight = nn.Parameter(model.embed_tokens.weight.clone(), requires_grad=False)
    eight = torch.int8, PerAxis(0)
    four = torch.int4, PerGroup(GROUP_SIZE)  # type: ignore[attr-defined]
    if recipe != "none":
        dtype, granularity = eight if recipe == "8da8w" else four
        linear = Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=granularity)
        quantize_(model, linear, lambda m, name: isinstance(m, nn.Linear) and not name.startswith("cache."))
    if embedding != "none":
        dtype, granularity = eight if embedding == "8" else four
        lookup = IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity)
        quantize_(model, lookup, lambda m, _: isinstance(m, nn.Embedding))
