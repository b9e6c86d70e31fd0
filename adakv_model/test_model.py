"""The model and its float cache against transformers' Llama, and the norm that survives fp16."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig as HfConfig
from transformers import LlamaForCausalLM

from adakv_model.budget import plan_cache
from adakv_model.cache_options import CacheOptions
from adakv_model.checkpoints.load import Checkpoint
from adakv_model.checkpoints.testing_checkpoints import SMALL, UNTIED, Weights, hf_names
from adakv_model.checkpoints.weights import draw_weights, weight_shapes
from adakv_model.config import LlamaConfig
from adakv_model.kv_cache import FloatCache, MixedPrecisionCache
from adakv_model.model import Llama, RMSNorm, build_model, fuse_weights, rope_tables
from adakv_model.tables import neutral_tables

TEXT = Path(__file__).parents[1] / "device_tests" / "parity" / "text.txt"
EPS = 1e-5
PEAK = 25_000.0  # what SmolLM2's residual reaches
SHAPES = {
    "grouped": SMALL,
    "untied": UNTIED,
    "no groups": replace(SMALL, n_kv_heads=4),
    "one kv head": replace(SMALL, n_kv_heads=1, rope_theta=500.0),
    "heads wider than hidden": replace(UNTIED, head_dim=32),
}
BOTH_NORMS = pytest.mark.parametrize("prescale", [True, False], ids=["prescaled", "plain"])


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


def norm_layer(size: int, prescale: bool, weight: Tensor) -> RMSNorm:
    norm = RMSNorm(size, EPS, prescale)
    norm.weight = nn.Parameter(weight, requires_grad=False)
    return norm


@BOTH_NORMS
@given(
    seed=st.integers(0, 2**20),
    exponent=st.floats(-3.0, 4.0),
    size=st.sampled_from([3, 64, 576]),
    outlier=st.sampled_from([1.0, 200.0]),
)
@settings(max_examples=40, deadline=None)
def test_norm_equals_the_plain_formula(prescale: bool, seed: int, exponent: float, size: int, outlier: float) -> None:
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(2, 5, size, generator=g) * 10.0**exponent, torch.randn(size, generator=g)
    x[0, 0, 0] *= outlier
    expected = plain_norm(x.double(), weight.double()).float()
    torch.testing.assert_close(norm_layer(size, prescale, weight)(x), expected, atol=1e-5, rtol=1e-5)


@BOTH_NORMS
def test_norm_of_a_zero_row_is_zero(prescale: bool) -> None:
    assert not norm_layer(64, prescale, torch.ones(64))(torch.zeros(1, 3, 64)).any()


def test_prescaled_norm_is_right_in_fp16_where_the_plain_one_overflows() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 576, generator=g)
    x[:, 7] = torch.tensor([PEAK, -PEAK, 300.0, 60_000.0])  # one channel carries the outlier, as in the real residual
    weight = torch.rand(576, generator=g) + 0.5
    half = x.half()
    assert torch.isinf((half * half).mean(-1)).all()
    got = norm_layer(576, True, weight.half())(half)
    assert got.dtype == torch.float16
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got.float(), plain_norm(half.float(), weight), atol=2e-3, rtol=5e-3)


def test_rope_tables_follow_the_formula() -> None:
    cos, sin = rope_tables(SMALL, 40)
    assert cos.shape == sin.shape == (40, SMALL.head_dim // 2)
    assert torch.equal(cos[0], torch.ones(8))
    torch.testing.assert_close(cos**2 + sin**2, torch.ones_like(cos))
    angle = torch.tensor(39 * SMALL.rope_theta ** (-2 / SMALL.head_dim))
    torch.testing.assert_close(sin[39, 1], angle.sin(), atol=1e-5, rtol=1e-5)


def lively_weights(config: LlamaConfig, seed: int = 0) -> Weights:
    """Weights large enough that attention is far from uniform, with norm gains other than 1."""
    g = torch.Generator().manual_seed(seed)
    weights = draw_weights(config, seed)
    return {k: torch.rand(v.shape, generator=g) + 0.5 if v.dim() == 1 else v * 8 for k, v in weights.items()}


def run(model: Llama, tokens: Tensor, sizes: list[int]) -> Tensor:
    """Logits [B, T, V], fed in chunks of the given sizes, repeated."""
    outputs: list[Tensor] = []
    p = 0
    while p < tokens.shape[1]:
        chunk = tokens[:, p : p + sizes[len(outputs) % len(sizes)]]
        outputs.append(model(chunk, torch.tensor([p])))
        p += chunk.shape[1]
    return torch.cat(outputs, dim=1)


def random_tokens(config: LlamaConfig, batch: int, count: int) -> Tensor:
    return torch.randint(0, config.vocab_size, (batch, count), generator=torch.Generator().manual_seed(1))


def transformers_model(config: LlamaConfig, weights: Weights) -> LlamaForCausalLM:
    """transformers' Llama on the same weights, without a copy of them."""
    with torch.device("meta"):
        model = LlamaForCausalLM(HfConfig(**config.to_hf()))
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its table is no weight: build it for real
    missing = model.load_state_dict(hf_names(weights), strict=False, assign=True).missing_keys
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    return model.eval()


