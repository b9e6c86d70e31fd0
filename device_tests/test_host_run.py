"""The default artifact on the host: our generator, and ExecuTorch's own runner on the same file."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from adakv_model.runtime import native
from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.generate import encode_prompt, generate
from adakv_model.runtime.manifest import PROGRAM, TOKENIZER
from device_tests.exporting import ROOT, export_once

PROMPT = "Why is the sky blue?"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact(export_once(tmp_path_factory, ()))


def run_generate(artifact: Artifact, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "adakv_model.generate", "--artifact", str(artifact.folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_default_artifact_is_small(artifact: Artifact) -> None:
    cache = artifact.manifest["kv_cache"]
    assert cache["context"] == 2048
    assert cache["bits_per_value"] <= 3.5
    assert cache["bytes_allocated"] <= 0.30 * cache["fp16_bytes"]
    model = artifact.load()
    assert artifact.manifest["logits"] == "last"
    assert model.step([1, 2]).shape == (1, 49152)
    buffers = ["progress", "tiers", "history", "observed", "attention"]
    buffers += [f"cache_{layer}" for layer in range(artifact.plan.n_layers)]
    assert sum(model.state(name).nbytes for name in buffers) == cache["bytes_allocated"], "everything is included"


def test_a_sensible_answer_with_statistics(artifact: Artifact) -> None:
    done = run_generate(artifact, "--prompt", f"{PROMPT} Answer in two sentences.", "--max-new-tokens", "40", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "scatter" in answer["text"]
    assert answer["bytes_allocated"] == artifact.manifest["kv_cache"]["bytes_allocated"]
    held = answer["prompt_tokens"] + answer["new_tokens"] - 1
    left = artifact.plan.left(held - 1) - 1
    assert sum(answer["tokens_by_tier"].values()) == left or answer["finish_reason"] == "eos"
    assert answer["decode_tokens_per_second"] > 0


def test_streamed_text_equals_the_json_text(artifact: Artifact) -> None:
    options = ("--prompt", "List three colours.", "--max-new-tokens", "24")
    streamed, whole = run_generate(artifact, *options), run_generate(artifact, *options, "--json")
    assert streamed.stdout.rstrip("\n") == json.loads(whole.stdout)["text"].rstrip("\n")
    assert "bits per stored value" in streamed.stderr


def test_a_prompt_longer_than_the_context_is_refused(artifact: Artifact) -> None:
    done = run_generate(artifact, "--prompt", "word " * 2100)
    assert done.returncode == 2
    assert "the artifact holds 2048: shorten it, or export with a larger --context" in done.stderr
    assert done.stdout == ""


def test_executorch_stock_runner_gives_the_same_text(artifact: Artifact) -> None:
    """The file runs unchanged under executorch.extension.llm.runner with the operator library loaded."""
    native.load_library(artifact.operator_library)
    import executorch.kernels.quantized  # noqa: F401
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    prompt = artifact.codec.render_chat([{"role": "user", "content": PROMPT}])
    runner = TextLLMRunner(str(artifact.folder / PROGRAM), str(artifact.folder / TOKENIZER))
    pieces: list[str] = []
    config = GenerationConfig(echo=False, temperature=0.0, max_new_tokens=120)
    runner.generate(prompt, config, pieces.append)
    stock = "".join(pieces)

    new, statistics = generate(artifact, encode_prompt(artifact, PROMPT, None, None), 120)
    ours = artifact.codec.decode(new, skip_special_tokens=True)
    assert statistics.new_tokens > 40
    assert stock.replace("<|im_end|>", "").strip() == ours.strip()


def test_the_program_describes_itself_to_stock_runners(artifact: Artifact) -> None:
    from executorch.extension.pybindings import _C

    native.load_library(artifact.operator_library)
    program = _C._load_program(str(artifact.program))

    def constant(name: str) -> list:
        return list(program.load_method(name).call(()))

    assert constant("get_max_context_len") == [2048]
    assert constant("get_max_seq_len") == [artifact.plan.chunk]
    assert constant("get_vocab_size") == [49152]
    assert constant("get_n_layers") == [30]
    assert 2 in constant("get_eos_ids")
    assert constant("enable_dynamic_shape") == [True]


def test_samples_are_seeded(artifact: Artifact) -> None:
    prompt = encode_prompt(artifact, "Tell a short story.", None, None)
    first, second, other = (generate(artifact, prompt, 20, temperature=1.0, seed=s)[0] for s in (1, 1, 2))
    assert first == second
    assert first != other
