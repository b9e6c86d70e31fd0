"""Compressed weights: each operation against coremltools' decompression, and packages that coremltools compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from device_tests.coreml.evaluator.package import Package
from device_tests.coreml.evaluator.testing import Case, check_case, run_cases, save_program
from export.quiet import quiet

RNG = np.random.default_rng(4)
F16 = np.float16


def codes(dtype: Any, low: int, high: int, *shape: int) -> np.ndarray:
    return RNG.integers(low, high, size=shape).astype(dtype)


def scales(*shape: int) -> np.ndarray:
    return RNG.uniform(0.001, 0.1, size=shape).astype(F16)


def packed(indices: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of `bits` bits, the first in the lowest bits of the first byte."""
    planes = (indices.reshape(-1, 1) >> np.arange(bits)) & 1
    return np.packbits(planes.astype(np.uint8).reshape(-1), bitorder="little")


INT4, UINT4 = types.np_int4_dtype, types.np_uint4_dtype
SPARSE = RNG.integers(0, 2, size=(4, 6))
ROW = RNG.normal(size=(2, 3, 4)).astype(F16)

CASES = [
    Case(
        "int8_channel",
        "constexpr_blockwise_shift_scale",
        constants={"data": codes(np.int8, -128, 128, 6, 8), "scale": scales(6, 1)},
    ),
    Case(
        "int4_block",
        "constexpr_blockwise_shift_scale",
        constants={"data": codes(INT4, -8, 8, 6, 8), "scale": scales(3, 2)},
    ),
    # Below ten elements a constant lies in the specification itself, its 4-bit numbers packed.
    Case(
        "int4_small",
        "constexpr_blockwise_shift_scale",
        constants={"data": codes(INT4, -8, 8, 3, 3), "scale": scales(1, 3)},
    ),
    Case(
        "uint4_offset",
        "constexpr_blockwise_shift_scale",
        constants={"data": codes(UINT4, 0, 16, 2, 8), "scale": scales(2, 2), "offset": codes(UINT4, 0, 16, 2, 2)},
    ),
    Case(
        "uint4_half_offset",
        "constexpr_blockwise_shift_scale",
        constants={"data": codes(UINT4, 0, 16, 6, 8), "scale": scales(6, 2), "offset": ROW.reshape(6, 4)[:, :2]},
    ),
    *(
        Case(
            f"lut_{bits}",
            "constexpr_lut_to_dense",
            constants={
                "indices": codes(getattr(types, f"np_uint{bits}_dtype", np.uint8), 0, 2**bits, 4, 6),
                "lut": RNG.normal(size=(1, 1, 2**bits, 1)).astype(F16),
            },
        )
        for bits in (1, 2, 3, 4, 6, 8)
    ),
    Case(
        "lut_groups",
        "constexpr_lut_to_dense",
        constants={"indices": codes(UINT4, 0, 16, 4, 6), "lut": RNG.normal(size=(2, 3, 16, 1)).astype(F16)},
    ),
    *(
        Case(
            f"lut_vector_{axis % 2}",
            "constexpr_lut_to_dense",
            constants={
                "indices": codes(types.np_uint2_dtype, 0, 4, 4, 6),
                "lut": RNG.normal(size=(2, 1, 4, 3)).astype(F16),
                "vector_axis": axis,
            },
        )
        for axis in (0, -1)
    ),
    Case(
        "sparse",
        "constexpr_sparse_to_dense",
        constants={"nonzero_data": scales(int(SPARSE.sum())), "mask": SPARSE.astype(types.np_uint1_dtype)},
    ),
    Case(
        "quantize", "quantize", {"input": ROW}, {"scale": F16(0.02), "zero_point": np.int8(3), "output_dtype": "int8"}
    ),
    Case(
        "quantize_axis",
        "quantize",
        {"input": ROW},
        {"scale": scales(3), "zero_point": codes(np.uint8, 0, 99, 3), "axis": 1, "output_dtype": "uint8"},
    ),
    Case(
        "dequantize",
        "dequantize",
        {"input": codes(np.int8, -128, 128, 2, 3)},
        {"scale": scales(3), "axis": -1},
        lambda input, scale, axis: input * scale,
    ),
]

