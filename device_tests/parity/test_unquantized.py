"""With float weights and a 16-bit cache the artifact is transformers' model."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers

from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.generate import decode, prefill
from device_tests.parity.compare import Agreement
from device_tests.parity.conftest import TEXT
from device_tests.parity.eager import checkpoint_of

MAX_DIFFERENCE = 1e-2


def hugging_face(artifact: Artifact) -> transformers.LlamaForCausalLM:
    checkpoint = checkpoint_of(artifact)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**checkpoint.config.to_hf()))
    weights = {f"model.{name}": value for name, value in checkpoint.weights.items() if name != "lm_head.weight"}
    weights["lm_head.weight"] = checkpoint.weights.get("lm_head.weight", checkpoint.weights["embed_tokens.weight"])
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its tables are not in the checkpoint
    return model.eval()


def test_logits_equal_transformers_within_a_hundredth(export_artifact: Callable[..., Artifact]) -> None:
    artifact = export_artifact(
        "--kv", "fp16", "--quantize", "none", "--embedding", "none", "--context", "900", "--logits", "all"
    )
    tokens = artifact.codec.encode(TEXT)[:600]
    assert len(tokens) >= 512
    theirs, model = hugging_face(artifact), artifact.load()
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0]
    agreement = Agreement.between(expected, model.prefill(tokens))
    print(agreement)
    assert agreement.max_difference < MAX_DIFFERENCE
    assert agreement.tie_gap < 2 * MAX_DIFFERENCE, "the likeliest token may differ only at ties"
    assert agreement.top1 > 0.995

    model.reset()
    new = list(decode(model, prefill(model, tokens[:64]), 300, eos=(), temperature=0.0, seed=0))
    with torch.no_grad():
        logits = theirs(torch.tensor([[*tokens[:64], *new[:-1]]])).logits[0, 63:]
    gaps = logits.amax(1) - logits.gather(1, torch.tensor(new).unsqueeze(1))[:, 0]
    assert float(gaps.max()) < 2 * MAX_DIFFERENCE
