"""From operations to closures over registers: constants bound once, results rounded and checked, dead values freed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from device_tests.coreml.evaluator.constants import Constant
from device_tests.coreml.evaluator.precision import Precision
from device_tests.coreml.evaluator.program import Registers, Step
from device_tests.coreml.evaluator.registry import Kernel
from device_tests.coreml.evaluator.tensor_spec import TensorSpec

Argument = Constant | int | list[Constant | int]  # an int is a register


@dataclass
class Node:
    """An operation that runs with the program. Without a kernel it copies its one argument: states work that way."""

    label: str
    kernel: Kernel | None
    arguments: dict[str, Argument]
    outputs: list[int]
    specs: list[TensorSpec]

    def reads(self) -> set[int]:
        return {value for value in self._values() if isinstance(value, int)}

    def constants(self) -> list[Constant]:
        return [value for value in self._values() if isinstance(value, Constant)]

    def _values(self) -> list[Constant | int]:
        return [value for argument in self.arguments.values() for value in _listed(argument)]


def fold(kernel: Kernel, arguments: dict[str, Argument], specs: list[TensorSpec], precision: Precision) -> Any:
    """What an operation returns whose arguments are all constants; a list for kernels with several outputs."""
    values = {name: _bound(kernel, name, argument) for name, argument in arguments.items()}
    result = kernel.function(**values)
    finishers = [finisher(kernel, spec, precision) for spec in specs]
    if kernel.multiple:
        return [finish(value) for finish, value in zip(finishers, result, strict=True)]
    return finishers[0](result)


def finisher(kernel: Kernel, spec: TensorSpec, precision: Precision) -> Callable[[Tensor], Tensor]:
    """Rounds a result to half precision where `spec` says so, and insists on the shape and type of `spec`."""
    rounds = spec.mil_type == "FLOAT16" and precision == "fp16" and not kernel.exact
    carrier, shape = spec.carrier, spec.shape
    known = None not in shape

    def finish(result: Tensor) -> Tensor:
        if not (result.shape == shape if known else spec.accepts(tuple(result.shape))):
            raise RuntimeError(f"the file declares {spec}, evaluated to shape {list(result.shape)}")
        if result.dtype is not carrier:
            if result.is_floating_point() or carrier.is_floating_point or carrier is torch.bool:
                raise RuntimeError(f"the file declares {spec}, evaluated to {result.dtype}")
            result = result.to(carrier)
        return result.half().float() if rounds else result

    return finish


def build_steps(nodes: list[Node], kept: set[int], registers: Registers, precision: Precision) -> list[Step]:
    """Closures in the order of `nodes`. `registers` gets the constants; registers in `kept` are never emptied."""
    last_use: dict[int, int] = {}
    for index, node in enumerate(nodes):
        last_use |= dict.fromkeys([*node.outputs, *node.reads()], index)
    dying: dict[int, list[int]] = {}
    for slot, index in last_use.items():
        if slot not in kept:
            dying.setdefault(index, []).append(slot)
    return [
        Step(_closure(node, dying.get(index, []), registers, precision), node.label) for index, node in enumerate(nodes)
    ]


def place(value: Constant | int, registers: Registers) -> int:
    """The register of a value; a constant gets a new one."""
    if isinstance(value, int):
        return value
    registers.append(value.value)
    return len(registers) - 1


def _closure(node: Node, dying: list[int], registers: Registers, precision: Precision) -> Callable[[Registers], None]:
    if node.kernel is None:
        return _copy(node, dying)
    fixed: dict[str, Any] = {}
    single: list[tuple[str, int, Callable[[Any], Any] | None]] = []
    many: list[tuple[str, list[int]]] = []
    for name, argument in node.arguments.items():
        if isinstance(argument, int):
            single.append((name, argument, node.kernel.parameters[name].convert))
        elif isinstance(argument, list):
            many.append((name, [place(value, registers) for value in argument]))
        else:
            fixed[name] = _bound(node.kernel, name, argument)
    function, multiple, outputs = node.kernel.function, node.kernel.multiple, node.outputs
    finishers = [finisher(node.kernel, spec, precision) for spec in node.specs]

    def run(registers: Registers) -> None:
        arguments = {name: registers[at] if convert is None else convert(registers[at]) for name, at, convert in single}
        for name, slots in many:
            arguments[name] = [registers[at] for at in slots]
        result = function(**arguments, **fixed)
        if multiple:
            for slot, finish, value in zip(outputs, finishers, result, strict=True):
                registers[slot] = finish(value)
        else:
            registers[outputs[0]] = finishers[0](result)
        for slot in dying:
            registers[slot] = None

    return run


def _copy(node: Node, dying: list[int]) -> Callable[[Registers], None]:
    (source,), (target,) = node.reads(), node.outputs

    def run(registers: Registers) -> None:
        registers[target] = registers[source]
        for slot in dying:
            registers[slot] = None

    return run


def _bound(kernel: Kernel, name: str, argument: Argument) -> Any:
    """What the kernel gets for an argument that is constant."""
    values = [value.value for value in _listed(argument) if isinstance(value, Constant)]
    if kernel.parameters[name].variadic:
        return values
    convert = kernel.parameters[name].convert
    return values[0] if convert is None else convert(values[0])


def _listed(argument: Argument) -> list[Constant | int]:
    return argument if isinstance(argument, list) else [argument]
