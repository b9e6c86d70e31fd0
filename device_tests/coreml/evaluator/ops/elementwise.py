"""Elementwise operations, with numpy's broadcasting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from device_tests.coreml.evaluator.registry import kernel

# Division, floor division and remainder of integers follow numpy: towards minus infinity, sign of the divisor.
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "pow": torch.pow,
}
_BINARY_EXACT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "not_equal": torch.ne,
}
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
}
_UNARY_EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "round": torch.round,  # half to even
}


def _register_binary(name: str, function: Callable[[Tensor, Tensor], Tensor], *, exact: bool) -> None:
    @kernel(name, exact=exact)
    def run(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)


def _register_unary(name: str, function: Callable[[Tensor], Tensor], *, exact: bool) -> None:
    @kernel(name, exact=exact)
    def run(x: Tensor) -> Tensor:
        return function(x)


for _table, _exact in ((_BINARY, False), (_BINARY_EXACT, True)):
    for _name, _binary in _table.items():
        _register_binary(_name, _binary, exact=_exact)
for _unary_table, _exact in ((_UNARY, False), (_UNARY_EXACT, True)):
    for _name, _unary in _unary_table.items():
        _register_unary(_name, _unary, exact=_exact)


@kernel("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """x / y. Integers are refused: their definition gives a fraction and declares an integer."""
    if not (x.is_floating_point() and y.is_floating_point()):
        raise RuntimeError("real_div of integers is not defined: cast them first")
    return x / y


@kernel("sign", exact=True)
def sign(x: Tensor) -> Tensor:
    return torch.where(x != x, x, torch.sign(x))  # NaN stays; torch makes it 0


@kernel("clip", exact=True)
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


@kernel("threshold", exact=True)
def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.maximum(x, alpha)


@kernel("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return 1 / (x + epsilon)


@kernel("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


@kernel("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


@kernel("select", exact=True)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


@kernel("identity", exact=True)
def identity(x: Tensor) -> Tensor:
    return x


_CARRIERS = {
    "fp16": torch.float32,
    "fp32": torch.float32,
    "int32": torch.int32,
    "int16": torch.int16,
    "uint16": torch.int32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


@kernel("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    """Floats to integers towards zero, integers modulo the size of the type, anything but zero is true."""
    carrier = _CARRIERS[dtype]
    if carrier.is_floating_point or carrier is torch.bool:
        return x.to(carrier)
    whole = x.to(torch.int64)  # first: floats beyond a narrow type would otherwise convert differently by machine
    return (whole & 0xFFFF if dtype == "uint16" else whole).to(carrier)
