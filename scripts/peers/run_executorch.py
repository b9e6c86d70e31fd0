"""Child of scripts/bench_peers.py: one run of ExecuTorch's stock export. Job: model (.pte), cache, shapes."""

from __future__ import annotations

import ctypes
import os
from importlib import metadata
from typing import Any

import numpy as np
import torch

from adakv_model.runtime.artifact import set_threads
from peers.measure import child_main


class StockExecuTorch:
    """An Engine on a program of export_llama: the prompt is one call, as in its own runner."""

    def __init__(self, job: dict) -> None:
        import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401
        import executorch.kernels.quantized  # noqa: F401
        from executorch.extension.pybindings import _C

        set_threads(job["threads"])
        self.job, self.position = job, 0
        self._program = _C._load_program(job["model"])
        self._method = self._program.load_method("forward")

    def reset(self) -> None:
        self.position = 0

    def _forward(self, tokens: list[int]) -> None:
        inputs = (torch.tensor([tokens]), torch.tensor([self.position]))
        self._output = self._method.call(inputs, clone_outputs=False)[0]
        self.position += len(tokens)

    def prefill(self, tokens: list[int]) -> None:
        self._forward(tokens)

    def step(self, token: int) -> None:
        self._forward([token])

    def logits(self) -> np.ndarray:
        row = self._output.reshape(-1, self._output.shape[-1])[-1]
        return np.ctypeslib.as_array((ctypes.c_float * row.numel()).from_address(row.data_ptr())).copy()

    def facts(self) -> dict[str, Any]:
        job = self.job
        rows = 2 * job["n_layers"] * job["n_kv_heads"] * job["capacity"]
        # The int8 cache keeps a scale (float32) and an offset (int8) for every row.
        row = job["head_dim"] + 5 if job["cache"] == "int8" else 4 * job["head_dim"]
        return {
            "build": f"executorch {metadata.version('executorch')} export_llama 8da4w",
            "kv_bytes": rows * row,
            "file_bytes": os.path.getsize(job["model"]),
        }


if __name__ == "__main__":
    child_main(StockExecuTorch)
