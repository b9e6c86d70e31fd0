"""One artifact gives the same logits, cache, loss and text whatever kernels, chunks and threads compute them.

Processes of their own, as a process chooses its kernels once. ADAKV_ISA limits what a CPU may choose, so where two
limits choose the same set the comparison is still true, only weaker.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adakv_model.runtime.artifact import Artifact, resize_pool
from adakv_model.runtime.native import load_library
from make_tiny_artifact import main as make_tiny_artifact

TEXT_TOKENS, NEW_TOKENS = 150, 24
ROOT = Path(__file__).parents[1]

#: Limit of the instruction set, tokens of a chunk at most, threads.
RUNS = [
    ("baseline", 1, 1),
    ("baseline", 8, 4),
    ("avx2", 7, 2),
    ("avxvnni", 3, 3),
    ("avx512vnni", 8, 2),
    ("dotprod", 5, 2),
    ("i8mm", 8, 4),
    ("", 8, 3),
]


def run(folder: Path, chunk: int, threads: int) -> dict[str, Any]:
    """Feeds a text, then goes on greedily. The answers of one process."""
    resize_pool(threads)
    artifact = Artifact(folder)
    model, vocab = artifact.load(), artifact.plan.vocab_size
    tokens = [1 + 31 * i * i % (vocab - 1) for i in range(TEXT_TOKENS)]
    logits = model.prefill(tokens, chunk)
    loss = torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(tokens[1:]))
    new, row = [], logits[-1]
    for _ in range(NEW_TOKENS):
        new.append(int(row.argmax()))
        row = model.step(new[-1:])[-1]
    states = [model.state(f"cache_{layer}") for layer in range(artifact.plan.n_layers)]
    digest = hashlib.sha256()
    for tensor in (logits, row, *states, model.state("tiers"), model.state("progress"), model.state("attention")):
        digest.update(tensor.contiguous().numpy().tobytes())
    kernels = load_library(artifact.operator_library).adakv_attend_kernels().decode()
    return {"kernels": kernels, "loss": loss.item(), "new": new, "digest": digest.hexdigest()}


def start(folder: Path, isa: str, chunk: int, threads: int) -> dict[str, Any]:
    variables = os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "ADAKV_ISA": isa, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), str(folder), str(chunk), str(threads)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("same") / "artifact"
    make_tiny_artifact(out, logits="all")
    return out


def test_text_and_loss_do_not_depend_on_kernels_chunks_and_threads(folder: Path) -> None:
    answers = [start(folder, *choice) for choice in RUNS]
    assert len({a["kernels"] for a in answers}) > 1, "a limit changes the kernels"
    assert len(set(answers[0]["new"])) > 4, "a text that says something"
    for choice, answer in zip(RUNS[1:], answers[1:], strict=True):
        assert answer | {"kernels": ""} == answers[0] | {"kernels": ""}, choice


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
