"""The weights of a saved Core ML package, for the torch model: what their compression costs is measured with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from adakv_model.errors import UserError
from adakv_model.model import Llama
from export.coreml.convert import DECODE, import_coremltools, quiet_stderr


def package_matrices(package: Path) -> Iterator[tuple[str, np.ndarray]]:
    """("gather" or "linear", float32 [N, K]) of the decode function's large weights, in program order."""
    ct = import_coremltools()
    with quiet_stderr():
        from coremltools.converters.mil.frontend.milproto.load import load

        model = ct.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    for op in program.functions[DECODE].operations:
        if op.op_type in ("linear", "gather"):
            source = op.inputs["weight" if op.op_type == "linear" else "x"]
            value = source.val if source.val is not None else source.op.materialized_val_inference()
            yield op.op_type, np.asarray(value, dtype=np.float32)


def load_package_weights(model: Llama, package: Path) -> int:
    """Replace the model's matrices by the package's; how many were replaced. Raises UserError if they do not fit."""
    layers = [
        m for b in model.blocks() for m in (b.qkv_proj, b.o_proj, b.mlp.gate_proj, b.mlp.up_proj, b.mlp.down_proj)
    ]
    wanted = iter([*layers, model.lm_head])
    replaced = 0
    for kind, value in package_matrices(package):
        if kind == "gather" and value.shape == tuple(model.embed_tokens.weight.shape):
            model.embed_tokens.weight = torch.nn.Parameter(torch.from_numpy(value), requires_grad=False)
            replaced += 1
        elif kind == "linear" and min(value.shape) >= 64:  # not the controller
            linear = next(wanted)
            if tuple(linear.weight.shape) != value.shape:
                raise UserError(f"{package} is another model: its linear is {value.shape}, not {linear.weight.shape}")
            linear.weight = torch.nn.Parameter(torch.from_numpy(value), requires_grad=False)
            replaced += 1
    return replaced
