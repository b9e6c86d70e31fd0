"""A `.mlpackage` on disk: its functions, and programs compiled from them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from adakv_model.errors import UserError
from device_tests.coreml.evaluator.compiler import compile_function, operation_counts
from device_tests.coreml.evaluator.constants import WeightFiles
from device_tests.coreml.evaluator.precision import Precision
from device_tests.coreml.evaluator.program import Program, new_state
from device_tests.coreml.evaluator.tensor_spec import TensorSpec, spec_of
from export.quiet import quiet


class Package:
    """Read access to a saved ML Program.

    Functions that share weights in the file share them in memory too, decompressed once as float32: 4 bytes a
    parameter. Programs are compiled when first asked for and kept.
    """

    def __init__(self, path: Path | str) -> None:
        """Raises UserError if `path` is not an ML Program."""
        self.path = Path(path)
        model, specification = _load(self.path)
        self.specification_version: int = model.specificationVersion
        self._functions = dict(model.mlProgram.functions)
        self._default = model.description.defaultFunctionName or "main"
        self._weights = WeightFiles(specification.parent / "weights")
        self._pool: WeakValueDictionary = WeakValueDictionary()
        self._programs: dict[tuple[str, Precision], Program] = {}

    @property
    def functions(self) -> list[str]:
        """Names, the default function first."""
        return sorted(self._functions, key=lambda name: (name != self._default, name))

    def function(self, name: str | None = None, precision: Precision = "fp16") -> Program:
        """The function `name` (the default one if None) compiled for `precision`; see `Program` for what that means.

        Raises UserError if there is no such function, or if it has operations that the evaluator lacks: it names all.
        """
        name = self._name(name)
        if (name, precision) not in self._programs:
            function = self._functions[name]
            program = compile_function(name, function, self._weights, self._pool, precision)
            self._programs[name, precision] = program
        return self._programs[name, precision]

    @property
    def states(self) -> dict[str, TensorSpec]:
        """The states of all functions. Raises UserError if two functions disagree about one."""
        states: dict[str, TensorSpec] = {}
        for function in self._functions.values():
            for value in function.inputs:
                if value.type.WhichOneof("type") == "stateType":
                    spec = spec_of(value.type)
                    if states.setdefault(value.name, spec) != spec:
                        raise UserError(f"{self.path}: functions disagree about state '{value.name}': export again")
        return states

    def new_state(self, precision: Precision = "fp16") -> dict[str, np.ndarray]:
        """Zeros for every state, shared by all functions: float32 for half states in "fp32" precision."""
        return new_state(self.states, precision)

    def operation_counts(self, name: str | None = None) -> Counter[str]:
        """How often each operation type occurs in a function, constants left out."""
        return operation_counts(self._functions[self._name(name)])

    def _name(self, name: str | None) -> str:
        name = self._default if name is None else name
        if name not in self._functions:
            raise UserError(f"{self.path} has no function '{name}': it has {', '.join(self.functions)}")
        return name


def _load(path: Path) -> tuple[Any, Path]:
    """The Model protobuf of a package and the path of its file."""
    if not path.is_dir():
        raise UserError(f"no package at {path}: pass the .mlpackage folder that export.py --target ios wrote")
    with quiet():  # coremltools warns of the parts that only macOS has
        from coremltools.libmodelpackage import ModelPackage
        from coremltools.proto import Model_pb2
    try:
        specification = Path(ModelPackage(str(path)).getRootModel().path())
        model = Model_pb2.Model()
        model.ParseFromString(specification.read_bytes())
    except Exception as error:  # the bindings raise plain RuntimeErrors, protobuf its DecodeError
        raise UserError(f"{path} is not a Core ML package ({error}): export it again") from error
    if model.WhichOneof("Type") != "mlProgram":
        raise UserError(f"{path} is a {model.WhichOneof('Type')} model: only ML Programs can be evaluated")
    return model, specification
