"""Child of scripts/bench_peers.py: one run of an artifact of export.py. Job: model (its folder)."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from adakv_model.runtime.artifact import Artifact, set_threads
from adakv_model.runtime.generate import prefill
from peers.measure import child_main


class AdaKV:
    """An Engine on HostModel; the prompt is cut as adakv_model.runtime.generate cuts it."""

    def __init__(self, job: dict) -> None:
        set_threads(job["threads"])
        self.artifact = Artifact(Path(job["model"]))
        self.model = self.artifact.load()

    def reset(self) -> None:
        self.model.reset()

    def prefill(self, tokens: list[int]) -> None:
        prefill(self.model, tokens)

    def step(self, token: int) -> None:
        self._row = self.model.step([token])[-1]

    def logits(self) -> np.ndarray:
        return self._row.numpy()  # HostModel has copied it

    def facts(self) -> dict[str, Any]:
        chunk, limit = self.artifact.plan.chunk, os.environ.get("ADAKV_ISA")
        return {
            "build": f"executorch {metadata.version('executorch')}, chunks of {chunk}"
            + (f", kernels limited to {limit}" if limit else ""),
            "kv_bytes": self.artifact.plan.bytes_allocated,
            "file_bytes": self.artifact.program.stat().st_size,
        }


if __name__ == "__main__":
    child_main(AdaKV)
