"""Child of scripts/bench_peers.py: one run of MNN's LLM engine. Job: model (a folder of llmexport), cache, shapes."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from peers.measure import child_main

MODES = {"fp32": 8, "int8": 10}  # attention_mode: 8 is flash attention, + 1: K in int8, + 2: K and V in int8


class Mnn:
    """An Engine on MNN.llm."""

    def __init__(self, job: dict) -> None:
        import MNN.llm as llm

        self.job = job
        self.model = llm.create(str(Path(job["model"]) / "config.json"))
        self.model.set_config(
            {
                "backend_type": "cpu",
                "thread_num": job["threads"],
                "precision": "high",
                "memory": "low",  # weights stay quantized, activations become int8
                "attention_mode": MODES[job["cache"]],
                "reuse_kv": True,
                "use_mmap": False,
            }
        )
        self.model.load()
        self.model.generate_init()

    def reset(self) -> None:
        self.model.reset()
        self.model.generate_init()

    def prefill(self, tokens: list[int]) -> None:
        self._row = self.model.forward(tokens).read()  # without the read, the output may be computed later

    def step(self, token: int) -> None:
        self._row = self.model.forward([token]).read()

    def logits(self) -> np.ndarray:
        return np.asarray(self._row, np.float32).reshape(-1)[-self.job["vocab_size"] :].copy()

    def facts(self) -> dict[str, Any]:
        job = self.job
        rows = 2 * job["n_layers"] * job["n_kv_heads"] * (len(job["tokens"]) - 1)
        # Without padding; int8 rows have a float scale and offset.
        row = job["head_dim"] + 8 if job["cache"] == "int8" else 4 * job["head_dim"]
        return {
            "build": f"mnn {metadata.version('mnn')}, int4 blocks of 32, int8 activations",
            "kv_bytes": rows * row,
            "file_bytes": sum(f.stat().st_size for f in Path(job["model"]).glob("llm.mnn*") if f.suffix != ".json"),
        }


if __name__ == "__main__":
    child_main(Mnn)
