"""The transform of K from second moments: transform coding under the metric of the model's own loss.

Noise e on a K row costs e^T G e / 2 on average, G the second moment of the loss gradient there (Fisher information),
while rows have the second moment S. In the coordinates z = V^T S^-1/2 (k - mean), with V the eigenvectors of
S^1/2 G S^1/2 and mu its eigenvalues, rows are white and noise costs mu_j a channel: channels are sorted by mu and cut
into bands of equal size. Inside a band channels share a width, so they are scaled by mu^1/4 before and after, which
is the optimal balance for equal steps, and mixed by a Hadamard transform, which makes them alike and nearly Gaussian.
A band of n channels then costs (sum of sqrt(mu_j))^2 / n per unit of relative noise. (Goyal, "Theoretical foundations
of transform coding", IEEE Signal Processing Magazine 2001, for the Karhunen-Loeve part.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from adakv_model.quantizer import hadamard, n_bands

SHRINK = 1e-3  # of the mean eigenvalue, added to both moments: directions never seen must stay invertible


def band_transforms(gradients: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Second moments [..., D, D] -> transform float64 [..., D, D] (rows: channels, most sensitive band first; unit
    variance on average) and cost float64 [..., bands]."""
    gradients, rows = (_shrunk(x.double()) for x in (gradients, rows))
    dim = rows.shape[-1]
    bands = n_bands(dim)
    root, inverse = _power(rows, 0.5), _power(rows, -0.5)
    mu, vectors = torch.linalg.eigh(root @ gradients @ root)
    mu, vectors = mu.clamp(min=0).flip(-1), vectors.flip(-1)
    weight = mu.sqrt().unflatten(-1, (bands, dim // bands))
    cost = weight.sum(-1).square() / (dim // bands)
    balance = (weight / weight.mean(-1, keepdim=True).clamp(min=1e-300)).sqrt().flatten(-2)
    whitened = vectors.transpose(-1, -2) @ inverse
    mixed = hadamard((balance.unsqueeze(-1) * whitened).unflatten(-2, (bands, -1)).transpose(-1, -2))
    return mixed.transpose(-1, -2).flatten(-3, -2), cost


def _shrunk(x: Tensor) -> Tensor:
    mean = x.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return x + SHRINK * mean.clamp(min=1e-30) * torch.eye(x.shape[-1], dtype=x.dtype)


def _power(x: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(x)
    return (vectors * values.clamp(min=1e-30).pow(exponent).unsqueeze(-2)) @ vectors.transpose(-1, -2)
