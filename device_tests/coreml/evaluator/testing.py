"""Tests of single operations: saved in a package, evaluated, and compared with coremltools' own value inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from device_tests.coreml.evaluator.package import Package
from device_tests.coreml.evaluator.precision import Precision
from export.coreml.convert import quiet_stderr
from export.quiet import quiet

with quiet():
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program, types

TARGETS = {"iOS16": ct.target.iOS16, "iOS17": ct.target.iOS17, "iOS18": ct.target.iOS18}
_INPUT_TYPES = {"float16": types.fp16, "float32": types.fp32}


@dataclass(frozen=True)
class Case:
    """One operation.

    `inputs` arrive when the program runs, so that nothing can fold them: arrays, or lists of arrays for operations
    that take any number. `constants` are written into the program. What is expected is asked of coremltools' value
    inference, in float32, or computed by `expected` from all values by name; it returns a list if there are several.
    """

    name: str
    op: str
    inputs: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    expected: Callable[..., Any] | None = None
    ulps: int = 0  # tolerated difference of floats, in units of the last place

    def arrays(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """(parameter, name of the program's input, array)."""
        for key, value in self.inputs.items():
            for i, array in enumerate(value if isinstance(value, list) else [value]):
                yield key, f"{self.name}_{key}_{i}", array


def run_cases(
    cases: Sequence[Case], folder: Path, *, target: str = "iOS18", precision: Precision = "fp16"
) -> dict[str, list[np.ndarray]]:
    """Evaluate all cases as one saved program; the outputs of each by its name."""
    program = save_program(folder / "cases.mlpackage", _inputs(cases), lambda given: _build(cases, given), target)
    outputs = program.function(precision=precision).run(
        {name: np.atleast_1d(array) for case in cases for _, name, array in case.arrays()}
    )
    results: dict[str, list[np.ndarray]] = {case.name: [] for case in cases}
    for name in sorted(outputs, key=lambda name: int(name.rsplit("_", 1)[1])):
        results[name.rsplit("_out_", 1)[0]].append(outputs[name])
    return results


def check_case(case: Case, results: Mapping[str, list[np.ndarray]], *, target: str = "iOS18") -> None:
    """Compare with what is expected: shapes and values (bool and narrow integers come out as int32)."""
    expected = _expected(case, target)
    outputs = results[case.name]
    assert len(outputs) == len(expected)
    for got, want in zip(outputs, expected, strict=True):
        assert got.shape == want.shape
        if got.dtype.kind != "f":
            np.testing.assert_array_equal(got, want)
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # infinities, as in the evaluator
            want = want.astype(got.dtype)
            same = (got == want) | (np.isnan(got) & np.isnan(want))
            finite = np.where(np.isfinite(want), want, 0)
            near = np.abs(got - want) <= case.ulps * np.spacing(np.abs(finite))
        assert np.all(same | near), f"{got} is not {want}"


Build = Callable[[dict[str, Any]], list[Any]]  # from placeholders by name to output variables


def save_program(path: Path, inputs: Mapping[str, Any], build: Build, target: str = "iOS18") -> Package:
    """Save a one-function program, without optimisation, and open it. `inputs`: placeholders by name."""
    with quiet(), quiet_stderr():
        with Function(dict(inputs), opset_version=TARGETS[target]) as function:
            function.set_outputs(build(function.inputs))
        program = Program()
        program.add_function("main", function)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=TARGETS[target],
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(path))
    return Package(path)


def save_functions(path: Path, functions: Mapping[str, tuple[Mapping[str, Any], Build]], default: str) -> Package:
    """Save several functions, each (placeholders, build), as one package that stores their weights once; open it."""
    merged = ct.utils.MultiFunctionDescriptor()
    for name, (inputs, build) in functions.items():
        part = save_program(path.with_name(f"{name}.mlpackage"), inputs, build)
        merged.add_function(str(part.path), "main", name)
    merged.default_function_name = default
    with quiet(), quiet_stderr():
        ct.utils.save_multifunction(merged, str(path))
    return Package(path)


def _inputs(cases: Sequence[Case]) -> dict[str, Any]:
    return {
        name: mb.placeholder(shape=array.shape or (1,), dtype=_INPUT_TYPES.get(array.dtype.name, types.int32))
        for case in cases
        for _, name, array in case.arrays()
    }


def _build(cases: Sequence[Case], given: dict[str, Any]) -> list[Any]:
    outputs = []
    for case in cases:
        bound: dict[str, list[Any]] = {}
        for key, name, array in case.arrays():
            bound.setdefault(key, []).append(_restored(given[name], array))
        arguments = {
            key: bound[key] if isinstance(value, list) else bound[key][0] for key, value in case.inputs.items()
        }
        result = getattr(mb, case.op)(**arguments, **case.constants)
        for i, var in enumerate(result if isinstance(result, (list, tuple)) else [result]):
            shown = var if var.dtype in (types.fp16, types.fp32, types.int32) else mb.cast(x=var, dtype="int32")
            outputs.append(mb.identity(x=shown, name=f"{case.name}_out_{i}"))
    return outputs


def _restored(var: Any, array: np.ndarray) -> Any:
    """Core ML passes arrays of floats and int32 only; scalars and other types are made inside the program."""
    var = var if array.shape else mb.squeeze(x=var, axes=[0])
    return var if array.dtype.name in ("float16", "float32", "int32") else mb.cast(x=var, dtype=array.dtype.name)


def _expected(case: Case, target: str) -> list[np.ndarray]:
    values = {key: _widened(value) for key, value in (case.inputs | case.constants).items()}
    if case.expected is not None:
        result = case.expected(**values)
        return [np.asarray(r) for r in (result if isinstance(result, list) else [result])]
    with quiet(), Function({}, opset_version=TARGETS[target]):
        made = getattr(mb, case.op)(**values)
    outputs = list(made) if isinstance(made, (list, tuple)) else [made]
    if case.op.startswith("constexpr_"):  # kept compressed until asked
        return [np.asarray(outputs[0].op.materialized_val_inference())]
    assert all(var.val is not None for var in outputs), f"{case.op} has no value inference: give `expected`"
    return [np.asarray(var.val) for var in outputs]


def _widened(value: Any) -> Any:
    """Halves as float32, so that the reference rounds once at the end."""
    if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
        return [_widened(one) for one in value]
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype == np.float16:
        return value.astype(np.float32)
    return value
