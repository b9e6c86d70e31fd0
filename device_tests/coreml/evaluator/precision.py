"""The two precisions of the evaluator. Light: no torch."""

from typing import Literal

Precision = Literal["fp16", "fp32"]
