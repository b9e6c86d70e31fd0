"""The command line over a real package whose answer is known: every token is followed by the next id."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from adakv_model.errors import UserError
from adakv_model.plan import CachePlan
from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.manifest import FORMAT
from device_tests.coreml.evaluator.answer import generate
from device_tests.coreml.evaluator.testing import save_functions
from device_tests.coreml.run import CoreMLModel
from export.artifact import describe
from export.coreml.convert import DECODE, PREFILL

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CONTEXT, CHUNK, TIERS = 12, 4, 2


def counting(tokens: int) -> tuple[dict[str, Any], Any]:
    """tokens [1, T], input_pos [1] -> logits that prefer token + 1, a plan and a status."""

    def build(given: dict[str, Any]) -> list[Any]:
        following = mb.add(x=given["tokens"], y=np.int32(1))
        one = mb.one_hot(
            indices=following, one_hot_vector_size=len(WORDS), on_value=np.float16(1), off_value=np.float16(0)
        )
        held = mb.add(x=mb.read_state(input=given["held"]), y=np.float16(tokens))
        held = mb.coreml_update_state(state=given["held"], value=held)
        end = mb.add(x=given["input_pos"], y=np.int32(tokens))
        full = mb.cast(x=mb.greater(x=end, y=np.int32(CONTEXT)), dtype="int32")
        plan = mb.tile(x=mb.expand_dims(x=end, axes=[0]), reps=[tokens, 2 + TIERS])
        return [mb.identity(x=one, name="logits"), mb.identity(x=plan, name="plan"), mb.identity(x=full, name="status")]

    inputs = {
        "tokens": mb.placeholder((1, tokens), dtype=types.int32),
        "input_pos": mb.placeholder((1,), dtype=types.int32),
        "held": mb.state_tensor_placeholder((1, 32), dtype=types.fp16),
    }
    return inputs, build


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("counting") / "artifact"
    folder.mkdir()
    parts = {DECODE: counting(1), PREFILL: counting(CHUNK)}
    save_functions(folder / "counting.mlpackage", parts, default=DECODE)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="zero"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    plan = CachePlan(
        context=CONTEXT,
        window=4,
        window_bits=8,
        chunk=CHUNK,
        n_heads=1,
        n_kv_heads=1,
        n_layers=1,
        head_dim=32,
        vocab_size=len(WORDS),
        tier_bits=(2, 4),
        capacities=(4, 3),
        unit_bits=np.array([2, 4]).reshape(1, 1, 1, 2).repeat(2, axis=2),
        scale_modes=np.zeros((1, 1, 2), np.int64),
    )
    model = {"bos_token_id": None, "eos_token_ids": [9], "vocab_size": len(WORDS)}
    files = {str(p.relative_to(folder)): describe(p) for p in folder.rglob("*") if p.is_file()}
    manifest = {"format": FORMAT, "program": "counting.mlpackage", "model": model, "kv_cache": plan.to_manifest()}
    manifest |= {"files": files, "command": ["test"], "versions": {"python": "3"}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Artifact(folder)


def run(artifact: Artifact, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "device_tests.coreml.evaluator.generate", "--artifact", str(artifact.folder)]
    command += options
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_answers_a_prompt(artifact: Artifact) -> None:
    """Five tokens: one chunk and one by one; the end token is not part of the answer."""
    done = run(artifact, "--prompt", "zero one two three four", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["text"] == "five six seven eight"
    assert (result["prompt_tokens"], result["new_tokens"], result["finish_reason"]) == (5, 4, "eos")
    assert result["decode_seconds_per_token"] > 0
    assert result["state_bytes"] == 64


def test_errors_are_one_line(artifact: Artifact) -> None:
    done = run(artifact, "--prompt", "one " * 13)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: the prompt has 13 tokens and the artifact holds 12: shorten it, or export with a larger --context"
    ]


def test_damage_and_foreign_input_are_one_line(artifact: Artifact, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact.folder, copy)
    damaged = Artifact(copy)
    done = run(damaged, "--prompt", "zero", "--threads", "100000")
    assert done.stderr.startswith("error: --threads 100000 must lie between 1 and ")
    model = next((copy / "counting.mlpackage").rglob("*.mlmodel"))
    model.write_bytes(bytes(model.stat().st_size))
    done = run(damaged, "--prompt", "zero")
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {model} is damaged or was replaced (its SHA-256 differs): export again"
    with pytest.raises(UserError, match="token id 10 is outside the model's vocabulary of 10"):
        CoreMLModel(artifact).step([10])


def test_stops_at_the_limit_and_where_the_context_is_full(artifact: Artifact) -> None:
    model = CoreMLModel(artifact)
    assert generate(model, [3], 2, [9])[:2] == ([4, 5], "length")
    assert generate(model, [0] * 8 + [1], 99, [])[:2] == ([2, 3, 4, 5], "context")
    with pytest.raises(UserError, match="the prompt is empty"):
        generate(model, [], 1, [])
