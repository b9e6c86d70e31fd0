"""Rows and their kernels in C++ against torch: equal bytes and equal bits, on every instruction set of this CPU."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adakv_model import attention
from adakv_model.packing import BLOCK, Side, pack_blocks, padded, unpack_blocks
from adakv_model.plan import FIRST_TIER
from adakv_model.quantizer import (
    BAND_BITS,
    GAINS,
    SCALE_BOUNDS,
    SCALES,
    SUPPORTED_BITS,
    ScaleMode,
    dequantize,
    hadamard,
    join_bands,
    n_bands,
    quantize,
    transform,
)
from adakv_model.runtime import native

DIMS = (16, 32, 64, 128, 256)
ISAS = ("scalar", "avx2", "avxvnni", "avx512vnni", "neon", "dotprod", "i8mm")
ROW_COUNTS = (1, 7, 16, 33, 64)  # less than a block, one, and groups of 32 with a rest


def rows(seed: int, n: int, dim: int, scale: float) -> Tensor:
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * scale
    x[0] = 0.0  # an all-zero row
    if n > 1:
        x[1, 0] = 900.0 * scale  # an outlier
    return x


def random_bits(random: np.random.Generator, dim: int, side: Side) -> int:
    """Widths of a row: uniform in V rows and half of the K rows, else (nearly always) different from band to band."""
    if side == Side.VALUE or random.integers(2):
        return int(random.choice(SUPPORTED_BITS))
    return join_bands([int(b) for b in random.choice(BAND_BITS, size=n_bands(dim))])


def whole_blocks(codes: Tensor) -> Tensor:
    """Codes [n, D] with rows of zeros up to the end of the last block."""
    return torch.nn.functional.pad(codes, (0, 0, 0, padded(len(codes)) - len(codes)))


def one_segment(
    packed: Tensor, scales: Tensor, n: int, bits: int, dim: int, mode: ScaleMode, side: Side
) -> attention.UnitView:
    """A unit whose first tier is these rows."""
    none = [8, 0, 0, 0, 0]
    table = torch.tensor([none, none, [bits, n, 0, packed.numel(), int(mode)]])
    return attention.UnitView(table, torch.cat((packed, scales.view(torch.uint8))), dim, side)


@given(
    seed=st.integers(0, 2**31),
    n=st.sampled_from([1, 5, 16, 37]),
    dim=st.sampled_from(DIMS),
    mode=st.sampled_from(GAINS),
    side=st.sampled_from(Side),
    scale=st.sampled_from([1e-7, 1e-3, 0.1, 1.0, 30.0, 3e4]),
)
@settings(max_examples=200, deadline=None)
def test_packed_bytes_are_identical(seed: int, n: int, dim: int, mode: ScaleMode, side: Side, scale: float) -> None:
    bits = random_bits(np.random.default_rng(seed), dim, side)
    x = rows(seed, n, dim, scale)
    codes, scales = quantize(x, bits)
    packed, native_scales = native.quantize_rows(x, bits, side)
    assert torch.equal(pack_blocks(whole_blocks(codes), bits, side), packed)
    assert torch.equal(unpack_blocks(packed, bits, dim, side)[:n], codes)
    assert torch.equal(scales.view(torch.uint8), native_scales[:n].view(torch.uint8))
    decoded = native.dequantize_rows(packed, native_scales, n, bits, dim, mode, side)
    assert torch.equal(decoded, dequantize(codes, scales, bits, mode))


def test_value_rows_with_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="V rows have one width"):
        pack_blocks(torch.zeros(BLOCK, 64, dtype=torch.uint8), 0x02030408, Side.VALUE)


def documented_reader() -> Callable[[np.ndarray, list[int], int, int, int], np.ndarray]:
    """read_row of docs/cache-format.md."""
    text = (Path(__file__).parents[1] / "docs" / "cache-format.md").read_text(encoding="utf-8")
    namespace: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], namespace)
    return namespace["read_row"]


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("mode", GAINS)
@pytest.mark.parametrize("dim", DIMS)
def test_the_documented_reader_reads_every_width(dim: int, mode: ScaleMode, side: Side) -> None:
    read_row, random, n = documented_reader(), np.random.default_rng(dim), 21
    mixed = [join_bands([int(b) for b in random.permutation(BAND_BITS)[: n_bands(dim)]]) for _ in range(6)]
    for bits in [*SUPPORTED_BITS, *(mixed if side == Side.KEY else [])]:
        packed, scales = native.quantize_rows(rows(bits, n, dim, 1.0), bits, side)
        at, scale_at = 16, 16 + packed.numel() + 3  # scales at any offset
        stored = scales.view(torch.uint8).numpy()
        buffer = np.full(scale_at + len(stored), 255, dtype=np.uint8)
        buffer[at : at + packed.numel()] = packed.numpy()
        buffer[scale_at:] = stored
        expected = native.dequantize_rows(packed, scales, n, bits, dim, mode, side)
        for row in range(n):
            got = read_row(buffer, [bits, n, at, scale_at, int(mode)], row, dim, int(side))
            assert got.dtype == np.float32
            assert np.array_equal(got, expected[row].numpy()), hex(bits)


def test_scale_codes_are_identical_at_every_bound() -> None:
    bounds = SCALE_BOUNDS.repeat_interleave(3)  # just below, at and just above
    bounds[::3], bounds[2::3] = (torch.nextafter(SCALE_BOUNDS, torch.tensor(v)) for v in (0.0, torch.inf))
    x, n = bounds.unsqueeze(1).repeat(1, 64), len(bounds)
    packed, codes = native.quantize_rows(x, 2)
    expected_codes, expected = quantize(x, 2)
    assert torch.equal(codes[:n], expected)
    assert torch.equal(packed, pack_blocks(whole_blocks(expected_codes), 2, Side.KEY))
    assert expected.unique().numel() == len(SCALES)
    decoded = native.dequantize_rows(packed, codes, n, 2, 64, ScaleMode.RMS)
    assert torch.equal(decoded, dequantize(expected_codes, expected, 2))


@pytest.mark.parametrize("dim", DIMS)
def test_hadamard_is_identical_and_its_own_inverse(dim: int) -> None:
    x = rows(dim, 9, dim, 2.0)
    assert torch.equal(native.hadamard(x), hadamard(x))
    torch.testing.assert_close(hadamard(hadamard(x)), x, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dim", DIMS)
def test_transform_is_identical(dim: int) -> None:
    matrix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(dim))
    x = rows(dim, 9, dim, 2.0)
    assert torch.equal(native.transform(x, matrix.T.contiguous()), transform(x, matrix))
    torch.testing.assert_close(transform(x, matrix).double(), x.double() @ matrix.double().T, atol=1e-2, rtol=1e-5)


def have(isa: str) -> bool:
    return native.softmax_part(isa, torch.zeros(1)) is not None


def test_at_least_one_instruction_set_is_tested() -> None:
    assert have("scalar")
    assert not have("none such")


@pytest.mark.parametrize("isa", ISAS)
@given(
    seed=st.integers(0, 2**31),
    dim=st.sampled_from(DIMS),
    mode=st.sampled_from(GAINS),
    n_rows=st.one_of(st.sampled_from(ROW_COUNTS), st.integers(1, 100)),
    n_queries=st.integers(1, 32),
    scale=st.sampled_from([1e-3, 1.0, 200.0]),
    loud=st.sampled_from([1e-38, 1e-31, 1e-6, 1.0, 1e4, 1e20]),
)
@settings(max_examples=60, deadline=None)
def test_scores_have_equal_bits(
    isa: str, seed: int, dim: int, mode: ScaleMode, n_rows: int, n_queries: int, scale: float, loud: float
) -> None:
    if not have(isa):
        pytest.skip(f"this CPU has no {isa}")
    bits = random_bits(np.random.default_rng(seed), dim, Side.KEY)
    x, queries = rows(seed, n_rows, dim, scale), rows(seed + 1, n_queries, dim, loud)
    packed, scales = native.quantize_rows(x, bits, Side.KEY)
    got = native.score_rows(isa, packed, scales, n_rows, bits, mode, queries)
    unit = one_segment(packed, scales, n_rows, bits, dim, mode, Side.KEY)
    expected = attention.score(unit, FIRST_TIER, slice(0, n_rows), attention.Queries.of(queries))
    assert got is not None
    assert expected.isfinite().all()
    assert torch.equal(got, expected), hex(bits)


@pytest.mark.parametrize("isa", ISAS)
@given(
    seed=st.integers(0, 2**31),
    dim=st.sampled_from(DIMS),
    bits=st.sampled_from(SUPPORTED_BITS),
    mode=st.sampled_from(GAINS),
    n_rows=st.one_of(st.sampled_from(ROW_COUNTS), st.integers(1, 100)),
    n_queries=st.integers(1, 32),
    scale=st.sampled_from([1e-3, 1.0, 200.0]),
    sharpness=st.sampled_from([0.0, 1.0, 30.0, 200.0]),
)
@settings(max_examples=60, deadline=None)
def test_weighted_sums_have_equal_bits(
    isa: str,
    seed: int,
    dim: int,
    bits: int,
    mode: ScaleMode,
    n_rows: int,
    n_queries: int,
    scale: float,
    sharpness: float,
) -> None:
    if not have(isa):
        pytest.skip(f"this CPU has no {isa}")
    generator = torch.Generator().manual_seed(seed)
    weights = torch.exp(-sharpness * torch.rand(n_queries, n_rows, generator=generator))  # to below what is a number
    weights[0, : n_rows // 2] = 0.0
    packed, scales = native.quantize_rows(rows(seed, n_rows, dim, scale), bits, Side.VALUE)
    got = native.accumulate_rows(isa, packed, scales, bits, mode, weights, dim)
    unit = one_segment(packed, scales, n_rows, bits, dim, mode, Side.VALUE)
    assert got is not None
    assert torch.equal(got, attention.accumulate(unit, FIRST_TIER, slice(0, n_rows), weights))


@pytest.mark.parametrize("isa", ISAS)
def test_exponentials_have_equal_bits(isa: str) -> None:
    if not have(isa):
        pytest.skip(f"this CPU has no {isa}")
    for spread, n in itertools.product((0.0, 1.0, 50.0, 1e4), (1, 15, 16, 17, 49, 512)):
        x = torch.randn(n, generator=torch.Generator().manual_seed(n)) * spread
        if n > 1:
            x[n // 2] = -torch.inf  # a row that is not seen
        got, expected = native.softmax_part(isa, x), attention.fast_exp(x - x.amax())
        assert got is not None
        assert torch.equal(got[0], expected)
        assert got[1:] == (float(attention.lane_sum(expected)), float(x.amax()))


def test_fast_exp_is_exp_to_a_few_units_in_the_last_place() -> None:
    x = torch.linspace(-87, 0, 100_001)
    torch.testing.assert_close(attention.fast_exp(x).double(), x.double().exp(), atol=0.0, rtol=4e-7)
    assert attention.fast_exp(torch.tensor([0.0, -87.5, -torch.inf])).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("bits", [*SUPPORTED_BITS, "mixed"])
def test_integer_arithmetic_is_close_to_float(dim: int, bits: int | str) -> None:
    """The definition itself: int8 queries and weights cost less than the rows' own rounding to 4 bits (0.107)."""
    generator, n = torch.Generator().manual_seed(dim), 70
    x, queries = torch.randn(n, dim, generator=generator), torch.randn(5, dim, generator=generator)
    widths = join_bands([8, 2, 4, 3][: n_bands(dim)]) if isinstance(bits, str) else bits
    packed, scales = native.quantize_rows(x, widths, Side.KEY)
    unit = one_segment(packed, scales, n, widths, dim, ScaleMode.RMS, Side.KEY)
    exact = queries.double() @ unit.read(FIRST_TIER, torch.arange(n)).double().T
    got = attention.score(unit, FIRST_TIER, slice(0, n), attention.Queries.of(queries))
    assert (got - exact).norm() < 0.012 * exact.norm()
    if isinstance(bits, int):
        weights = torch.rand(5, n, generator=generator)
        packed, scales = native.quantize_rows(x, bits, Side.VALUE)
        unit = one_segment(packed, scales, n, bits, dim, ScaleMode.RMS, Side.VALUE)
        exact = weights.double() @ unit.read(FIRST_TIER, torch.arange(n)).double()
        got = attention.accumulate(unit, FIRST_TIER, slice(0, n), weights)
        assert (got - exact).norm() < 0.012 * exact.norm()
