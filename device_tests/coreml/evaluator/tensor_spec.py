"""Tensor types of the MIL specification, and the torch types that carry their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Name in MIL.proto -> (numpy type of inputs, outputs and states, torch type inside the evaluator). Half precision
# is carried in float32, which holds every half; unsigned types that torch lacks are carried in a wider one.
_TYPES: dict[str, tuple[type, torch.dtype]] = {
    "BOOL": (np.bool_, torch.bool),
    "FLOAT16": (np.float16, torch.float32),
    "FLOAT32": (np.float32, torch.float32),
    "INT4": (np.int8, torch.int8),
    "INT8": (np.int8, torch.int8),
    "INT16": (np.int16, torch.int16),
    "INT32": (np.int32, torch.int32),
    "INT64": (np.int64, torch.int64),
    "UINT1": (np.uint8, torch.uint8),
    "UINT2": (np.uint8, torch.uint8),
    "UINT3": (np.uint8, torch.uint8),
    "UINT4": (np.uint8, torch.uint8),
    "UINT6": (np.uint8, torch.uint8),
    "UINT8": (np.uint8, torch.uint8),
    "UINT16": (np.uint16, torch.int32),
    "UINT32": (np.uint32, torch.int64),
}


class UnsupportedTypeError(ValueError):
    """A type that the evaluator cannot carry."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of an input, output, state or intermediate value; None is a dimension known only at run time."""

    mil_type: str  # name in MIL.proto, such as FLOAT16
    shape: tuple[int | None, ...]

    @property
    def dtype(self) -> np.dtype:
        """numpy type of the value outside the evaluator."""
        return np.dtype(_TYPES[self.mil_type][0])

    @property
    def carrier(self) -> torch.dtype:
        """torch type of the value inside the evaluator."""
        return _TYPES[self.mil_type][1]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(
            want in (None, got) for want, got in zip(self.shape, shape, strict=True)
        )

    def carry(self, array: np.ndarray) -> Tensor:
        """A tensor of the carrier type. It may share memory with `array`."""
        if array.dtype in (np.uint16, np.uint32):  # torch converts these only in part
            array = array.astype(np.int64)
        return torch.from_numpy(array).to(self.carrier)

    def __str__(self) -> str:
        return f"{self.mil_type.lower()}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"


def spec_of(value_type: Any) -> TensorSpec:
    """The tensor type of a MIL `ValueType`; a state's type is the type of what it holds.

    Raises UnsupportedTypeError for lists, dictionaries, strings and types without a carrier.
    """
    kind = value_type.WhichOneof("type")
    if kind == "stateType":
        return spec_of(value_type.stateType.wrappedType)
    if kind != "tensorType":
        raise UnsupportedTypeError(f"values of {kind}")
    tensor = value_type.tensorType
    name = type_name(tensor)
    if name not in _TYPES:
        raise UnsupportedTypeError(f"tensors of {name}")
    sizes = (d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
    return TensorSpec(name, tuple(sizes))


def is_string(value_type: Any) -> bool:
    """Whether a MIL `ValueType` is one string, as in the mode of an operation."""
    return (
        value_type.WhichOneof("type") == "tensorType"
        and type_name(value_type.tensorType) == "STRING"
        and not value_type.tensorType.dimensions
    )


def type_name(tensor_type: Any) -> str:
    """Element type of a MIL `TensorType`, by its name in MIL.proto."""
    return tensor_type.DESCRIPTOR.fields_by_name["dataType"].enum_type.values_by_number[tensor_type.dataType].name
