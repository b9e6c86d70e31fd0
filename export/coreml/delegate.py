"""ExecuTorch on iOS with the Core ML delegate: the Core ML cache inside one delegated method.

The delegate compiles ahead of time on Linux: executorch's wheel carries what packs an .mlpackage into a .pte. Apple's
frameworks compile that package on the device at its first load, which has not been tried. The program keeps the
signature of ExecuTorch's stock runners, forward(tokens int64 [1, 1], input_pos int64 [1]) -> logits, one token a
call; its states are Core ML states of the delegate (iOS 18). A step that may not run answers with NaN logits.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from adakv_model.config import LlamaConfig
from adakv_model.errors import UserError
from adakv_model.plan import CachePlan
from export.coreml.cache import CoreMLProgram
from export.coreml.convert import drop_aliases, quiet_stderr


class StockSignature(nn.Module):
    """int64 inputs and one output, as ExecuTorch's text runners call a model."""

    def __init__(self, program: CoreMLProgram) -> None:
        super().__init__()
        self.program = program
        self.eval()

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        logits, _, status = self.program(tokens.to(torch.int32), input_pos.to(torch.int32))
        return torch.where(status == 0, logits, float("nan"))


def lower_to_delegate(
    program: CoreMLProgram, config: LlamaConfig, plan: CachePlan, target: str, path: Path
) -> dict[str, int]:
    """Write the .pte; returns calls left in its graph by operator. Raises UserError if the backend cannot compile."""
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    from export.lowering import constant_methods, operator_calls, save

    example = (torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        traced = torch.export.export(StockSignature(program), example, strict=False).run_decompositions({})
    drop_aliases(traced)
    methods = constant_methods(config, plan) | {"enable_dynamic_shape": False, "get_max_seq_len": 1}
    try:
        with quiet_stderr():
            edge = to_edge_transform_and_lower(
                traced,
                partitioner=[_partitioner(target)],
                constant_methods=methods,
                compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            )
            calls = operator_calls(edge)
            executorch = edge.to_executorch()
    except (ImportError, RuntimeError, NotImplementedError, ValueError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(f"ExecuTorch's Core ML backend cannot compile this ({reason}): use --backend coreml") from e
    save(executorch, path)
    return dict(Counter(calls))


def _partitioner(target: str):  # type: ignore[no-untyped-def]
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=getattr(ct.target, target),
        compute_precision=ct.precision.FLOAT16,
        compute_unit=ct.ComputeUnit.CPU_AND_NE,
    )
    return CoreMLPartitioner(compile_specs=specs, take_over_mutable_buffer=True)
