"""What rotary embeddings make of a mean and of a second moment, on average over positions.

RoPE turns every pair of channels (i, i + D/2) of a key at position t by t * theta_i (Su et al., arXiv 2104.09864). Keys
before it hardly depend on the position, those that a cache stores do. In the complex coordinates z = x_i + i x_(i +
D/2) and its conjugate the rotation is diagonal, e^(i t phi), so the average over positions multiplies entry (a, b) of a
second moment by the mean of e^(i t (phi_a - phi_b)), and entry a of a mean by that of e^(i t phi_a).
"""

from __future__ import annotations

import torch
from torch import Tensor

from adakv_model.attention import apply_rope
from adakv_model.config import LlamaConfig


def before_rope(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Keys [KV, T, D] as they were before RoPE. cos, sin: [T, D / 2]."""
    return apply_rope(keys.transpose(0, 1), cos, -sin).transpose(0, 1)


class PositionAverage:
    """Averages over the positions 0, step, ..., (count - 1) step."""

    def __init__(self, config: LlamaConfig, count: int, step: int = 1) -> None:
        half = config.head_dim // 2
        frequency = config.rope_theta ** -(torch.arange(half, dtype=torch.float64) / half)
        phi = step * torch.cat((frequency, -frequency))
        self._first = _mean_turn(phi, count)  # [D]
        self._second = _mean_turn(phi.unsqueeze(1) - phi, count)  # [D, D]
        eye, zero = torch.eye(half, dtype=torch.float64), torch.zeros(half, half, dtype=torch.float64)
        z = torch.complex(torch.cat((eye, zero), 1), torch.cat((zero, eye), 1))
        self._basis = torch.cat((z, z.conj())) / 2**0.5  # unitary [D, D]

    def mean(self, x: Tensor) -> Tensor:
        """Means before RoPE [..., D] -> averages of the rotated ones, float64."""
        return ((x.double() + 0j) @ self._basis.T * self._first @ self._basis.conj()).real

    def second_moment(self, x: Tensor) -> Tensor:
        """Second moments before RoPE [..., D, D] -> averages of the rotated ones, float64."""
        turned = self._basis @ (x.double() + 0j) @ self._basis.mH * self._second
        return (self._basis.mH @ turned @ self._basis).real


def _mean_turn(angle: Tensor, count: int) -> Tensor:
    """Mean of e^(i t angle) over t = 0 .. count - 1: a Dirichlet kernel, whose limit is taken at whole turns."""
    half = angle / 2
    whole = half.sin().abs() < 1e-9
    size = torch.where(whole, (count * half).cos() / half.cos(), (count * half).sin() / (count * half.sin()))
    return torch.polar(torch.ones_like(angle), (count - 1) * half) * size
