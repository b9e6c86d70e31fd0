"""Child of scripts/bench_peers.py: one run of onnxruntime-genai. Job: model (a folder of its builder), shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from peers.measure import child_main


class OnnxRuntimeGenAI:
    """An Engine on a Generator: its append_tokens runs the model."""

    def __init__(self, job: dict) -> None:
        import onnxruntime_genai as og

        self.og, self.job = og, job
        config = og.Config(job["model"])
        session = {"intra_op_num_threads": job["threads"], "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        self.length = len(job["tokens"])
        self.reset()

    def reset(self) -> None:
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=self.length, do_sample=False)
        self.generator = self.og.Generator(self.model, params)

    def prefill(self, tokens: list[int]) -> None:
        self.generator.append_tokens(np.array([tokens], np.int32))

    def step(self, token: int) -> None:
        self.generator.append_tokens(np.array([[token]], np.int32))

    def logits(self) -> np.ndarray:
        return np.asarray(self.generator.get_logits(), np.float32).reshape(-1)[-self.job["vocab_size"] :].copy()

    def facts(self) -> dict[str, Any]:
        job = self.job
        rows = 2 * job["n_layers"] * job["n_kv_heads"] * self.length
        return {
            "build": f"onnxruntime-genai {self.og.__version__}, int4 blocks of 32, int8 activations",
            "kv_bytes": rows * job["head_dim"] * 4,
            "file_bytes": sum(f.stat().st_size for f in Path(job["model"]).glob("model.onnx*")),
        }


if __name__ == "__main__":
    child_main(OnnxRuntimeGenAI)
