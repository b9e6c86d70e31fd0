"""Weight recipes: exact Q4_1 grids, the scale search, what XNNPACK computes, and the count of bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from adakv_model.checkpoints.gguf import dequantize, open_gguf
from adakv_model.checkpoints.load import Checkpoint
from adakv_model.checkpoints.testing_checkpoints import SMALL
from adakv_model.checkpoints.weights import draw_weights
from adakv_model.config import LlamaConfig
from adakv_model.errors import UserError
from adakv_model.kv_cache import FloatCache
from adakv_model.linear.int4 import Int4NormLinear, decode
from adakv_model.model import Llama, build_model
from export.asymmetric import fit_groups, int4_block, int4_weight
from export.options import RECIPES, default_embedding
from export.weights import quantize_weights, stored_bits


def small_model(config: LlamaConfig = SMALL) -> Llama:
    return build_model(config, draw_weights(config, 0), FloatCache(config, 32), prescale_norm=False)


def test_codes_of_a_q4_1_file_are_recovered_exactly(default_gguf: Path) -> None:
    """Against the bytes of the file: d, m as fp16, then 16 bytes of codes, first half in the low bits."""
    for tensor in open_gguf(default_gguf).tensors:
        if tensor.tensor_type.name != "Q4_1" or not tensor.name.startswith(("blk.0.", "blk.17.")):
            continue
        blocks = torch.from_numpy(tensor.data.copy()).unflatten(1, (-1, 20))
        header = blocks[..., :4].contiguous().view(torch.float16).float()
        stored = torch.cat((blocks[..., 4:] & 15, blocks[..., 4:] >> 4), dim=-1)
        codes, step, low = fit_groups(torch.from_numpy(dequantize(tensor)))
        weight = stored * header[..., :1] + header[..., 1:]
        assert torch.equal(codes * step + low, weight), tensor.name
        # A file may leave code 0 or 15 of a group unused; where it uses both, its codes come back.
        full = (stored.amin(-1) == 0) & (stored.amax(-1) == 15)
        assert torch.equal(codes[full].to(torch.uint8), stored[full])
        assert float(full.float().mean()) > 0.5


def test_the_layer_holds_the_same_weights_but_for_the_bytes_of_steps_and_offsets(
    default_checkpoint: Checkpoint,
) -> None:
    weight = default_checkpoint.weights["layers.11.mlp.down_proj.weight"]
    _, step, _ = fit_groups(weight)
    error = (decode(*int4_weight(weight).arguments()) - weight).unflatten(1, (-1, 32)) / step
    assert float(error.square().mean().sqrt()) < 0.03, "against 0.29 for a random weight between two codes"
    assert float(error.abs().max()) < 0.35


def test_search_beats_plain_rounding_and_keeps_constants() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 512, generator=generator) ** 3
    weight[5] = 0.25
    codes, step, low = fit_groups(weight)
    groups = weight.unflatten(1, (-1, 32))
    plain_step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    plain = torch.round((groups - groups.amin(-1, keepdim=True)) / plain_step.clamp(min=1e-30)) * plain_step
    plain += groups.amin(-1, keepdim=True)
    found, rounded = ((x - groups).square().sum() for x in (codes * step + low, plain))
    assert float(found / rounded) < 0.95
    assert torch.equal((codes * step + low)[5], groups[5])
    assert bool(((codes >= 0) & (codes <= 15)).all())


def test_a_quantized_layer_computes_what_its_float_layer_does() -> None:
    config = dataclasses.replace(SMALL, intermediate_size=128)
    block = small_model(config).blocks()[0]
    generator = torch.Generator().manual_seed(0)
    x, attended = (torch.randn(1, 5, block.o_proj.weight.shape[i], generator=generator) for i in (0, 1))
    quantized = int4_block(block)
    with torch.no_grad():
        for out, expected in (
            (quantized.project(x), block.project(x)),
            (quantized.finish(x, attended) - x, block.finish(x, attended) - x),
        ):
            assert 0.001 < float((out - expected).norm() / expected.norm()) < 0.12


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_and_counts_its_bits(recipe: str) -> None:
    config = dataclasses.replace(SMALL, intermediate_size=128)
    expected, model = small_model(config), small_model(config)
    quantize_weights(model, recipe, default_embedding(recipe) if recipe != "none" else "none")
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        first, second = expected(tokens, torch.tensor([0])), model(tokens, torch.tensor([0]))
    bound = {"none": 1e-6, "8da8w": 0.05, "8da4w-asym": 0.2}.get(recipe, 0.3)
    assert float((first - second).norm() / first.norm()) < bound
    bits = stored_bits(model, config)["bits_per_weight"]
    if recipe == "none":
        assert bits == pytest.approx(32, rel=0.05)  # plus the averaging vectors of the norms
    else:
        assert bits < 24


def test_wide_layers_keep_eight_bits() -> None:
    config = dataclasses.replace(SMALL, intermediate_size=128)
    model, narrow, wide = small_model(config), small_model(config), small_model(config)
    quantize_weights(model, "8da4w", "8", [1])
    quantize_weights(narrow, "8da4w", "8")
    quantize_weights(wide, "8da8w", "8")
    for layer, same, other in ((0, narrow, wide), (1, wide, narrow)):
        mine, theirs, different = (list(m.blocks())[layer].mlp.down_proj.weight for m in (model, same, other))
        assert torch.equal(mine.dequantize(), theirs.dequantize())
        assert not torch.equal(mine.dequantize(), different.dequantize())
    bits = [stored_bits(m, config)["bits_per_weight"] for m in (narrow, model, wide)]
    assert bits == sorted(set(bits))


def test_bits_of_a_layer_are_those_of_its_parts() -> None:
    layer = int4_weight(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))
    counted = stored_bits(layer, SMALL)["weight_bytes"]  # type: ignore[arg-type]
    codes, steps, offsets, units = 64 * 128 // 2, 64 * 4, 64 * 4, 64 * 2 * 4
    assert counted == codes + steps + offsets + units


def test_the_output_layer_follows_the_recipe_where_there_is_no_table() -> None:
    config = dataclasses.replace(SMALL, intermediate_size=128)
    expected, model = small_model(config), small_model(config)
    quantize_weights(model, "8da4w-asym", "8")
    assert isinstance(model.lm_head, Int4NormLinear)
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        first, second = expected(tokens, torch.tensor([0])), model(tokens, torch.tensor([0]))
    assert float((first - second).norm() / first.norm()) < 0.2


def test_widths_that_are_no_multiple_of_the_group_are_refused() -> None:
    model = small_model(dataclasses.replace(SMALL, intermediate_size=SMALL.intermediate_size + 8))
    with pytest.raises(UserError, match="intermediate_size .* is not a multiple of 32: use --quantize 8da8w"):
        quantize_weights(model, "8da4w-asym", "table")
    model = small_model(dataclasses.replace(SMALL, vocab_size=SMALL.vocab_size + 1, intermediate_size=128))
    with pytest.raises(UserError, match="vocab_size .* is not a multiple of 8: use --embedding table"):
        quantize_weights(model, "8da4w-asym", "8")
