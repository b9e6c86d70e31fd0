"""What this machine computes over given tokens: the other side of a device's parity probe.

A process of its own for every artifact, because a process can hold one version of the operator library only, and
because a runtime that has run keeps memory and threads.
"""

from __future__ import annotations

import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from adakv_model.errors import UserError
from device_tests.devices.processes import last_line, run_command

TIMEOUT = 900.0  # seconds; the Core ML evaluator is slow


@lru_cache
def expected_logits(folder: Path, tokens: tuple[int, ...], forced: int) -> np.ndarray:
    """float32 [forced + 1, V]: after all but the last `forced` tokens, and after each of those. Raises UserError."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "logits.npy"
        words: list[str | Path] = [
            sys.executable,
            "-m",
            "device_tests.bench.expected",
            folder.resolve(),
            out,
            str(forced),
        ]
        done = run_command(words, TIMEOUT, cwd=Path(__file__).parents[2], stdin=" ".join(map(str, tokens)))
        if done.status:
            raise UserError(f"this machine cannot run {folder} to compare with ({last_line(done)})")
        logits: np.ndarray = np.load(out)
    return logits


def compute(folder: Path, tokens: list[int], forced: int) -> np.ndarray:
    """The same, in this process: ExecuTorch's Python runtime, or for a Core ML package the evaluator."""
    from adakv_model.runtime.artifact import Artifact, set_threads
    from device_tests.parity.compare import run_program

    artifact = Artifact(folder)
    if "core_ml_states" in artifact.manifest:
        from device_tests.coreml.run import CoreMLModel

        return CoreMLModel(artifact).prefill(tokens)[len(tokens) - forced - 1 :]
    set_threads(2)
    return run_program(artifact.load(), tokens, forced).numpy()


if __name__ == "__main__":
    try:
        np.save(sys.argv[2], compute(Path(sys.argv[1]), [int(w) for w in sys.stdin.read().split()], int(sys.argv[3])))
    except UserError as error:
        sys.exit(f"error: {error}")
