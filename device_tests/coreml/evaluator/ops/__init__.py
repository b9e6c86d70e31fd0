"""The kernels. Semantics follow coremltools' operation definitions (`coremltools.converters.mil.mil.ops.defs`)."""

from device_tests.coreml.evaluator.ops import (
    activation,
    compression,
    elementwise,
    gather_scatter,
    linear,
    reduction,
    shaping,
    slicing,
)

__all__ = [
    "activation",
    "compression",
    "elementwise",
    "gather_scatter",
    "linear",
    "reduction",
    "shaping",
    "slicing",
]
