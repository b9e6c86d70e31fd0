"""Decode and prefill time of several artifacts, measured in turns so that a busy machine hurts all alike."""

from __future__ import annotations

import time
from typing import Any

from adakv_model.runtime.artifact import Artifact
from training import cli

STEPS = 12  # decode steps of one turn, after a prompt of one chunk


def alternate(artifacts: list[Artifact], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds a token at short context: the least over `rounds` turns of each artifact."""
    models = [artifact.load() for artifact in artifacts]
    decode = [float("inf")] * len(models)
    prefill = list(decode)
    for _ in cli.track("timing", range(rounds)):
        for i, model in enumerate(models):
            prompt = list(range(10, 10 + model.plan.chunk))
            model.reset()
            started = time.perf_counter()
            model.step(prompt)
            prefill[i] = min(prefill[i], (time.perf_counter() - started) / len(prompt))
            for token in range(20, 20 + STEPS):
                started = time.perf_counter()
                model.step([token])
                decode[i] = min(decode[i], time.perf_counter() - started)
    return [
        {
            "artifact": artifact.folder.name,
            "recipe": artifact.manifest["quantize"],
            "embedding": artifact.manifest["embedding"],
            "megabytes": round(artifact.program.stat().st_size / 1e6, 1),
            "decode_ms": round(1e3 * decode[i], 3),
            "prefill_ms": round(1e3 * prefill[i], 3),
        }
        for i, artifact in enumerate(artifacts)
    ]