CASES_IOS16 = [
    Case(
        "affine_axis",
        "constexpr_affine_dequantize",
        constants={
            "quantized_data": codes(np.int8, -128, 128, 3, 4),
            "zero_point": codes(np.int8, -9, 9, 3),
            "scale": scales(3),
            "axis": 0,
        },
    ),
    Case(
        "affine_scalar",
        "constexpr_affine_dequantize",
        constants={
            "quantized_data": codes(np.uint8, 0, 256, 3, 4),
            "zero_point": np.uint8(128),
            "scale": F16(0.01),
            "axis": -1,
        },
    ),
    *(
        Case(
            f"packed_lut_{bits}",
            "constexpr_lut_to_dense",
            constants={
                "indices": packed(codes(np.uint8, 0, 2**bits, 5, 3), bits),
                "lut": RNG.normal(size=2**bits).astype(F16),
                "shape": np.array([5, 3], np.uint32),
            },
        )
        for bits in (1, 2, 4, 6, 8)
    ),
    Case(
        "packed_sparse",
        "constexpr_sparse_to_dense",
        constants={
            "nonzero_data": scales(int(SPARSE.sum())),
            "mask": packed(SPARSE, 1),
            "shape": np.array(SPARSE.shape, np.uint32),
        },
    ),
    Case(
        "constexpr_cast",
        "constexpr_cast",
        constants={"source_val": scales(3, 4), "output_dtype": "fp32"},
        expected=lambda source_val, output_dtype: source_val,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_coremltools(case: Case, results: dict[str, list[np.ndarray]]) -> None:
    check_case(case, results)


@pytest.fixture(scope="module")
def results_ios16(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    return run_cases(CASES_IOS16, tmp_path_factory.mktemp("ios16"), target="iOS16")


@pytest.mark.parametrize("case", CASES_IOS16, ids=lambda case: case.name)
def test_matches_coremltools_ios16(case: Case, results_ios16: dict[str, list[np.ndarray]]) -> None:
    check_case(case, results_ios16, target="iOS16")


WEIGHT = RNG.normal(size=(64, 96)).astype(F16)


@pytest.mark.parametrize("scheme", ["int8", "int4_block", "palettized"])
def test_a_package_compressed_by_coremltools_runs_on_its_decompressed_weights(scheme: str, tmp_path: Path) -> None:
    def build(given: dict[str, Any]) -> list[Any]:
        return [mb.linear(x=given["x"], weight=WEIGHT, name="y")]

    plain = save_program(tmp_path / "plain.mlpackage", {"x": mb.placeholder((64, 96), dtype=types.fp16)}, build)
    with quiet():
        import coremltools as ct
        from coremltools.optimize import coreml as cto

        model = ct.models.MLModel(str(plain.path), skip_model_load=True)
        if scheme == "palettized":
            config = cto.OpPalettizerConfig(mode="uniform", nbits=4, granularity="per_grouped_channel", group_size=16)
            small = cto.palettize_weights(model, cto.OptimizationConfig(global_config=config))
        else:
            fine = {"granularity": "per_block", "block_size": 32} if scheme == "int4_block" else {}
            config = cto.OpLinearQuantizerConfig(dtype=scheme[:4], weight_threshold=0, **fine)
            small = cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=config))
        small.save(str(tmp_path / "small.mlpackage"))
        cto.decompress_weights(small).save(str(tmp_path / "dense.mlpackage"))
    identity = {"x": np.eye(96, dtype=F16)[:64]}  # shows the weights themselves
    compressed = Package(tmp_path / "small.mlpackage").function().run(identity)["y"]
    np.testing.assert_array_equal(compressed, Package(tmp_path / "dense.mlpackage").function().run(identity)["y"])
    error = np.abs(compressed.astype(np.float32) - WEIGHT.T[:64].astype(np.float32))
    assert 0 < error.max() < 0.6
    assert any(op.startswith("constexpr_") for op in Package(tmp_path / "small.mlpackage").operation_counts())
