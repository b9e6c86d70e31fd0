"""The token table: packing, its quantization error, and the C++ kernels against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adakv_model import ops  # noqa: F401, the operators must be registered
from adakv_model.checkpoints.load import Checkpoint
from adakv_model.linear.blocks import quantized_activations
from adakv_model.linear.table import (
    BLOCK_BYTES,
    TableHead,
    TokenTable,
    dequantize_table,
    lookup,
    pack,
    product,
    unpack,
)
from adakv_model.linear.table import quantize_table as quantize
from adakv_model.runtime import native

ISAS = ("baseline", "avx2", "avxvnni", "avx512vnni", "neon", "dotprod", "i8mm")


@pytest.fixture(scope="module")
def weight() -> Tensor:
    """[203, 576] with an outlier, a zero group and rows of very different size."""
    weight = torch.randn(203, 576, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(-4, 2, 203).unsqueeze(1)
    weight[3, 5] = 4000.0
    weight[7, 32:64] = 0
    return weight


def test_packing_is_exact() -> None:
    codes = torch.randint(0, 64, (13, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert pack(codes).shape == (2, 3, BLOCK_BYTES)
    assert torch.equal(unpack(pack(codes))[:13], codes)


def test_error_is_that_of_six_bits(weight: Tensor) -> None:
    back = dequantize_table(*quantize(weight))[:203]
    groups, error = weight.unflatten(1, (-1, 32)), (back - weight).unflatten(1, (-1, 32))
    assert bool((error.abs().amax(-1) <= 0.31 * groups.abs().amax(-1)).all()), "clipping has a bound"
    normal = torch.arange(203) != 3
    relative = error[normal].norm(dim=-1) / groups[normal].norm(dim=-1).clamp(min=1e-9)
    assert float(relative.mean()) < 0.025
    assert float(relative.max()) < 0.06
    assert bool((back[7, 32:64] == 0).all())


def test_rows_must_divide_into_groups() -> None:
    with pytest.raises(ValueError, match="do not divide into groups of 32"):
        quantize(torch.zeros(2, 40))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_product_matches_the_reference_and_no_token_depends_on_another(weight: Tensor, isa: str, count: int) -> None:
    codes, scales = quantize(weight)
    x = torch.randn(count, 576, generator=torch.Generator().manual_seed(1))
    x[:, 40] *= 300
    x[0, 64:96] = 0
    out = native.table_product(isa, x, codes, scales, 203)
    if out is None:
        pytest.skip(f"this CPU has no {isa}")
    expected = product(x.unsqueeze(0), codes, scales, 203)[0]
    size = quantized_activations(x).abs() @ dequantize_table(codes, scales)[:203].abs().T
    assert bool(((out - expected).abs() <= 2e-6 * size).all())
    for t in range(count):
        alone = native.table_product(isa, x[t : t + 1].clone(), codes, scales, 203)
        assert alone is not None
        assert torch.equal(out[t], alone[0]), "to the last bit"


def test_lookup_matches_the_reference(weight: Tensor) -> None:
    codes, scales = quantize(weight)
    tokens = torch.tensor([[3, 202, 0, 7, 3]])
    assert torch.equal(native.table_lookup(tokens, codes, scales), lookup(tokens, codes, scales)[0])


def test_a_shared_table_is_stored_once(weight: Tensor) -> None:
    table = TokenTable(weight)
    shared, own = TableHead(table, shared=True), TableHead(table, shared=False)
    assert list(shared.buffers()) == []
    assert len(list(own.buffers())) == 2
    x = torch.randn(1, 2, 576, generator=torch.Generator().manual_seed(2))
    assert torch.equal(shared(x), own(x))


def test_the_real_table_keeps_its_predictions(default_checkpoint: Checkpoint) -> None:
    weight = default_checkpoint.weights["embed_tokens.weight"][:4096]
    back = dequantize_table(*quantize(weight))
    assert float((back - weight).norm() / weight.norm()) < 0.03
