"""Export-friendly Llama: static shapes, no data-dependent control flow, the cache behind one seam.

The model never touches K or V itself: it hands each layer's fused projection to a :class:`KVCache`, which
applies RoPE, stores, and attends. q, k and v are one linear, fused at load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adakv_model.config import LlamaConfig


class KVCache(Protocol):
    """What the model needs of a cache; `begin` opens a step, `attend` serves a layer, `end` closes the step."""

    def begin(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """tokens: int64 [B, T], input_pos: int64 [1] -> a plan that `attend` gets back."""
        ...

    def attend(self, layer: int, qkv: Tensor, plan: Tensor, input_pos: Tensor) -> Tensor:
        """qkv: [B, T, (H + 2 KV) D] before RoPE -> [B, T, H D]."""
        ...

    def end(self, logits: Tensor, tokens: Tensor, input_pos: Tensor) -> None:
        """logits: [B, T, V], the predictions after each of the step's tokens, or [B, 1, V], after the last."""
        ...


class Layer(Protocol):
    """What the model needs of a decoder layer: :class:`Block`, or its quantized form."""

    def project(self, x: Tensor) -> Tensor: ...

    def finish(self, x: Tensor, attended: Tensor) -> Tensor: ...


class RMSNorm(nn.Module):
    """Root mean square norm that cannot overflow in fp16.

    The residual stream of SmolLM2 reaches about 25,000, whose square is not an fp16 number; dividing by the
    row's largest magnitude first keeps every intermediate at or below one (epsilon shrinks with it).

    prescale False is for fp32 backends, which have the range: XNNPACK has neither a row maximum nor a row mean,
    so there the mean is a linear with one output, which keeps a whole layer inside one delegate.
    """

    def __init__(self, size: int, eps: float, prescale: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps, self.prescale = eps, prescale
        if not prescale:
            self.averaging = nn.Parameter(torch.full((1, size), 1.0 / size))

    def forward(self, x: Tensor) -> Tensor:
        if not self.prescale:
            return x * torch.rsqrt(F.linear(x * x, self.averaging) + self.eps) * self.weight
        peak = x.abs().amax(-1, keepdim=True).clamp(min=1e-4)
        x = x / peak
        eps = (self.eps**0.5 / peak) ** 2
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * self.weight


class MLP(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        return self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))


class Block(nn.Module):
    """One decoder layer; attention itself lives in the cache."""

    def __init__(self, config: LlamaConfig, prescale: bool) -> None:
        super().__init__()
        heads = config.n_heads + 2 * config.n_kv_heads
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, prescale)
        self.qkv_proj = nn.Linear(config.hidden_size, heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.hidden_size, bias=False)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, prescale)
        self.mlp = MLP(config)

    def project(self, x: Tensor) -> Tensor:
        """Residual stream [B, T, hidden] -> fused q, k, v [B, T, (H + 2 KV) D]."""
        return self.qkv_proj(self.attention_norm(x))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output from its input x and what attention gave, [B, T, H D]."""
        x = x + self.o_proj(attended)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """Llama decoder over a cache. forward(tokens int64 [B, T], input_pos int64 [1]) -> logits [B, T, V].

    prescale_norm: use the fp16-safe RMSNorm (needed where activations are fp16). last_only: logits [B, 1, V] after the
    last token only, which is all that generation needs of a chunk; the cache must not need more.
    """

    def __init__(
        self, config: LlamaConfig, cache: KVCache, *, prescale_norm: bool = True, last_only: bool = False
    ) -> None:
        super().__init__()
        self.config, self.last_only = config, last_only
        self.cache = cache
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, prescale_norm) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, prescale_norm)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def blocks(self) -> list[Block]:
        """The layers that are not quantized as a whole."""
        return [layer for layer in self.layers if isinstance(layer, Block)]

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        plan = self.cache.begin(tokens, input_pos)
        x = self.embed_tokens(tokens)  # [B, T, hidden]
        for i, layer in enumerate(cast("list[Layer]", self.layers)):
            x = layer.finish(x, self.cache.attend(i, layer.project(x), plan, input_pos))
        if self.last_only:
            x = x[:, -1].unsqueeze(1)
        logits = self.lm_head(self.norm(x))
        self.cache.end(logits, tokens, input_pos)
        return logits


def fuse_weights(config: LlamaConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face names (without `model.`) to this module's names, fusing q|k|v."""
    out = {"embed_tokens.weight": weights["embed_tokens.weight"], "norm.weight": weights["norm.weight"]}
    out["lm_head.weight"] = weights["embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    for i in range(config.n_layers):
        layer = f"layers.{i}."
        attention = layer + "self_attn."
        out[layer + "attention_norm.weight"] = weights[layer + "input_layernorm.weight"]
        out[layer + "mlp_norm.weight"] = weights[layer + "post_attention_layernorm.weight"]
        out[layer + "qkv_proj.weight"] = torch.cat([weights[f"{attention}{n}_proj.weight"] for n in "qkv"])
        out[layer + "o_proj.weight"] = weights[attention + "o_proj.weight"]
        for name in ("gate", "up", "down"):
            key = f"{layer}mlp.{name}_proj.weight"
            out[key] = weights[key]
    return out


def build_model(
    config: LlamaConfig,
    weights: Mapping[str, Tensor],
    cache: KVCache,
    *,
    prescale_norm: bool = True,
    last_only: bool = False,
) -> Llama:
    """A Llama in eval mode over `cache` with `weights` (Hugging Face names) loaded without a copy."""
    with torch.device("meta"):
        model = Llama(config, nn.Module(), prescale_norm=prescale_norm, last_only=last_only)  # type: ignore[arg-type]
    state = fuse_weights(config, weights)
    averages = {n: torch.full(p.shape, 1.0 / p.shape[1]) for n, p in model.named_parameters() if "averaging" in n}
    model.load_state_dict({**state, **averages}, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    model.cache = cache
    return model.eval().requires_grad_(False)


def rope_tables(config: LlamaConfig, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin float32 [length, head_dim / 2] of rotary embeddings (Su et al., arXiv 2104.09864)."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angle = torch.arange(length, dtype=torch.float64).unsqueeze(1) * config.rope_theta**-exponent
    return angle.cos().float(), angle.sin().float()
