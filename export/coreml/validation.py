"""coremltools checks a program after every one of its passes: here it is checked before and after all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def validated_once() -> Iterator[None]:
    """Inside, a pipeline of passes validates its program when it begins and when it has ended. In between an invalid
    program would only be found sooner; looking after each pass takes two fifths of an export."""
    from coremltools.converters.mil.mil import Program
    from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

    apply, validate = PassPipelineManager.apply_pipeline, Program.validate

    def apply_pipeline(program: Program, passes: Any) -> None:
        program.validate()
        Program.validate = lambda self, check_essential_scope=False: None
        try:
            apply(program, passes)
        finally:
            Program.validate = validate
        program.validate()

    PassPipelineManager.apply_pipeline = staticmethod(apply_pipeline)
    try:
        yield
    finally:
        PassPipelineManager.apply_pipeline = staticmethod(apply)
