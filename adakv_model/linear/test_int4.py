"""4-bit layers: the format, the C++ kernels against the reference, and the layer against a float one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adakv_model.linear import int4
from adakv_model.linear.blocks import GROUP, quantized_activations
from adakv_model.runtime import native

ISAS = ("baseline", "avx2", "avxvnni", "avx512vnni", "neon", "dotprod", "i8mm")
ROWS, K = 104, 576


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weight() -> tuple[Tensor, Tensor]:
    """Blocks and units of [104, 576], with rows of very different size, a zero row and a constant group."""
    codes = torch.randint(0, 16, (ROWS, K // GROUP, GROUP), generator=torch.Generator().manual_seed(0)).float()
    step = random(ROWS, K // GROUP, 1).abs() * torch.logspace(-4, 1, ROWS).view(-1, 1, 1)
    step[7], step[9, 3] = 0, 0
    low = -7.5 * step + random(ROWS, K // GROUP, 1, seed=1) * step.amax(1, keepdim=True)
    return int4.encode((codes * step + low).flatten(1), codes, step)


def test_weights_on_a_grid_come_back_but_for_the_bytes_of_steps_and_offsets() -> None:
    codes = torch.randint(0, 16, (16, 6, GROUP), generator=torch.Generator().manual_seed(0)).float()
    step, low = random(16, 6, 1).abs(), random(16, 6, 1, seed=1)
    weight = (codes * step + low).flatten(1)
    blocks, units = int4.encode(weight, codes, step)
    assert (blocks.shape, units.shape) == ((2, 6, int4.BLOCK_BYTES), (2, 2, 8))
    step_unit, offset_unit = units.unbind(1)
    assert torch.allclose(step_unit.flatten(), step.amax(1).flatten() / 255)
    bound = 8 * step_unit.reshape(-1, 1) + 0.51 * offset_unit.reshape(-1, 1)
    assert bool(((int4.decode(blocks, units) - weight).abs() <= bound).all())


def test_bytes_that_are_exact_lose_nothing() -> None:
    """Steps and offsets that are whole numbers of units, the largest of each row 255 and 127."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (8, 4, GROUP), generator=generator).float()
    codes[..., :2] = torch.tensor([0.0, 15.0])
    step = torch.randint(1, 256, (8, 4, 1), generator=generator).float()
    offset = torch.randint(-127, 128, (8, 4, 1), generator=generator).float()
    step[:, 0], offset[:, 1] = 255, 127
    weight = ((codes - int4.BIAS) * step + offset).flatten(1)
    assert torch.allclose(int4.decode(*int4.encode(weight, codes, step)), weight, rtol=0, atol=1e-3)


def test_rows_must_divide_into_blocks() -> None:
    with pytest.raises(ValueError, match="12 rows do not divide into blocks of 8"):
        int4.encode(torch.zeros(12, 32), torch.zeros(12, 1, 32), torch.zeros(12, 1, 1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_kernels_match_the_reference_and_no_token_depends_on_another(
    weight: tuple[Tensor, Tensor], isa: str, count: int
) -> None:
    x, gate_up, residual = random(count, K), random(count, 2 * K), random(count, ROWS)
    norm = random(K, seed=3)
    x[:, 40] *= 300
    x[0, 64:96] = 0
    inner = torch.nn.functional.silu(gate_up[:, :K]) * gate_up[:, K:]
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * norm
    cases: tuple[tuple[Callable[..., Any], Callable[..., Tensor], tuple[Any, ...], Tensor], ...] = (
        (native.norm_linear, int4.norm_linear, (x, norm, 1e-5), normed),
        (native.add_linear, int4.add_linear, (x, residual), x),
        (native.swiglu_linear, int4.swiglu_linear, (gate_up, residual), inner),
    )
    for kernel, reference, inputs, quantized in cases:
        out = kernel(isa, *inputs, *weight)
        if out is None:
            pytest.skip(f"this CPU has no {isa}")
        rows = [v.unsqueeze(0) if isinstance(v, Tensor) and v.dim() == 2 else v for v in inputs]
        expected = reference(*rows, *weight)[0]
        # An activation halfway between two codes may round either way: one code of its group.
        matrix = int4.decode(*weight).abs()
        size = quantized_activations(quantized).abs() @ matrix.T + residual.abs()
        code = quantized.unflatten(1, (-1, GROUP)).abs().amax(-1) / 127 @ matrix.unflatten(1, (-1, GROUP)).amax(-1).T
        error = (out - expected).abs()
        assert bool((error <= 1e-5 * size + code).all())
        assert float((error <= 1e-5 * size).float().mean()) > 0.9
        for t in range(count):
            alone = kernel(isa, *(_token(v, t) for v in inputs), *weight)
            assert alone is not None
            assert torch.equal(out[t], alone[0]), "to the last bit"


def _token(value: object, t: int) -> object:
    """Token t of a [T, K] input; a norm's weight or epsilon as it is."""
    return value[t : t + 1].clone() if isinstance(value, Tensor) and value.dim() == 2 else value
