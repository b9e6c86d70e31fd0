"""Activations, softmax and normalisation, each computed in float32 and rounded once by the caller."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from device_tests.coreml.evaluator.registry import kernel


@kernel("relu", exact=True)
def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


@kernel("relu6", exact=True)
def relu6(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


@kernel("leaky_relu")
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x < 0, x * alpha, x)


@kernel("sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@kernel("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (x * alpha + beta).clamp(0, 1)


@kernel("silu")
def silu(x: Tensor) -> Tensor:
    return F.silu(x)


@kernel("tanh")
def tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


@kernel("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * torch.tanh(x * beta)


@kernel("softplus")
def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros(()))


@kernel("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x * alpha + beta


@kernel("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[mode])


@kernel("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, dim=axis)


@kernel("layer_norm")
def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta over `axes`; gamma and beta have the shape x.shape[axes]."""
    dims = sorted(axis % x.dim() for axis in (axes if axes is not None else range(x.dim())))
    centered = x - x.mean(dims, keepdim=True)
    normalized = centered / torch.sqrt(centered.square().mean(dims, keepdim=True) + epsilon)
    shape = [size if dim in dims else 1 for dim, size in enumerate(x.shape)]
    scaled = normalized if gamma is None else normalized * gamma.reshape(shape)
    return scaled if beta is None else scaled + beta.reshape(shape)


@kernel("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """x / sqrt(sum of squares over the last three dimensions + epsilon)."""
    return x / torch.sqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)
