"""Compressed weights and quantized activations: affine per block, lookup tables, sparse masks.

The operations of iOS 16 and iOS 18 with one name differ in their inputs, so their kernels take both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from device_tests.coreml.evaluator.constants import unpack_bits
from device_tests.coreml.evaluator.registry import kernel


@kernel("constexpr_blockwise_shift_scale")
def blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset); scale and offset [*S], data [*D] with every D a multiple of S: iOS 18."""
    values = data.float().reshape(_blocks(data.shape, scale.shape))
    spread = [size for part in scale.shape for size in (part, 1)]
    if offset is not None:
        values = values - offset.float().reshape(spread)
    return (values * scale.reshape(spread)).reshape(data.shape)


@kernel("constexpr_affine_dequantize")
def affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """scale * (quantized_data - zero_point), both scalars or vectors along `axis`: iOS 16."""
    rank = quantized_data.dim()
    return (quantized_data.float() - _along(zero_point.float(), rank, axis)) * _along(scale, rank, axis)


@kernel("constexpr_lut_to_dense", exact=True)
def lut_to_dense(
    indices: Tensor, lut: Tensor, vector_axis: int | None = None, shape: list[int] | None = None
) -> Tensor:
    """Values of a lookup table.

    iOS 16: indices are packed bits, lut [palettes], the result has `shape`. iOS 18: indices [*D], lut [*S, palettes,
    V]: one table per block of D / S, whose entries of V values are laid along `vector_axis`.
    """
    if shape is not None:
        return lut[_unpacked(indices, lut.numel().bit_length() - 1, shape).long()]
    palettes, vector = lut.shape[-2:]
    tables = lut.reshape(-1, palettes, vector)
    table = torch.arange(tables.shape[0]).reshape([size for part in lut.shape[:-2] for size in (part, 1)])
    blocks = indices.long().reshape(_blocks(indices.shape, lut.shape[:-2]))
    values = tables[table, blocks].reshape(*indices.shape, vector)
    axis = 0 if vector_axis is None else vector_axis % indices.dim()
    return values.movedim(-1, axis + 1).flatten(axis, axis + 1)


@kernel("constexpr_sparse_to_dense", exact=True)
def sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: list[int] | None = None) -> Tensor:
    """nonzero_data at the places of ones in the mask, else 0: packed bits and a shape in iOS 16, an array in iOS 18."""
    present = (mask if shape is None else _unpacked(mask, 1, shape)) != 0
    dense = torch.zeros(present.shape, dtype=nonzero_data.dtype)
    dense[present] = nonzero_data
    return dense


@kernel("constexpr_cast")
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """Half to single precision, the only cast there is."""
    return source_val.float()


@kernel("quantize")
def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """clip(round(input / scale) + zero_point) in int8 or uint8: iOS 17."""
    carrier = {"int8": torch.int8, "uint8": torch.uint8}[output_dtype]
    codes = torch.round(input / _along(scale, input.dim(), axis))
    if zero_point is not None:
        codes = codes + _along(zero_point.float(), input.dim(), axis)
    limits = torch.iinfo(carrier)
    return codes.clamp(limits.min, limits.max).to(carrier)


@kernel("dequantize")
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """scale * (input - zero_point): iOS 17."""
    codes = input.float()
    if zero_point is not None:
        codes = codes - _along(zero_point.float(), input.dim(), axis)
    return codes * _along(scale, input.dim(), axis)


def _blocks(shape: torch.Size, parts: torch.Size) -> list[int]:
    """Each dimension as (parts, elements of a part)."""
    return [size for total, part in zip(shape, parts, strict=True) for size in (part, total // part)]


def _along(vector: Tensor, rank: int, axis: int | None) -> Tensor:
    """A scalar as it is; a vector along `axis` of a tensor with `rank` dimensions."""
    if vector.dim() == 0 or axis is None:
        return vector
    return vector.reshape([-1 if dim == axis % rank else 1 for dim in range(rank)])


def _unpacked(packed: Tensor, bits: int, shape: list[int]) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    return torch.from_numpy(unpack_bits(packed.numpy(), bits, count)).reshape(shape)
