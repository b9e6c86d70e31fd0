"""validated_once: an invalid program is refused all the same, and coremltools is left as it was."""

from __future__ import annotations

from typing import Any

import pytest

from export.coreml.convert import import_coremltools
from export.coreml.validation import validated_once


@pytest.fixture
def program() -> Any:
    """relu(x + 1)."""
    import_coremltools()
    from coremltools.converters.mil import Builder

    def relu(x: Any) -> Any:
        return Builder.relu(x=Builder.add(x=x, y=1.0))

    return Builder.program(input_specs=[Builder.TensorSpec(shape=(2, 3))])(relu)


def break_it(program: Any) -> None:
    """The sum no longer says who takes it."""
    (total,) = (op for op in program.functions["main"].operations if op.op_type == "add")
    total.outputs[0]._child_ops.clear()


def apply(program: Any, *names: str) -> None:
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline, PassPipelineManager

    PassPipelineManager.apply_pipeline(program, PassPipeline(list(names)))


def test_the_program_is_validated_twice(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from coremltools.converters.mil.mil import Program

    calls: list[bool] = []
    monkeypatch.setattr(Program, "validate", lambda self, check_essential_scope=False: calls.append(True))
    names = ["common::const_elimination", "common::dead_code_elimination", "common::noop_elimination"]
    with validated_once():
        apply(program, *names)
    assert len(calls) == 2
    apply(program, *names)
    assert len(calls) == 2 + 1 + len(names), "coremltools' own way is back"


def test_an_invalid_program_is_refused_before_and_after(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from coremltools.converters.mil.mil.block import InvalidBlockStateError
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    noop = type(PASS_REGISTRY["common::noop_elimination"])
    monkeypatch.setattr(noop, "apply", lambda self, broken: break_it(broken))
    with validated_once(), pytest.raises(InvalidBlockStateError):
        apply(program, "common::noop_elimination")  # this pass breaks it
    with validated_once(), pytest.raises(InvalidBlockStateError):
        apply(program)
