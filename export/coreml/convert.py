"""From a CoreMLProgram to a saved .mlpackage: torch.export, conversion, weight compression, two functions in one file.

`decode` takes one token, `prefill` exactly `plan.chunk`; they share weights and states. A runner feeds the rest of a
prompt that is no multiple of the chunk through `decode`: any chunking gives the same cache.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.coreml.cache import CoreMLProgram
from export.coreml.inputs import NEW, InputLayout
from export.coreml.validation import validated_once
from export.coreml.weights import COMPRESSION_PASS, register_pass_once

DECODE, PREFILL = "decode", "prefill"


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """coremltools draws progress bars of its own and warns about the missing Apple runtime: keep them away."""
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def import_coremltools() -> Any:
    """The module, without its import-time warnings."""
    with quiet_stderr():
        import coremltools
        from coremltools.converters.mil.frontend.torch import utils
        from coremltools.converters.mil.mil import types
    # coremltools 9.0 takes int8 inputs for iOS 26, but its torch.export front end does not know the type's name.
    utils.TORCH_DTYPE_TO_MIL_DTYPE.setdefault(torch.int8, types.int8)
    return coremltools


def trace(program: CoreMLProgram, tokens: int) -> torch.export.ExportedProgram:
    """torch.export with static shapes: tokens int32 [1, T], input_pos int32 [1], and the cache's inputs if any."""
    example: tuple[Any, ...] = (torch.zeros(1, tokens, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    if program.inputs is not None:
        arrays = program.inputs.arrays
        example += ({n: torch.zeros(a.shape, dtype=getattr(torch, a.dtype)) for n, a in arrays.items()},)
    with torch.no_grad():
        traced = torch.export.export(program, example, strict=False).run_decompositions({})
    drop_aliases(traced)
    return traced


def drop_aliases(traced: torch.export.ExportedProgram) -> None:
    """Remove the copies that coremltools has no converter for."""
    graph = traced.graph_module.graph
    for node in list(graph.nodes):
        if node.target in (torch.ops.aten.alias.default, torch.ops.aten.lift_fresh_copy.default):
            source = node.args[0]
            assert isinstance(source, torch.fx.Node)
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def output_types(inputs: InputLayout | None) -> dict[str, str]:
    """Name and type of a function's outputs, in order."""
    new = {} if inputs is None else {f"{NEW}_{name}": array.dtype for name, array in inputs.arrays.items()}
    return {"logits": "float16", "plan": "int32", **new, "status": "int32"}


def convert(
    traced: torch.export.ExportedProgram,
    outputs: dict[str, str],
    target: str,
    weights: str,
    vocab_size: int,
    package: Path,
) -> None:
    """Save one function as a package; fp16 inside, buffers become states.

    outputs: as `output_types` gives them; target: one of `TARGETS`; weights: one of `options.WEIGHTS`.
    """
    ct = import_coremltools()
    with quiet_stderr(), validated_once():
        model = ct.convert(
            traced,
            outputs=[ct.TensorType(name=name, dtype=np.dtype(kind).type) for name, kind in outputs.items()],
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT16,
            pass_pipeline=pipeline(weights, vocab_size),
            compute_units=ct.ComputeUnit.CPU_AND_NE,
            skip_model_load=True,
        )
        model.save(str(package))


#: Passes of coremltools' default pipeline that look for what this graph does not have; each walks the whole graph.
UNUSED_PASSES = {
    "common::add_conv_transpose_output_shape",
    "common::canonicalize_quantized_lut_pattern",
    "common::compose_conv1d",
    "common::concat_to_pixel_shuffle",
    "common::dequantize_quantize_pair_elimination",
    "common::dequantize_to_constexpr",
    "common::detect_concat_interleave",
    "common::distributive_quantized_binary_op_scale_normalization",
    "common::fuse_conv_batchnorm",
    "common::fuse_conv_bias",
    "common::fuse_conv_scale",
    "common::fuse_dilated_conv",
    "common::fuse_elementwise_to_batchnorm",
    "common::fuse_gelu_exact",
    "common::fuse_gelu_tanh_approximation",
    "common::fuse_layernorm_or_instancenorm",
    "common::fuse_leaky_relu",
    "common::fuse_onehot_matmul_to_gather",
    "common::fuse_pad_conv",
    "common::fuse_prelu",
    "common::image_input_preprocess",
    "common::int_op_canonicalization",
    "common::lower_complex_dialect_ops",
    "common::merge_consecutive_paddings",
    "common::nullify_redundant_quantization_zero_point",
    "common::prelu_to_lrelu",
    "common::use_reflection_padding",
}


def pipeline(weights: str, vocab_size: int):  # type: ignore[no-untyped-def]
    """coremltools' default passes without `UNUSED_PASSES`, and the weight compression."""
    ct = import_coremltools()
    passes = ct.PassPipeline()
    passes.remove_passes(UNUSED_PASSES & set(passes.passes))
    if weights != "fp16":
        register_pass_once()
        passes.append_pass(COMPRESSION_PASS)
        passes.set_options(COMPRESSION_PASS, {"recipe": weights, "vocab_size": vocab_size})
    return passes


def save_functions(models: dict[str, Path], package: Path) -> None:
    """Merge single-function packages into one that stores equal weights once; `decode` is the default function."""
    ct = import_coremltools()
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, path in models.items():
        descriptor.add_function(str(path), src_function_name="main", target_function_name=name)
    descriptor.default_function_name = DECODE
    with quiet_stderr(), validated_once():
        ct.utils.save_multifunction(descriptor, str(package))


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A temporary folder on the output's disk: single-function packages are as large as the result."""
    with tempfile.TemporaryDirectory(prefix=".coreml-", dir=beside) as folder:
        yield Path(folder)