@BOTH_NORMS
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
@torch.no_grad()
def test_model_equals_transformers_on_random_weights(config: LlamaConfig, prescale: bool) -> None:
    weights, tokens = lively_weights(config), random_tokens(config, 2, 48)
    model = build_model(config, weights, FloatCache(config, 48), prescale_norm=prescale)
    expected = transformers_model(config, weights)(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(model(tokens, torch.tensor([0])), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_model_equals_transformers_on_the_real_checkpoint(default_checkpoint: Checkpoint) -> None:
    config, weights = default_checkpoint.config, default_checkpoint.weights
    assert default_checkpoint.tokenizer is not None
    ids = Tokenizer.from_buffer(default_checkpoint.tokenizer).encode(TEXT.read_text(encoding="utf-8")).ids[:288]
    tokens = torch.tensor([ids])
    model = build_model(config, weights, FloatCache(config, len(ids)))
    got = run(model, tokens, [96])
    expected = transformers_model(config, weights)(tokens).logits
    assert (got - expected).abs().max() < 1e-3
    surprisal = nn.functional.cross_entropy(got[0, :-1], tokens[0, 1:])
    assert surprisal < 4.0, "real text is predicted far better than chance (10.8 nats)"


@pytest.mark.parametrize("sizes", [[1], [7], [16, 1, 5], [47, 1]])
@torch.no_grad()
def test_float_cache_in_chunks_equals_the_whole_text(sizes: list[int]) -> None:
    tokens = random_tokens(SMALL, 2, 48)
    model = build_model(SMALL, lively_weights(SMALL), FloatCache(SMALL, 48))
    whole = model(tokens, torch.tensor([0]))
    torch.testing.assert_close(run(model, tokens, sizes), whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_float_cache_starts_again_at_position_zero_and_refuses_past_its_context() -> None:
    tokens = random_tokens(SMALL, 1, 20)
    model = build_model(SMALL, lively_weights(SMALL), FloatCache(SMALL, 20))
    first = run(model, tokens, [20])
    assert torch.equal(run(model, tokens, [20]), first)
    with pytest.raises(ValueError, match="context full: position 21 is past the capacity of 20"):
        model(tokens[:, :1], torch.tensor([20]))


@pytest.mark.parametrize("config", [SMALL, UNTIED], ids=["tied", "untied"])
def test_fused_weights_are_all_weights_once(config: LlamaConfig) -> None:
    weights = lively_weights(config)
    fused = fuse_weights(config, weights)
    with torch.device("meta"):
        expected = Llama(config, FloatCache(config, 4)).state_dict()
    assert {k: v.shape for k, v in fused.items()} == {
        k: v.shape for k, v in expected.items() if not k.startswith("cache.")
    }
    embeddings = config.vocab_size * config.hidden_size if config.tie_word_embeddings else 0
    stored = sum(torch.Size(s).numel() for s in weight_shapes(config).values())
    assert sum(v.numel() for v in fused.values()) == stored + embeddings
    model = build_model(config, weights, FloatCache(config, 4))
    assert (model.lm_head.weight is model.embed_tokens.weight) == config.tie_word_embeddings


@pytest.mark.parametrize("config", [SMALL, UNTIED, replace(SMALL, n_kv_heads=4, head_dim=64)])
@pytest.mark.parametrize("sizes", [[1], [16], [5, 3]])
@torch.no_grad()
def test_mixed_precision_cache_at_fp16_equals_the_float_cache(config: LlamaConfig, sizes: list[int]) -> None:
    weights, tokens, tables = lively_weights(config), random_tokens(config, 1, 72), neutral_tables(config)
    tables.rows[0].k_mean.normal_(generator=torch.Generator().manual_seed(2))  # any mean must cancel
    tables.v_mean.normal_(generator=torch.Generator().manual_seed(3))
    plan = plan_cache(config, tables, CacheOptions(72, 16, "fp16")).plan
    model = build_model(config, weights, MixedPrecisionCache(config, plan, tables, None))
    expected = build_model(config, weights, FloatCache(config, 72))(tokens, torch.tensor([0]))
    got = run(model, tokens, sizes)
    assert (got - expected).abs().max() < 5e-3, "16-bit rows cost less than fp16 ones would"
