"""Constants of an ML Program: values written in the specification, and large ones in the package's weight files."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np

from device_tests.coreml.evaluator.tensor_spec import TensorSpec, UnsupportedTypeError, is_string, spec_of

# Readers of coremltools' blob storage by MIL type; they unpack types below a byte to one byte an element.
_BLOB_READERS = {"FLOAT16": "read_fp16_data", "FLOAT32": "read_float_data"} | {
    name: f"read_{name.lower()}_data"
    for name in ("INT4", "INT8", "INT16", "INT32", "UINT1", "UINT2", "UINT3", "UINT4", "UINT6", "UINT8", "UINT16")
    + ("UINT32",)
}
_BITS = {"INT4": 4, "UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6}


class Constant:
    """A value known before the program runs: a tensor, a string or a list of tensors, made when first asked for."""

    def __init__(self, key: Hashable, make: Callable[[], Any]) -> None:
        """Equal keys mean equal values, within one package."""
        self.key = key
        self._make: Callable[[], Any] | None = make
        self._value: Any = None

    @property
    def value(self) -> Any:
        if self._make is not None:
            self._value = self._make()
            self._make = None  # lets go of what it was made from, such as packed weights
        return self._value


class WeightFiles:
    """Reads values of one package; opens each weight file once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._readers: dict[str, Any] = {}

    def read(self, value: Any) -> np.ndarray | str:
        """The content of a MIL `Value`. Raises UnsupportedTypeError for lists, dictionaries and the like."""
        if is_string(value.type):
            return value.immediateValue.tensor.strings.values[0]
        spec = spec_of(value.type)
        source = value.WhichOneof("value")
        flat = self._blob(value.blobFileValue, spec) if source == "blobFileValue" else _immediate(value, spec)
        return flat.reshape([size or 0 for size in spec.shape])

    def _blob(self, blob: Any, spec: TensorSpec) -> np.ndarray:
        name = blob.fileName.rsplit("/", 1)[-1]  # "@model_path/weights/weight.bin"
        if name not in self._readers:
            from coremltools.libmilstoragepython import _BlobStorageReader

            self._readers[name] = _BlobStorageReader(str(self._folder / name))
        if spec.mil_type not in _BLOB_READERS:
            raise UnsupportedTypeError(f"weight files of {spec.mil_type}")
        data = np.asarray(getattr(self._readers[name], _BLOB_READERS[spec.mil_type])(blob.offset))
        return data.view(np.float16) if spec.mil_type == "FLOAT16" else data.astype(spec.dtype, copy=False)


def _immediate(value: Any, spec: TensorSpec) -> np.ndarray:
    if value.immediateValue.WhichOneof("value") != "tensor":
        raise UnsupportedTypeError(f"constants of {value.immediateValue.WhichOneof('value')}")
    tensor = value.immediateValue.tensor
    field = tensor.WhichOneof("value")
    if field is None:  # an empty array
        return np.zeros(0, spec.dtype)
    if field != "bytes":
        return np.array(getattr(tensor, field).values, dtype=spec.dtype)
    raw = tensor.bytes.values
    if spec.mil_type in _BITS:
        count = int(np.prod([size or 0 for size in spec.shape]))
        return unpack_bits(np.frombuffer(raw, np.uint8), _BITS[spec.mil_type], count, signed=spec.mil_type == "INT4")
    return np.frombuffer(raw, spec.dtype).copy()  # a copy, because torch wants memory it may write


def unpack_bits(packed: np.ndarray, bits: int, count: int, *, signed: bool = False) -> np.ndarray:
    """`count` numbers of `bits` bits from bytes uint8 [M]; the first number is in the lowest bits of the first byte.

    Returns uint8 [count], or int8 with the top bit as the sign.
    """
    planes = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits)
    codes = (planes << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if not signed:
        return codes
    shift = 8 - bits
    return (codes << shift).view(np.int8) >> shift
