"""From a function's protobuf to a `Program`: names resolved, constants folded, dead operations left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import Any
from weakref import WeakValueDictionary

from adakv_model.errors import UserError
from device_tests.coreml.evaluator import ops  # noqa: F401  (registers the kernels)
from device_tests.coreml.evaluator.constants import Constant, WeightFiles
from device_tests.coreml.evaluator.precision import Precision
from device_tests.coreml.evaluator.program import Program, Registers
from device_tests.coreml.evaluator.registry import KERNELS
from device_tests.coreml.evaluator.steps import Argument, Node, build_steps, fold, place
from device_tests.coreml.evaluator.tensor_spec import UnsupportedTypeError, is_string, spec_of

# Operation -> its input that names the state, and the one with the value to write.
STATE_OPERATIONS = {
    "read_state": ("input", None),
    "write_state": ("input", "data"),
    "coreml_update_state": ("state", "value"),
}
# Constants in use, by key: the functions of a package have their weights in common.
Pool = WeakValueDictionary[Hashable, Constant]


def operation_counts(function: Any) -> Counter[str]:
    """How often each operation type occurs in a function's protobuf, constants left out."""
    return Counter(op.type for op in block_of(function).operations if op.type != "const")


def block_of(function: Any) -> Any:
    """The operations of a MIL `Function`, in the opset that it chose."""
    return function.block_specializations[function.opset]


def compile_function(name: str, function: Any, weights: WeightFiles, pool: Pool, precision: Precision) -> Program:
    """Compile one MIL `Function`.

    Raises UserError that names every operation, operation input and type of value without support.
    """
    _check_supported(name, function)
    return _Compiler(weights, pool, precision).compile(name, function)


class _Compiler:
    def __init__(self, weights: WeightFiles, pool: Pool, precision: Precision) -> None:
        self.weights = weights
        self.pool = pool
        self.precision = precision
        self.values: dict[str, Constant | int] = {}  # by name in the specification; an int is a register
        self.registers: Registers = []

    def compile(self, name: str, function: Any) -> Program:
        block = block_of(function)
        arguments = {v.name: spec_of(v.type) for v in function.inputs}
        states = {v.name: arguments[v.name] for v in function.inputs if v.type.WhichOneof("type") == "stateType"}
        inputs = {value: spec for value, spec in arguments.items() if value not in states}
        slots = {value: self.new_register(value) for value in arguments}
        nodes = [node for op in block.operations for node in self.add(op)]
        results = {f"output:{output}": place(self.values[output], self.registers) for output in block.outputs}
        kept = {*slots.values(), *results.values()}
        live = _live(nodes, kept)
        types = {output.name: output.type for op in block.operations for output in op.outputs}
        types |= {value.name: value.type for value in function.inputs}
        return Program(
            name,
            self.precision,
            inputs=inputs,
            outputs={output: spec_of(types[output]) for output in block.outputs},
            states=states,
            steps=build_steps(live, kept, self.registers, self.precision),
            registers=self.registers,
            slots=slots | results,
            constants=[constant for node in live for constant in node.constants()],
        )

    def new_register(self, name: str) -> int:
        self.registers.append(None)
        self.values[name] = len(self.registers) - 1
        return len(self.registers) - 1

    def add(self, op: Any) -> Iterator[Node]:
        """Define an operation's outputs; yields nodes if something has to run with the program."""
        if op.type == "const":
            self.values[op.outputs[0].name] = self.constant(op.attributes["val"])
        elif op.type in STATE_OPERATIONS:
            yield from self.access_state(op)
        else:
            yield from self.apply_kernel(op)

    def access_state(self, op: Any) -> Iterator[Node]:
        state_input, value_input = STATE_OPERATIONS[op.type]
        (source,) = self.argument(op.inputs[state_input])
        assert isinstance(source, int), "a state is an input of the function"
        if value_input is not None:
            state, (value,) = source, self.argument(op.inputs[value_input])
            source = place(value, self.registers)
            yield Node(_label(op), None, {"x": source}, [state], [])
        for output in op.outputs:
            yield Node(_label(op), None, {"x": source}, [self.new_register(output.name)], [])

    def apply_kernel(self, op: Any) -> Iterator[Node]:
        kernel, precision = KERNELS[op.type], self.precision
        arguments = self.arguments(op)
        specs = [spec_of(output.type) for output in op.outputs]
        keys = _constant_keys(arguments)
        if keys is None:
            yield Node(_label(op), kernel, arguments, [self.new_register(output.name) for output in op.outputs], specs)
            return
        folded = self.pooled((op.type, precision, keys), lambda: fold(kernel, arguments, specs, precision))
        for index, output in enumerate(op.outputs):
            self.values[output.name] = self.item(folded, index) if kernel.multiple else folded

    def item(self, folded: Constant, index: int) -> Constant:
        return self.pooled((folded.key, index), lambda: folded.value[index])

    def arguments(self, op: Any) -> dict[str, Argument]:
        given = {name: self.argument(argument) for name, argument in op.inputs.items()}
        # The compression operations of iOS 16 have their inputs as attributes.
        given |= {name: [self.constant(value)] for name, value in op.attributes.items() if name != "name"}
        parameters = KERNELS[op.type].parameters
        return {name: values if parameters[name].variadic else values[0] for name, values in given.items()}

    def argument(self, argument: Any) -> list[Constant | int]:
        return [
            self.values[b.name] if b.WhichOneof("binding") == "name" else self.constant(b.value)
            for b in argument.arguments
        ]

    def constant(self, value: Any) -> Constant:
        def make() -> Any:
            content = self.weights.read(value)
            return content if isinstance(content, str) else spec_of(value.type).carry(content)

        return self.pooled(value.SerializeToString(deterministic=True), make)

    def pooled(self, key: Hashable, make: Callable[[], Any]) -> Constant:
        constant = self.pool.get(key) or Constant(key, make)
        self.pool[key] = constant
        return constant


