"""Child of scripts/profile_step.py: decode steps of an artifact, traced by the runtime or sampled by perf.

python -m step_profile.child JOB.json; job: artifact, library, threads, tokens [context], steps, and either dump (a file
for the runtime's event trace) or control and acknowledge (perf's pipes). The first tokens are fed in chunks, the last
`steps` one by one; only those are measured. A process of its own because the operator library loads once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from adakv_model.runtime import native
from adakv_model.runtime.artifact import Artifact, set_threads
from peers.measure import RESULT


class Program:
    """The program without HostModel's comforts: any build of the operator library, and the runtime's trace."""

    def __init__(self, artifact: Artifact, library: Path, trace: bool) -> None:
        native.load_library(library)
        import executorch.kernels.quantized  # noqa: F401  (registers the quantized embedding kernels)
        from executorch.extension.pybindings import _C

        self._program = _C._load_program(str(artifact.program), enable_etdump=trace)
        self._method = self._program.load_method("forward")
        self._position = 0

    def step(self, tokens: list[int]) -> float:
        """Milliseconds of one step."""
        inputs = (torch.tensor([tokens]), torch.tensor([self._position]))
        started = time.perf_counter()
        self._method.call(inputs, clone_outputs=False)
        self._position += len(tokens)
        return 1e3 * (time.perf_counter() - started)

    def write_trace(self, path: str) -> None:
        self._program.write_etdump_result_to_file(path)


def perf_switch(job: dict, command: str) -> None:
    """Starts or stops perf's sampling; returns when it has."""
    with open(job["control"], "w", encoding="utf-8") as pipe:
        pipe.write(command + "\n")
    with open(job["acknowledge"], encoding="utf-8") as pipe:
        pipe.readline()


def main(job: dict) -> dict:
    set_threads(job["threads"])
    artifact = Artifact(Path(job["artifact"]))
    program = Program(artifact, Path(job["library"]), trace="dump" in job)
    tokens, steps = job["tokens"], job["steps"]
    start = 0
    for count in artifact.plan.chunks(0, len(tokens) - steps):
        program.step(tokens[start : start + count])
        start += count
    if "control" in job:
        perf_switch(job, "enable")
    milliseconds = [program.step([token]) for token in tokens[start:]]
    if "control" in job:
        perf_switch(job, "disable")
    if "dump" in job:
        program.write_trace(job["dump"])
    counts = program._method.get_attribute("cache.progress")[1:].tolist()
    return {"ms": milliseconds, "tier_counts": counts}


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print("\n" + RESULT + json.dumps(answer), flush=True)
    os._exit(0)
