"""Row formats that the project is compared with. None removes a mean or rotates; scales are fp16."""

from __future__ import annotations

import torch
from torch import Tensor

from adakv_model.config import LlamaConfig

SCALE_BITS = 16


class ExactRows:
    """Nothing is lost: the unquantized cache."""

    def __init__(self, config: LlamaConfig) -> None:
        self.config = config

    def queries(self, layer: int, q: Tensor) -> Tensor:
        return q

    def stored(self, layer: int, side: int, x: Tensor) -> Tensor:
        return x

    def sink(self, layer: int, side: int, x: Tensor) -> Tensor:
        return x

    def window(self, layer: int, side: int, x: Tensor) -> Tensor:
        return x

    def demoted(self, layer: int, side: int, x: Tensor, tiers: Tensor) -> Tensor:
        return x

    def output(self, layer: int, x: Tensor) -> Tensor:
        return x


class SymmetricRows(ExactRows):
    """Symmetric integers with one scale for all heads of a token's K (and one of its V): the usual baseline.

    widths: bits of each tier; 16 keeps the row. costs: bits per value of each tier, scales included.
    """

    def __init__(self, config: LlamaConfig, widths: tuple[int, ...]) -> None:
        super().__init__(config)
        self.widths = widths
        overhead = SCALE_BITS / (config.n_kv_heads * config.head_dim)
        self.costs = tuple(b + (overhead if b < 16 else 0.0) for b in widths)

    def demoted(self, layer: int, side: int, x: Tensor, tiers: Tensor) -> Tensor:
        peak = x.abs().amax((1, 3), keepdim=True)  # [B, 1, T, 1]
        options = []
        for bits in self.widths:
            largest = 2 ** (bits - 1) - 1
            scale = (peak / max(largest, 1)).half().float().clamp(min=2.0**-24)
            levels = torch.round(x / scale).clamp(-largest - 1, largest)
            options.append(x if bits >= 16 else levels * scale)
        if len(options) == 1:
            return options[0]
        index = tiers[:, None, :, None].expand(x.shape)
        return torch.stack(options).gather(0, index.unsqueeze(0))[0]


class AsymmetricRows(ExactRows):
    """Minimum and step for every token and head (KIVI's quantizer, arXiv 2402.02750, per token, no residual)."""

    def __init__(self, config: LlamaConfig, widths: tuple[int]) -> None:
        super().__init__(config)
        (self.width,) = widths
        self.costs = (self.width + 2 * SCALE_BITS / config.head_dim,)

    def demoted(self, layer: int, side: int, x: Tensor, tiers: Tensor) -> Tensor:
        low, high = x.amin(-1, keepdim=True).half().float(), x.amax(-1, keepdim=True)
        step = ((high - low) / (2**self.width - 1)).half().float().clamp(min=2.0**-24)
        return torch.round((x - low) / step).clamp(0, 2**self.width - 1) * step + low
