"""The real checkpoint against transformers, and random weights."""

import math
from pathlib import Path

import pytest
import torch
import transformers

from adakv_model.checkpoints.load import Checkpoint, load_checkpoint
from adakv_model.checkpoints.testing_checkpoints import SMALL, same
from adakv_model.checkpoints.weights import draw_weights, weight_shapes
from adakv_model.config import DEFAULT_MODEL, MODELS
from adakv_model.errors import UserError
from adakv_model.runtime.text import codec_for

PARAGRAPH = (
    "The Industrial Revolution began in Great Britain in the late eighteenth century. New machines, driven "
    "first by water and later by steam, replaced work that had been done by hand, and people moved from the "
    "countryside to the growing cities to work in factories. Railways made it possible to carry goods and "
    "passengers quickly over long distances, and the price of many products fell."
)


def reference_model(checkpoint: Checkpoint) -> transformers.LlamaForCausalLM:
    """transformers' Llama with the weights of `checkpoint`, not copied."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**checkpoint.config.to_hf()))
    model.model.load_state_dict(checkpoint.weights, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


def test_the_default_checkpoint_is_the_registered_model(default_checkpoint: Checkpoint) -> None:
    assert default_checkpoint.config == MODELS[DEFAULT_MODEL].config
    assert default_checkpoint.name == DEFAULT_MODEL
    bundled = MODELS[DEFAULT_MODEL].bundled
    assert bundled is not None
    assert default_checkpoint.source["sha256"] == bundled.member_sha256
    assert all(tensor.dtype == torch.float32 for tensor in default_checkpoint.weights.values())


def test_weights_equal_transformers_own_gguf_reading(default_checkpoint: Checkpoint, default_gguf: Path) -> None:
    pytest.importorskip("accelerate")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        default_gguf.parent, gguf_file=default_gguf.name, dtype=torch.float32
    )
    state = theirs.model.state_dict()
    assert set(state) == set(default_checkpoint.weights)
    for name, tensor in default_checkpoint.weights.items():
        assert torch.equal(state[name], tensor), name
    assert theirs.config.rope_parameters["rope_theta"] == default_checkpoint.config.rope_theta


def test_perplexity_of_an_english_paragraph(default_checkpoint: Checkpoint) -> None:
    """Wrong rotary rows of q and k would give hundreds or more."""
    ids = torch.tensor([codec_for(default_checkpoint).encode(PARAGRAPH)])
    with torch.no_grad():
        loss = reference_model(default_checkpoint)(ids, labels=ids).loss.item()
    assert 3 < math.exp(loss) < 30


def test_random_weights_stay_finite_through_the_model(tmp_path: Path) -> None:
    first = load_checkpoint("smollm-135m", random_weights=True, cache_dir=tmp_path)
    assert first.random
    assert (first.tokenizer, first.name) == (None, "smollm-135m")
    assert {name: tuple(tensor.shape) for name, tensor in first.weights.items()} == weight_shapes(first.config)
    with torch.no_grad():
        logits = reference_model(first)(torch.arange(32)[None]).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.01


def test_random_weights_are_seeded() -> None:
    assert same(draw_weights(SMALL, seed=3), draw_weights(SMALL, seed=3))
    assert not same(draw_weights(SMALL, seed=3), draw_weights(SMALL, seed=4))


def test_random_weights_can_be_half_precision_and_borrow_the_default_tokenizer(
    monkeypatch: pytest.MonkeyPatch, default_checkpoint: Checkpoint
) -> None:
    monkeypatch.setattr(
        "adakv_model.checkpoints.load.draw_weights", lambda config, seed, dtype: {"d": torch.ones(1, dtype=dtype)}
    )
    loaded = load_checkpoint("smollm2-1.7b", random_weights=True, dtype=torch.bfloat16)
    assert loaded.weights["d"].dtype == torch.bfloat16
    assert (loaded.tokenizer, loaded.chat_template) == (
        default_checkpoint.tokenizer,
        default_checkpoint.chat_template,
    )


def test_random_weights_take_no_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--random-weights"):
        load_checkpoint(path=tmp_path, random_weights=True)
