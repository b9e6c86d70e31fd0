"""Configurations: what is read, what is refused, and the registry against transformers."""

from dataclasses import replace
from typing import Any

import pytest
import transformers

from adakv_model.config import DEFAULT_MODEL, MODELS, LlamaConfig, get_model
from adakv_model.errors import UserError

# config.json of SmolLM2-135M as published (transformers 4 form).
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}

# Parameters of the published models, tied embedding counted once.
PARAMETERS = {"135m": 134_515_008, "360m": 361_821_120, "1.7b": 1_711_376_384}


def test_published_config_is_the_registered_one() -> None:
    assert LlamaConfig.from_hf(SMOLLM2_135M) == MODELS["smollm2-135m"].config


def test_rope_theta_is_read_in_both_forms() -> None:
    new = {key: value for key, value in SMOLLM2_135M.items() if not key.startswith("rope_")}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 100000.0}
    assert LlamaConfig.from_hf(new) == LlamaConfig.from_hf(SMOLLM2_135M)


def test_absent_optional_keys_take_transformers_defaults() -> None:
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    short: dict[str, Any] = {key: SMOLLM2_135M[key] for key in (*keys, "max_position_embeddings")}
    config = LlamaConfig.from_hf(short)
    reference: Any = transformers.LlamaConfig(**short)
    assert config.n_kv_heads == reference.num_key_value_heads == 9
    assert config.head_dim == reference.head_dim == 64
    assert config.rope_theta == reference.rope_parameters["rope_theta"] == 10000.0
    assert config.rms_norm_eps == reference.rms_norm_eps
    assert config.tie_word_embeddings == reference.tie_word_embeddings
    assert (
        (config.bos_token_id, config.eos_token_ids) == (reference.bos_token_id, (reference.eos_token_id,)) == (1, (2,))
    )
    none = LlamaConfig.from_hf(short | {"bos_token_id": None, "eos_token_id": None})
    assert (none.bos_token_id, none.eos_token_ids) == (None, ())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"model_type": "qwen2"}, "model_type 'qwen2'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling 'linear'"),
        ({"rope_scaling": [2.0]}, "rope_scaling"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling 'factor'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "rope_scaling 'longrope'"),
        ({"rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": float("inf")}}, "rope_theta"),
        ({"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters 'yarn'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"head_dim": 48}, "head_dim 48"),
        ({"head_dim": 8}, "head_dim 8"),
        ({"head_dim": 512}, "head_dim 512"),
        ({"num_key_value_heads": 2}, "num_attention_heads 9"),
        ({"num_attention_heads": 7}, "hidden_size 576"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 1,024"),
        ({"max_position_embeddings": 10**400}, "max_position_embeddings must be at most"),
        ({"num_key_value_heads": "3"}, "num_key_value_heads"),
        ({"vocab_size": True}, "vocab_size"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"eos_token_id": 49152}, "49152"),
        ({"bos_token_id": "0"}, "bos_token_id"),
    ],
)
def test_unsupported_features_are_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        LlamaConfig.from_hf(SMOLLM2_135M | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(UserError, match=key):
        LlamaConfig.from_hf({name: value for name, value in SMOLLM2_135M.items() if name != key})


@pytest.mark.parametrize("name", MODELS)
def test_to_hf_round_trips_through_transformers(name: str) -> None:
    config = MODELS[name].config
    assert LlamaConfig.from_hf(config.to_hf()) == config
    assert LlamaConfig.from_hf(transformers.LlamaConfig(**config.to_hf()).to_dict()) == config


@pytest.mark.parametrize("eos", [(), (2,), (0, 2)])
def test_any_number_of_eos_ids_round_trips(eos: tuple[int, ...]) -> None:
    config = replace(MODELS[DEFAULT_MODEL].config, eos_token_ids=eos, bos_token_id=None)
    assert LlamaConfig.from_hf(transformers.LlamaConfig(**config.to_hf()).to_dict()) == config


@pytest.mark.parametrize("name", MODELS)
def test_registered_shapes_have_the_published_number_of_parameters(name: str) -> None:
    config = MODELS[name].config
    attention = 2 * config.hidden_size * config.head_dim * (config.n_heads + config.n_kv_heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size
    total = config.vocab_size * config.hidden_size + config.n_layers * layer + config.hidden_size
    assert total == PARAMETERS[name.split("-")[1]]


def test_registry_has_both_generations_with_their_hub_names() -> None:
    assert len(MODELS) == 12
    spec = get_model("SmolLM2-1.7B-Instruct")
    assert spec.hub_id == "HuggingFaceTB/SmolLM2-1.7B-Instruct"
    assert spec.display_name == "SmolLM2-1.7B-Instruct"
    assert (spec.config.rope_theta, spec.config.max_position_embeddings) == (130000.0, 8192)
    assert get_model("smollm-360m").config.max_position_embeddings == 2048
    assert [name for name, spec in MODELS.items() if spec.bundled] == [DEFAULT_MODEL]


def test_an_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(UserError, match="did you mean .*smollm2-135m-instruct"):
        get_model("smolm2-135m-instruct")
    with pytest.raises(UserError, match="choose one of smollm-135m, "):
        get_model("gpt5")
