"""Child of scripts/bench_peers.py: one run of transformers, float32, eager attention. Job: model (a folder)."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peers.measure import child_main

CHUNK = 512  # eager attention holds [heads, chunk, context] scores of a layer at once


class Transformers:
    """An Engine on a Llama of transformers with its dynamic cache."""

    def __init__(self, job: dict) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(job["threads"])
        torch.set_grad_enabled(False)
        self.folder = Path(job["model"])
        self.model = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        ).eval()
        self.reset()

    def reset(self) -> None:
        from transformers import DynamicCache

        self.cache = DynamicCache()

    def prefill(self, tokens: list[int]) -> None:
        for start in range(0, len(tokens), CHUNK):
            self._forward(tokens[start : start + CHUNK])

    def _forward(self, tokens: list[int]) -> None:
        ids = torch.tensor([tokens])
        self._row = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[0, -1]

    def step(self, token: int) -> None:
        self._forward([token])

    def logits(self) -> np.ndarray:
        return self._row.numpy().copy()

    def facts(self) -> dict[str, Any]:
        layers: list[Any] = self.cache.layers
        cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        return {
            "build": f"transformers {metadata.version('transformers')}, torch {torch.__version__},"
            f" {torch.backends.cpu.get_cpu_capability()}",
            "kv_bytes": cached,
            "file_bytes": sum(file.stat().st_size for file in self.folder.glob("*.safetensors")),
        }


if __name__ == "__main__":
    child_main(Transformers)
