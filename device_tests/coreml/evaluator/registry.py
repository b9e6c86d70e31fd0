"""Kernels: one Python function per MIL operation type, found by name and described by its own signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from torch import Tensor

KERNELS: dict[str, Kernel] = {}


@dataclass(frozen=True)
class Parameter:
    """An input of an operation: how its value reaches the kernel."""

    required: bool
    variadic: bool  # list[Tensor]: any number of values
    convert: Callable[[Any], Any] | None  # from a tensor to int, float, bool or a list of them; None: as it is


@dataclass(frozen=True)
class Kernel:
    """An operation's implementation.

    `exact`: with half-precision inputs its results are halves too, so it needs no rounding.
    `multiple`: it returns a list, one tensor per output.
    """

    function: Callable[..., Any]
    parameters: dict[str, Parameter]
    exact: bool
    multiple: bool


def kernel(*names: str, exact: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function for MIL operation types.

    Its parameters have the operation's input names and are annotated Tensor, list[Tensor], int, float, bool, str,
    list[int] or list[bool]; a default means that the input may be missing, as in the operation's definition. Floats
    arrive as float32 tensors, integers in their `TensorSpec.carrier`. It must not write to its inputs.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(function)
        parameters = {
            name: _parameter(hints[name], parameter.default is inspect.Parameter.empty)
            for name, parameter in inspect.signature(function).parameters.items()
        }
        multiple = get_origin(hints["return"]) is list
        for name in names:
            KERNELS[name] = Kernel(function, parameters, exact, multiple)
        return function

    return register


def _parameter(hint: Any, required: bool) -> Parameter:
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if NoneType in get_args(hint) else [hint]
    kind = kinds[0]
    return Parameter(required, kind == list[Tensor], _CONVERTERS[kind])


_CONVERTERS: dict[Any, Callable[[Any], Any] | None] = {
    Tensor: None,
    list[Tensor]: None,
    str: None,
    int: int,
    float: float,
    bool: bool,
    list[int]: Tensor.tolist,
    list[bool]: Tensor.tolist,
}
