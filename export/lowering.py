"""torch.export and XNNPACK lowering of the model with its cache: one method, one bounded token dimension.

What makes 30 layers lower in minutes rather than a quarter of an hour (measurements: docs/measuring.md):
- each layer's dense work is one delegate, as the cache operator takes the fused projections and does RoPE itself, or,
  with the default weights, four operators of our own;
- the lean XNNPACK pass list: the stock list re-traces every delegate 17 times, of which this graph needs one;
- to_edge decomposes once; to_edge_transform_and_lower traces the whole graph three times to find out that only
  `linear` must be preserved.
"""

from __future__ import annotations

import os

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import (
    EdgeCompileConfig,
    EdgeProgramManager,
    ExecutorchBackendConfig,
    ExecutorchProgramManager,
    to_edge,
)
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec
from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass
from torch.export import Dim, ExportedProgram

from adakv_model.config import LlamaConfig
from adakv_model.model import Llama
from adakv_model.plan import CachePlan


class LeanXnnpackPartitioner(XnnpackPartitioner):
    """XNNPACK's partitioner with the backend's own short pass list (addmm to linear) for every delegate."""

    def __init__(self) -> None:
        super().__init__()
        self.delegation_spec = DelegationSpec("XnnpackBackend", [CompileSpec("dqlinear_partitioner", b"")])


def constant_methods(config: LlamaConfig, plan: CachePlan) -> dict[str, object]:
    """The self-description that ExecuTorch's stock LLM runners read.

    enable_dynamic_shape: the runner sends prompts in chunks of up to get_max_seq_len tokens, never padded.
    """
    return {
        "get_max_seq_len": plan.chunk,
        "get_max_context_len": plan.context,
        "get_departure": plan.departure,  # ours: chunks that end at its multiples give the same cache in any cut
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
        "enable_dynamic_shape": True,
        "get_vocab_size": config.vocab_size,
        "get_n_layers": config.n_layers,
        "get_bos_id": config.bos_token_id if config.bos_token_id is not None else -1,
        "get_eos_ids": list(config.eos_token_ids),
    }


def trace(model: Llama, plan: CachePlan) -> ExportedProgram:
    """torch.export with tokens int64 [1, T], T bounded by the prefill chunk, and input_pos int64 [1]."""
    if plan.half_scales:
        raise ValueError("the kernels read scales of one byte only: a plan for Core ML stores fp16 ones")
    tokens = torch.arange(plan.chunk).unsqueeze(0)
    shapes = ({1: Dim("tokens", max=plan.chunk)} if plan.chunk > 1 else None, None)
    with torch.no_grad():
        return torch.export.export(model, (tokens, torch.tensor([0])), dynamic_shapes=shapes, strict=False)


def lower(program: ExportedProgram, methods: dict[str, object]) -> EdgeProgramManager:
    """Partition for XNNPACK and compile the delegates."""
    config = EdgeCompileConfig(
        _check_ir_validity=False, _skip_dim_order=True, preserve_ops=[torch.ops.aten.linear.default]
    )
    edge = to_edge(program, constant_methods=methods, compile_config=config)
    return edge.to_backend(LeanXnnpackPartitioner())


def finish(edge: EdgeProgramManager) -> ExecutorchProgramManager:
    """Memory planning and emission. State keeps its name, so that a host can read the tiers back."""
    # Only the length must start at zero: position 0 rewrites everything else before it is read.
    config = ExecutorchBackendConfig(
        do_quant_fusion_and_const_prop=True,
        emit_mutable_buffer_names=True,
        passes=[InitializedMutableBufferPass(["progress"])],
    )
    return edge.to_executorch(config)


DELEGATE = "executorch_call_delegate"


def operator_calls(edge: EdgeProgramManager) -> dict[str, int]:
    """Calls by operator name: `DELEGATE`, and what is left to portable or custom kernels."""
    counts: dict[str, int] = {}
    for node in edge.exported_program().graph.nodes:
        if node.op != "call_function":
            continue
        name = str(node.target)
        if "auto_functionalized" in name:
            name = str(node.args[0])
        name = name.split(">")[0].removeprefix("<EdgeOpOverload: ")
        if "getitem" not in name:
            counts[name] = counts.get(name, 0) + 1
    return counts


def save(program: ExecutorchProgramManager, path: os.PathLike[str]) -> None:
    """Stream the program to a file without joining its segments in memory."""
    with open(path, "wb") as file:
        program.write_to_file(file)
