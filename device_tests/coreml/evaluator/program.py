"""A compiled function of an ML Program and its run loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adakv_model.errors import UserError
from device_tests.coreml.evaluator.constants import Constant
from device_tests.coreml.evaluator.precision import Precision
from device_tests.coreml.evaluator.tensor_spec import TensorSpec

Registers = list[Any]  # tensors; None where nothing is yet or anymore


@dataclass(frozen=True)
class Step:
    """One operation: reads and writes registers, and empties those that nothing reads afterwards."""

    run: Callable[[Registers], None]
    label: str


class Program:
    """One function of a package, ready to run.

    With precision "fp16" every operation computes in float32 and its result is rounded once to half precision where
    the file says FLOAT16: elementwise results are those of IEEE half arithmetic; sums and matrix products are as
    accurate as halves can be, which hardware that accumulates in halves will not reach. With "fp32" nothing is
    rounded, neither results nor states: what the program would compute with exact arithmetic, nearly.
    """

    def __init__(
        self,
        name: str,
        precision: Precision,
        *,
        inputs: dict[str, TensorSpec],
        outputs: dict[str, TensorSpec],
        states: dict[str, TensorSpec],
        steps: list[Step],
        registers: Registers,
        slots: dict[str, int],
        constants: Sequence[Constant],
    ) -> None:
        """`slots` finds inputs, states and `output:NAME`s in `registers`, which hold constants that operations list.

        `constants` are all that the steps use, kept so that other functions of the package can share them.
        """
        self.name = name
        self.precision = precision
        self.inputs = inputs
        self.outputs = outputs
        self.states = states
        self._steps = steps
        self._registers = registers
        self._slots = slots
        self._constants = constants

    @property
    def constants(self) -> list[Any]:
        """What the operations use that is known before the run: tensors float32 or integer, strings."""
        return [constant.value for constant in self._constants]

    def new_state(self) -> dict[str, np.ndarray]:
        """Zeros for every state of this function, as Core ML begins: float32 for half states in "fp32" precision."""
        return new_state(self.states, self.precision)

    def run(
        self, inputs: Mapping[str, np.ndarray], state: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Outputs by name, in the types of `outputs` (float32 for halves in "fp32" precision).

        `inputs`: arrays of the shapes in `inputs`; any integer type for integers, any float type for floats.
        `state`: arrays by name as `new_state` makes them, updated in place if the run succeeds; states of other
        functions may be among them. A float32 array keeps what a float16 one would round.
        Raises UserError for missing, unknown or misshapen inputs and states.
        """
        state = state if state is not None else {}
        registers = self._registers.copy()
        with torch.inference_mode():
            for name, array in self._checked("input", self.inputs, inputs, exact=True).items():
                registers[self._slots[name]] = self._rounded(self.inputs[name], array)
            for name, array in self._checked("state", self.states, state, exact=False).items():
                registers[self._slots[name]] = self._rounded(self.states[name], array)
            before = {name: registers[self._slots[name]] for name in self.states}
            for step in self._steps:
                try:
                    step.run(registers)
                except Exception as error:
                    error.add_note(f"in {step.label} of function '{self.name}'")
                    raise
            for name in self.states:
                after = registers[self._slots[name]]
                if after is not before[name]:
                    torch.from_numpy(state[name]).copy_(after)
            return {name: self._result(name, registers) for name in self.outputs}

    def _checked(
        self, kind: str, specs: dict[str, TensorSpec], given: Mapping[str, np.ndarray], *, exact: bool
    ) -> dict[str, np.ndarray]:
        """The arrays that `specs` names, with their shapes and kinds of number checked."""
        missing = sorted(specs.keys() - given.keys())
        unknown = sorted(given.keys() - specs.keys()) if exact else []
        if missing or unknown:
            words = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has no {', '.join(unknown)}"] * bool(unknown)
            raise UserError(f"function '{self.name}' {' and '.join(words)}: its {kind}s are {_listed(specs)}")
        arrays = {name: np.asarray(given[name]) for name in specs}
        for name, spec in specs.items():
            array = arrays[name]
            if not spec.accepts(array.shape):
                raise UserError(f"{kind} '{name}' of function '{self.name}' is {spec}, not an array of {array.shape}")
            if not np.can_cast(array.dtype, spec.dtype, "same_kind") or array.dtype == object:
                raise UserError(f"{kind} '{name}' of function '{self.name}' is {spec}: {array.dtype} does not fit")
        return arrays

    def _rounded(self, spec: TensorSpec, array: np.ndarray) -> Tensor:
        half = spec.mil_type == "FLOAT16" and self.precision == "fp16" and array.dtype != np.float16
        # A copy in any case, because callers may change their arrays while outputs still refer to them.
        return spec.carry(array.astype(np.float16) if half else array.copy())

    def _result(self, name: str, registers: Registers) -> np.ndarray:
        value = registers[self._slots[f"output:{name}"]]
        spec = self.outputs[name]
        keep = spec.mil_type == "FLOAT16" and self.precision == "fp32"
        return np.array(value.numpy(), dtype=np.float32 if keep else spec.dtype)


def new_state(states: Mapping[str, TensorSpec], precision: Precision) -> dict[str, np.ndarray]:
    """Zeros in the types of `states`; half states as float32 in "fp32" precision."""

    def zeros(spec: TensorSpec) -> np.ndarray:
        wide = precision == "fp32" and spec.mil_type == "FLOAT16"
        return np.zeros([size or 0 for size in spec.shape], np.float32 if wide else spec.dtype)

    return {name: zeros(spec) for name, spec in states.items()}


def _listed(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{name} {spec}" for name, spec in specs.items()) or "none"
