"""Matrix products, activations and normalisation against value inference, or torch where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from device_tests.coreml.evaluator.testing import Case, check_case

RNG = np.random.default_rng(1)


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float16)


def t(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.asarray(x))


X, W, BIAS = real(3, 16), real(5, 16), real(5)
Q, K, V = real(1, 2, 3, 8), real(1, 2, 5, 8), real(1, 2, 5, 4)
MASK = np.array([[True, True, False, False, True]] * 3)
HALF = np.float16

CASES = [
    Case("linear", "linear", {"x": X}, {"weight": W, "bias": BIAS}, ulps=1),
    Case("linear_no_bias", "linear", {"x": X}, {"weight": W}, ulps=1),
    Case("linear_overflow", "linear", {"x": np.full((1, 2), 300, HALF)}, {"weight": np.full((1, 2), 200, HALF)}),
    Case("matmul", "matmul", {"x": real(2, 3, 4), "y": real(2, 4, 5)}, ulps=1),
    Case(
        "matmul_transposed",
        "matmul",
        {"x": real(4, 3), "y": real(2, 5, 4)},
        {"transpose_x": True, "transpose_y": True},
        ulps=1,
    ),
    Case("matmul_vector", "matmul", {"x": real(4), "y": real(4, 5)}, ulps=1),
    Case("matmul_int32", "matmul", {"x": np.arange(6, dtype=np.int32).reshape(2, 3), "y": np.ones((3, 2), np.int32)}),
    Case(
        "einsum4", "einsum", {"values": [real(2, 3, 4, 5), real(2, 5, 4, 6)]}, {"equation": "nchw,nwhu->nchu"}, ulps=1
    ),
    Case(
        "einsum4_broadcast",
        "einsum",
        {"values": [real(1, 3, 4, 5), real(2, 5, 1, 6)]},
        {"equation": "nchw,nwhu->nchu"},
        ulps=1,
    ),
    Case("einsum3", "einsum", {"values": [real(3, 4, 5), real(5, 4, 6)]}, {"equation": "chw,whr->chr"}, ulps=1),
    Case("attention", "scaled_dot_product_attention", {"query": Q, "key": K, "value": V}, ulps=2),
    Case(
        "attention_mask", "scaled_dot_product_attention", {"query": Q, "key": K, "value": V, "attn_mask": MASK}, ulps=2
    ),
    Case(
        "attention_bias",
        "scaled_dot_product_attention",
        {"query": Q, "key": K, "value": V, "attn_mask": real(3, 5)},
        ulps=2,
    ),
    Case(
        "conv1d_same",
        "conv",
        {"x": real(1, 4, 7)},
        {"weight": real(6, 2, 4), "bias": real(6), "groups": 2, "pad_type": "same"},
        lambda x, weight, bias, groups, pad_type: F.conv1d(F.pad(t(x), (1, 2)), t(weight), t(bias), groups=2),
        ulps=1,
    ),
    Case(
        "conv1d_same_lower",
        "conv",
        {"x": real(1, 4, 7)},
        {"weight": real(6, 4, 4), "pad_type": "same_lower", "strides": [2]},
        lambda x, weight, pad_type, strides: F.conv1d(F.pad(t(x), (2, 1)), t(weight), stride=2),
        ulps=1,
    ),
    Case(
        "conv2d_custom",
        "conv",
        {"x": real(2, 3, 5, 6)},
        {"weight": real(4, 3, 2, 3), "pad_type": "custom", "pad": [1, 0, 2, 1], "strides": [1, 2], "dilations": [2, 1]},
        lambda x, weight, **_: F.conv2d(F.pad(t(x), (2, 1, 1, 0)), t(weight), stride=(1, 2), dilation=(2, 1)),
        ulps=1,
    ),
    *(Case(op, op, {"x": real(3, 4)}, ulps=1) for op in ("relu", "relu6", "sigmoid", "tanh", "softplus")),
    Case("softplus_large", "softplus", {"x": np.array([-30, 0, 30, 1000], HALF)}, ulps=1),
    Case("leaky_relu", "leaky_relu", {"x": real(3, 4)}, {"alpha": HALF(0.1)}, ulps=1),
    Case("sigmoid_hard", "sigmoid_hard", {"x": real(3, 4)}, {"alpha": HALF(0.3), "beta": HALF(0.5)}, ulps=1),
    Case("linear_activation", "linear_activation", {"x": real(3, 4)}, {"alpha": HALF(0.3), "beta": HALF(0.5)}, ulps=1),
    Case("scaled_tanh", "scaled_tanh", {"x": real(3, 4)}, {"alpha": HALF(0.3), "beta": HALF(0.5)}, ulps=1),
    Case(
        "silu",
        "silu",
        {"x": np.array([-70, -5, -0.5, 0, 3, 60000], HALF)},
        expected=lambda x: x / (1 + np.exp(-x)),
        ulps=1,
    ),
    *(
        Case(f"gelu_{mode}", "gelu", {"x": real(3, 4)}, {"mode": mode}, ulps=2)
        for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
    ),
    Case("softmax", "softmax", {"x": real(3, 4)}, ulps=1),
    Case("softmax_axis", "softmax", {"x": (real(2, 3, 4) * 20).astype(HALF)}, {"axis": 1}, ulps=1),
    Case("softmax_masked", "softmax", {"x": np.array([[-1e4, 1, -1e4, 2]], HALF)}, ulps=1),
    Case(
        "layer_norm",
        "layer_norm",
        {"x": real(2, 3, 4)},
        {"axes": [-1], "gamma": real(4), "beta": real(4), "epsilon": HALF(1e-3)},
        ulps=2,
    ),
    Case(
        "layer_norm_axes",
        "layer_norm",
        {"x": real(2, 3, 4)},
        {"axes": [1, 2], "gamma": real(3, 4), "beta": real(3, 4)},
        ulps=2,
    ),
    Case("layer_norm_all", "layer_norm", {"x": real(2, 3, 4)}, {"axes": [0, 1, 2]}, ulps=2),
    Case("l2_norm", "l2_norm", {"x": real(2, 3, 4, 5)}, {"epsilon": HALF(1e-3)}, ulps=1),
    Case("l2_norm_rank3", "l2_norm", {"x": real(3, 4, 5)}, ulps=1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_reference(case: Case, results: dict[str, list[np.ndarray]]) -> None:
    check_case(case, results)


def test_attention_divides_by_the_root_of_the_embedding(results: dict[str, list[np.ndarray]]) -> None:
    torch_result = F.scaled_dot_product_attention(t(Q).float(), t(K).float(), t(V).float()).numpy()
    assert math.isclose(np.abs(results["attention"][0] - torch_result).max(), 0, abs_tol=2e-3)
