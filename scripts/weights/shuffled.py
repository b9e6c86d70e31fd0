"""A float checkpoint for tests of the scale search, made from a quantized one without changing what it computes."""

from __future__ import annotations

import torch
from torch import Tensor

from adakv_model.checkpoints.weights import Checkpoint


def shuffled_channels(checkpoint: Checkpoint, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the same function with the residual stream's and the MLPs' channels permuted.

    The groups of 32 inputs of a Q4_1 checkpoint then mix channels of many of its own groups, so nothing is left of
    its 4-bit grids except in o_proj, whose inputs are head channels and keep their order.
    """
    generator = torch.Generator().manual_seed(seed)
    config = checkpoint.config
    hidden = torch.randperm(config.hidden_size, generator=generator)
    inner = [torch.randperm(config.intermediate_size, generator=generator) for _ in range(config.n_layers)]
    out = {}
    for name, weight in checkpoint.weights.items():
        kind = name.split(".")[-2]
        rows, columns = hidden, hidden
        if kind in ("gate_proj", "up_proj", "down_proj"):
            own = inner[int(name.split(".")[1])]
            rows, columns = (own, hidden) if kind != "down_proj" else (hidden, own)
        if kind in ("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj"):
            out[name] = weight[:, columns].contiguous()
        elif kind == "o_proj" or weight.dim() == 1:
            out[name] = weight[rows].contiguous()
        else:
            out[name] = weight[rows][:, columns].contiguous()
    return out
