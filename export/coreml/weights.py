"""Weight compression inside the conversion: int8 per output channel, or int4 in groups of 32 with a float offset.

Both are ML Program `constexpr_blockwise_shift_scale` constants, w = scale (code - offset). coremltools' own int4 has an
integer zero point; the offset may also be fp16, and then a Q4_1 checkpoint (w = d c + m, groups of 32) comes out as it
went in: d is the scale and -m / d the offset. Compressed are the linears' and the embedding's weights, nothing else.
int4 keeps the token table, which is the output layer too where a checkpoint ties them, in int8: Q4_1 files also hold it
at more bits than the layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

GROUP_SIZE = 32
SMALLEST_WEIGHT = 1 << 15  # elements; smaller ones (the controller) stay fp16
LARGEST = 65_376.0  # weight in a package: the largest fp16 number, less what rounded scales and offsets can add to it
SMALLEST_SCALE = np.float16(2**-24)  # the smallest fp16 number: a scale of 0 would make NaN of small weights
TABLE_RECIPES = {"int4": "int8"}  # of the token table and the output layer, where it is not the package's own


def recipe_of(recipe: str, rows: int, vocab_size: int) -> str:
    """How a package of this recipe stores a weight of so many rows: a row for every token makes a table."""
    return TABLE_RECIPES.get(recipe, recipe) if rows == vocab_size else recipe


def quantize_int8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric per row. weight: float [N, K] -> codes int8 [N, K], scale float16 [N, 1]."""
    w = weight.astype(np.float32)
    scale = np.maximum((np.abs(w).max(1, keepdims=True) / 127).astype(np.float16), SMALLEST_SCALE)
    codes = np.clip(np.rint(w / scale.astype(np.float32)), -127, 127)
    return codes.astype(np.int8), scale


def quantize_int4(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimum to maximum of each group. weight: float [N, K] -> codes uint8 [N, K] below 16, scale and offset float16
    [N, K / 32]."""
    n, k = weight.shape
    w = weight.astype(np.float32).reshape(n, k // GROUP_SIZE, GROUP_SIZE)
    low, high = w.min(2), w.max(2)
    flat = high == low
    scale = np.maximum(np.where(flat, 1.0, (high - low) / 15).astype(np.float16), SMALLEST_SCALE)
    step = scale.astype(np.float32)
    offset = (-low / step).astype(np.float16)
    codes = np.rint(w / step[:, :, None] + offset.astype(np.float32)[:, :, None])
    return np.clip(codes, 0, 15).astype(np.uint8).reshape(n, k), scale, offset


def rounded(weight: Tensor, recipe: str, vocab_size: int) -> Tensor:
    """A weight [N, K] as the package holds it, in float32."""
    recipe = recipe_of(recipe, weight.shape[0], vocab_size)
    if recipe == "fp16" or weight.numel() < SMALLEST_WEIGHT:
        return weight.half().float()
    half = weight.half().numpy()
    if recipe == "int8":
        codes, scale = quantize_int8(half)
        return torch.from_numpy((codes.astype(np.float32) * scale.astype(np.float32)).astype(np.float16)).float()
    codes, scale, offset = quantize_int4(half)
    wide = [np.repeat(x.astype(np.float32), GROUP_SIZE, axis=1) for x in (scale, offset)]
    return torch.from_numpy((wide[0] * (codes.astype(np.float32) - wide[1])).astype(np.float16)).float()


COMPRESSION_PASS = "adakv::compress_weights"


def register_pass_once() -> None:
    """Make `COMPRESSION_PASS` known to coremltools. Its options: recipe, one of `WEIGHTS`, and vocab_size."""
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.helper import block_context_manager
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY, register_pass

    if COMPRESSION_PASS in PASS_REGISTRY:
        return
    uint4 = types.nptype_from_builtin(types.uint4)

    @register_pass(namespace="adakv")
    class compress_weights(AbstractGraphPass):
        recipe, vocab_size = "int8", 0

        def apply(self, prog: Any) -> None:
            for function in prog.functions.values():
                self._compress(function)

        @block_context_manager  # type: ignore[untyped-decorator]
        def _compress(self, block: Any) -> None:
            for op in list(block.operations):
                if op.op_type == "const" and self._wanted(op.outputs[0]):
                    new = self._constexpr(op)
                    block.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=new)
                    block.remove_ops([op])

        def _wanted(self, var: Any) -> bool:
            if len(var.shape) != 2 or int(np.prod(var.shape)) < SMALLEST_WEIGHT or var.shape[1] % GROUP_SIZE:
                return False
            users = [op.op_type for op in var.child_ops]
            return "linear" in users or ("gather" in users and var.shape[0] == self.vocab_size)

        def _constexpr(self, op: Any) -> Any:
            weight = op.outputs[0].val
            recipe = recipe_of(self.recipe, weight.shape[0], self.vocab_size)
            name = f"{op.name}_{recipe}"
            if recipe == "int8":
                codes, scale = quantize_int8(weight)
                return mb.constexpr_blockwise_shift_scale(data=codes, scale=scale, before_op=op, name=name)
            codes, scale, offset = quantize_int4(weight)
            return mb.constexpr_blockwise_shift_scale(
                data=codes.astype(uint4), scale=scale, offset=offset, before_op=op, name=name
            )