def _constant_keys(arguments: dict[str, Argument]) -> Hashable | None:
    """A key for the arguments if all are constants."""
    groups = {name: argument if isinstance(argument, list) else [argument] for name, argument in arguments.items()}
    if any(isinstance(value, int) for group in groups.values() for value in group):
        return None
    return tuple((name, tuple(v.key for v in groups[name] if isinstance(v, Constant))) for name in sorted(groups))


def _live(nodes: list[Node], kept: set[int]) -> list[Node]:
    """The nodes that an output or a state depends on."""
    needed, live = set(kept), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            needed |= node.reads()
            live.append(node)
    return live[::-1]


def _label(op: Any) -> str:
    return f"{op.type} '{op.outputs[0].name if op.outputs else op.inputs['input'].arguments[0].name}'"


def _check_supported(name: str, function: Any) -> None:
    problems: Counter[str] = Counter()
    for value in function.inputs:
        problems.update(_type_problems(f"input '{value.name}'", value.type))
    for op in block_of(function).operations:
        problems.update(_problems(op))
    if problems:
        listed = ", ".join(problem if n == 1 else f"{problem} ({n} times)" for problem, n in sorted(problems.items()))
        raise UserError(
            f"the evaluator cannot run function '{name}', it lacks: {listed}; add kernels in"
            " device_tests/coreml/evaluator/ops, or export without these operations"
        )


def _problems(op: Any) -> Iterator[str]:
    """What the evaluator lacks for an operation."""
    if op.type in STATE_OPERATIONS:
        return
    if op.type != "const":
        if op.type not in KERNELS:
            yield op.type
            return
        parameters = KERNELS[op.type].parameters
        given = {*op.inputs, *op.attributes} - {"name"}
        yield from (f"input '{extra}' of {op.type}" for extra in sorted(given - parameters.keys()))
        missing = {parameter for parameter, p in parameters.items() if p.required} - given
        yield from (f"{op.type} without input '{parameter}'" for parameter in sorted(missing))
        bound = [b.value.type for argument in op.inputs.values() for b in argument.arguments if b.HasField("value")]
    else:
        bound = []
    attributes = [value.type for key, value in op.attributes.items() if key != "name"]
    for value_type in [*bound, *attributes, *(output.type for output in op.outputs)]:
        yield from _type_problems(op.type, value_type)


def _type_problems(what: str, value_type: Any) -> Iterator[str]:
    if is_string(value_type):
        return
    try:
        spec_of(value_type)
    except UnsupportedTypeError as error:
        yield f"{what} with {error}"
