"""GGUF files: configuration, dequantisation, RoPE order, tokenizer, and truncation anywhere."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from adakv_model.checkpoints.gguf import unpermute_rope
from adakv_model.checkpoints.load import load_checkpoint
from adakv_model.checkpoints.testing_checkpoints import SMALL, UNTIED, add_vocabulary, permute_rope, same, write_gguf
from adakv_model.checkpoints.weights import draw_weights
from adakv_model.config import LlamaConfig
from adakv_model.errors import UserError
from adakv_model.runtime.text import codec_for


@pytest.mark.parametrize("config", [SMALL, UNTIED])
def test_float_gguf_gives_back_its_weights(tmp_path: Path, config: LlamaConfig) -> None:
    weights = draw_weights(config, seed=2)
    loaded = load_checkpoint(path=write_gguf(tmp_path / "small.gguf", weights, config))
    assert loaded.config == config
    assert same(loaded.weights, weights)
    assert (loaded.name, loaded.source["kind"]) == ("small", "gguf")
    assert loaded.source["sha256"] == hashlib.sha256((tmp_path / "small.gguf").read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_quantized_gguf_is_dequantized_block_by_block(tmp_path: Path, kind: str) -> None:
    weights = draw_weights(SMALL, seed=2)
    quantization = gguf.GGMLQuantizationType[kind]
    loaded = load_checkpoint(path=write_gguf(tmp_path / "small.gguf", weights, quantization=quantization))
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            expected = tensor
        else:  # blocks lie along a row, so the order of the rows does not matter
            blocks = gguf.quants.quantize(tensor.numpy(), quantization)
            expected = torch.from_numpy(np.array(gguf.quants.dequantize(blocks, quantization), np.float32))
        assert torch.equal(loaded.weights[name], expected), name
        assert loaded.weights[name].dtype == torch.float32


def test_unpermute_undoes_the_converter() -> None:
    weight = np.arange(4 * 16 * 3, dtype=np.float32).reshape(64, 3)
    assert not np.array_equal(permute_rope(weight, 4), weight)
    assert np.array_equal(unpermute_rope(permute_rope(weight, 4), 4), weight)


def test_truncated_gguf_is_a_user_error_wherever_it_ends(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "small.gguf", draw_weights(SMALL, seed=2), edit=add_vocabulary).read_bytes()
    cut = tmp_path / "cut.gguf"
    lengths = [*range(0, 3000, 37), *range(3000, len(whole), 40_000), len(whole) - 64]
    for length in lengths:
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match="truncated or not a GGUF file: download it again"):
            load_checkpoint(path=cut)


def test_a_foreign_file_named_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" * 1000)
    with pytest.raises(UserError, match="truncated or not a GGUF file"):
        load_checkpoint(path=tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "rope_scaling 'yarn'"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), "rope_scaling 'linear'"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "rope_scaling 'longrope'"),
        # llama.cpp takes a factor without a type as linear scaling
        (lambda w: w.add_rope_scaling_factor(2.0), "rope.scaling.factor = 2.0"),
        (lambda w: w.add_float32("llama.rope.scale_linear", 4.0), "rope.scale_linear = 4.0"),
        (lambda w: w.add_rope_scaling_attn_factors(0.5), "rope.scaling.attn_factor = 0.5"),
        (lambda w: w.add_rope_dimension_sections([1, 2, 3, 4]), "rope.dimension_sections"),
        (lambda w: w.add_float32("llama.rope.freq_base_swa", 1e4), "rope.freq_base_swa"),
        (lambda w: w.add_tensor("rope_factors_long.weight", np.ones(8, np.float32)), "rope_factors_long"),
        (lambda w: w.add_sliding_window(512), "attention.sliding_window = 512"),
        (lambda w: w.add_attention_scale(0.5), "attention.scale = 0.5"),
        (lambda w: w.add_value_length(32), "value_length 32"),
        (lambda w: w.add_logit_scale(8.0), "logit_scale = 8.0"),
        (lambda w: w.add_causal_attention(False), "attention.causal = False"),
        (lambda w: w.add_rope_dimension_count(8), "rope.dimension_count 8"),
        (lambda w: w.add_key_length(48), "head_dim 48"),
        (lambda w: w.add_array("llama.attention.head_count_kv", [1, 2]), "num_key_value_heads"),
        (lambda w: w.add_expert_count(4), "expert_count"),
        (lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(64, np.float32)), "q_proj.bias"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32)), "rope_freqs"),
        (lambda w: add_vocabulary(w, pre="llama-bpe"), "pre-tokenizer 'llama-bpe'"),
        (lambda w: add_vocabulary(w, model="llama"), "tokenizer 'llama'"),
    ],
)
def test_unsupported_gguf_features(tmp_path: Path, edit: Callable[[gguf.GGUFWriter], None], named: str) -> None:
    path = write_gguf(tmp_path / "x.gguf", draw_weights(SMALL, seed=2), edit=edit)
    with pytest.raises(UserError, match=named):
        load_checkpoint(path=path)


def test_keys_that_change_nothing_are_read(tmp_path: Path) -> None:
    def neutral(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(2.0)  # of no scaling
        writer.add_rope_scaling_orig_ctx_len(2048)
        writer.add_rope_dimension_count(SMALL.head_dim)
        writer.add_value_length(SMALL.head_dim)
        writer.add_logit_scale(1.0)
        writer.add_string("llama.tensor_data_layout", "Meta AI original pth")

    assert (
        load_checkpoint(path=write_gguf(tmp_path / "x.gguf", draw_weights(SMALL, seed=2), edit=neutral)).config == SMALL
    )


def test_every_token_that_ends_a_text_for_llama_cpp_ends_it(tmp_path: Path) -> None:
    def ends(writer: gguf.GGUFWriter) -> None:
        writer.add_eot_token_id(5)
        writer.add_eom_token_id(2)

    loaded = load_checkpoint(path=write_gguf(tmp_path / "x.gguf", draw_weights(SMALL, seed=2), edit=ends))
    assert loaded.config.eos_token_ids == (2, 5)
    beyond = write_gguf(tmp_path / "y.gguf", draw_weights(SMALL, seed=2), edit=lambda w: w.add_eot_token_id(256))
    with pytest.raises(UserError, match="token id 256 .* outside the vocabulary"):
        load_checkpoint(path=beyond)


def test_bos_is_added_where_the_file_asks_for_it(tmp_path: Path) -> None:
    def asks(writer: gguf.GGUFWriter) -> None:
        add_vocabulary(writer)
        writer.add_add_bos_token(True)
        writer.add_chat_template("{{ bos_token }}{{ eos_token }}")

    loaded = load_checkpoint(path=write_gguf(tmp_path / "x.gguf", draw_weights(SMALL, seed=2), edit=asks))
    codec = codec_for(loaded)
    assert codec.encode("ab", add_special_tokens=True) == [1, 4]
    assert codec.encode("ab") == [4]
    assert loaded.special_tokens == {"bos_token": "<tool>", "eos_token": "a"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    weights = draw_weights(SMALL, seed=2)
    weights["norm.weight"][0] = value
    with pytest.raises(UserError, match=r"tensor norm.weight in x.gguf holds NaN or infinity"):
        load_checkpoint(path=write_gguf(tmp_path / "x.gguf", weights))


def test_gguf_of_another_architecture_or_with_missing_parts(tmp_path: Path) -> None:
    weights = draw_weights(SMALL, seed=2)
    with pytest.raises(UserError, match="architecture 'qwen2'"):
        load_checkpoint(path=write_gguf(tmp_path / "q.gguf", weights, architecture="qwen2"))
    del weights["layers.1.self_attn.q_proj.weight"]
    with pytest.raises(UserError, match="layers.1.self_attn.q_proj.weight is missing"):
        load_checkpoint(path=write_gguf(tmp_path / "m.gguf", weights))
    writer = gguf.GGUFWriter(tmp_path / "empty.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="the GGUF file has no "):
        load_checkpoint(path=tmp_path / "empty.gguf")


@pytest.mark.parametrize(("pre", "pieces"), [("smollm", ["ab", "1", "1"]), ("gpt-2", ["ab", "11"])])
def test_gguf_vocabulary_becomes_a_tokenizer(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    path = write_gguf(
        tmp_path / "x.gguf", draw_weights(SMALL, seed=2), edit=lambda writer: add_vocabulary(writer, pre=pre)
    )
    loaded = load_checkpoint(path=path)
    codec = codec_for(loaded)
    ids = codec.encode("ab11<|endoftext|><tool>")
    assert [codec.decode([token]) for token in ids] == [*pieces, "<|endoftext|>", "<tool>"]
    assert codec.decode(ids, skip_special_tokens=True) == "ab11<tool>"
    assert codec.render_chat([{"role": "user", "content": "x"}]) == "x"
