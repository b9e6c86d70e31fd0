"""Hugging Face folders: single and sharded safetensors, and everything that can be wrong with them."""

import errno
import hashlib
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from adakv_model.checkpoints.load import load_checkpoint
from adakv_model.checkpoints.testing_checkpoints import (
    SMALL,
    UNTIED,
    Weights,
    hf_names,
    same,
    write_folder,
    write_tokenizer,
)
from adakv_model.checkpoints.weights import draw_weights, weight_shapes
from adakv_model.config import LlamaConfig
from adakv_model.errors import UserError
from adakv_model.runtime.text import codec_for


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "small", draw_weights(SMALL, seed=1))


@pytest.mark.parametrize("config", [SMALL, UNTIED])
def test_a_folder_gives_back_its_weights(tmp_path: Path, config: LlamaConfig) -> None:
    weights = draw_weights(config, seed=1)
    loaded = load_checkpoint(path=write_folder(tmp_path / "small", weights, config))
    assert loaded.config == config
    assert same(loaded.weights, weights)
    assert ("lm_head.weight" in loaded.weights) is not config.tie_word_embeddings
    assert (loaded.name, loaded.source["kind"], loaded.random) == ("small", "folder", False)
    file = tmp_path / "small" / "model.safetensors"
    assert loaded.source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (loaded.tokenizer, loaded.chat_template) == (None, None)
    with pytest.raises(UserError, match="no tokenizer"):
        codec_for(loaded)


def test_a_folder_saved_by_transformers_loads(tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL.to_hf()))
    model.save_pretrained(tmp_path / "saved")
    loaded = load_checkpoint(path=tmp_path / "saved")
    assert loaded.config == SMALL
    assert same(loaded.weights, {name: model.model.state_dict()[name] for name in weight_shapes(SMALL)})


def test_half_precision_is_widened_exactly_and_dtype_is_honoured(tmp_path: Path) -> None:
    halves = {name: tensor.bfloat16() for name, tensor in draw_weights(SMALL, seed=1).items()}
    path = write_folder(tmp_path / "half", halves)
    assert same(load_checkpoint(path=path).weights, {name: half.float() for name, half in halves.items()})
    assert same(load_checkpoint(path=path, dtype=torch.bfloat16).weights, halves)


def test_extra_tensors_are_ignored(tmp_path: Path) -> None:
    weights = draw_weights(SMALL, seed=1)
    extra = {
        "lm_head.weight": weights["embed_tokens.weight"].clone(),
        "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "step": torch.ones(1, dtype=torch.int64),
    }
    assert same(load_checkpoint(path=write_folder(tmp_path / "extra", weights | extra)).weights, weights)


def shard(folder: Path, tensors: Weights | None = None) -> tuple[Path, Path]:
    """Puts two shards with an index in place of model.safetensors. Returns both."""
    weights = list(hf_names(tensors or draw_weights(SMALL, seed=1)).items())
    parts = {"model-00001-of-00002.safetensors": weights[:7], "model-00002-of-00002.safetensors": weights[7:]}
    for name, part in parts.items():
        save_file(dict(part), folder / name)
    weight_map = {key: name for name, part in parts.items() for key, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    (folder / "model.safetensors").unlink()
    first, second = (folder / name for name in parts)
    return first, second


def test_sharded_weights_load(folder: Path) -> None:
    shard(folder)
    assert same(load_checkpoint(path=folder).weights, draw_weights(SMALL, seed=1))


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard(folder)[1].unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00002.safetensors"):
        load_checkpoint(path=folder)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"weight_map": {"x": "../model.safetensors"}}'])
def test_a_malformed_index_is_a_user_error(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="download it again"):
        load_checkpoint(path=folder)


@pytest.mark.parametrize("keep", [0, 4, 200, 5000, -1])
def test_truncated_safetensors(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="is truncated or not a safetensors file: download it again"):
        load_checkpoint(path=folder)


@pytest.mark.parametrize(
    ("name", "tensor", "named"),
    [
        ("layers.1.mlp.up_proj.weight", None, r"tensor layers.1.mlp.up_proj.weight is missing .*1 of 20"),
        ("norm.weight", torch.ones(65), r"norm.weight has shape \[65\] instead of \[64\]"),
        ("layers.0.self_attn.k_proj.weight", torch.ones(64, 64), r"\[64, 64\] instead of \[32, 64\]"),
        ("layers.0.self_attn.k_proj.bias", torch.ones(32), "k_proj.bias"),
        ("norm.weight", torch.ones(64, dtype=torch.int8), "unsupported dtype I8 of model.norm.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, name: str, tensor: torch.Tensor | None, named: str) -> None:
    weights = draw_weights(SMALL, seed=1)
    weights.pop(name, None)
    if tensor is not None:
        weights[name] = tensor
    with pytest.raises(UserError, match=named):
        load_checkpoint(path=write_folder(tmp_path / "bad", weights))


def test_a_single_file_comes_before_a_stale_index(folder: Path) -> None:
    """As in transformers; the shards hold other weights."""
    single = draw_weights(SMALL, seed=1)
    shard(folder, draw_weights(SMALL, seed=2))
    write_folder(folder, single)
    loaded = load_checkpoint(path=folder)
    assert same(loaded.weights, single)
    assert loaded.notes == ["read model.safetensors; model.safetensors.index.json and its shards are left unread"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert torch.equal(theirs["model.norm.weight"], single["norm.weight"])


@pytest.mark.parametrize("different", [False, True])
def test_another_output_layer_of_a_tied_model_is_kept(tmp_path: Path, different: bool) -> None:
    """As in transformers."""
    weights = draw_weights(SMALL, seed=1)
    head = weights["embed_tokens.weight"] + (1.0 if different else 0.0)
    path = write_folder(tmp_path / "tied", weights | {"lm_head.weight": head})
    loaded = load_checkpoint(path=path)
    assert loaded.config.tie_word_embeddings is not different
    assert ("lm_head.weight" in loaded.weights) is different
    assert len(loaded.notes) == different
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path).state_dict()["lm_head.weight"]
    assert torch.equal(loaded.weights.get("lm_head.weight", weights["embed_tokens.weight"]), theirs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj.weight", "norm.weight"])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, name: str, value: float) -> None:
    weights = draw_weights(SMALL, seed=1)
    weights[name].flatten()[-1] = value
    with pytest.raises(UserError, match=f"tensor {name} in bad holds NaN or infinity"):
        load_checkpoint(path=write_folder(tmp_path / "bad", weights))


def test_a_value_too_large_for_the_type_asked_for_is_refused(tmp_path: Path) -> None:
    weights = {name: tensor.double() for name, tensor in draw_weights(SMALL, seed=1).items()}
    weights["norm.weight"][3] = 1e39
    with pytest.raises(UserError, match="tensor norm.weight in large holds NaN or infinity"):
        load_checkpoint(path=write_folder(tmp_path / "large", weights))


def test_an_untied_config_needs_an_lm_head(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lm_head.weight is missing"):
        load_checkpoint(path=write_folder(tmp_path / "bad", draw_weights(SMALL, seed=1), UNTIED))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "bad", draw_weights(SMALL, seed=1), model_type="qwen2")
    with pytest.raises(UserError, match="unsupported model_type 'qwen2'"):
        load_checkpoint(path=path)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled"):
        load_checkpoint(path=folder)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("config.json", None, "no config.json: pass a folder"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[1]", "JSON object"),
        ("model.safetensors", None, "no model.safetensors"),
        ("tokenizer.json", "{", "not valid JSON"),
        ("tokenizer.json", '{"version": "1.0"}', "malformed: download it again"),
        ("tokenizer_config.json", "[]", "JSON object"),
        ("tokenizer_config.json", '{"eos_token": 2}', "eos_token in tokenizer_config.json must be a text"),
        ("generation_config.json", "{", "not valid JSON"),
        ("generation_config.json", '{"eos_token_id": "2"}', "eos_token_id must be an integer"),
    ],
)
def test_files_missing_or_malformed(folder: Path, name: str, content: str | None, named: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=named):
        load_checkpoint(path=folder)


def test_a_file_that_cannot_be_read_is_a_user_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot read .*config.json \(Permission denied\)"):
        load_checkpoint(path=folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "T"),
        ("tokenizer_config.json", '{"chat_template": "T"}'),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "tools", "template": "X"}, {"name": "default", "template": "T"}]}',
        ),
    ],
)
def test_tokenizer_and_chat_template_are_read(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    tokenizer = write_tokenizer(folder)
    loaded = load_checkpoint(path=folder)
    assert (loaded.chat_template, loaded.tokenizer) == ("T", tokenizer)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
)
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_is_no_file_is_not_taken_for_none(folder: Path, name: str, kind: str) -> None:
    """A link that leads nowhere is what a hub's cache keeps of a blob that was removed."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir() if kind == "folder" else (folder / name).symlink_to("gone")
    with pytest.raises(UserError, match=rf"^cannot read .*{name} \((Is a directory|No such file or directory)\)"):
        load_checkpoint(path=folder)


def test_paths_that_are_no_checkpoint(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(path=tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither a folder nor a .gguf"):
        load_checkpoint(path=folder / "config.json")
    (folder / "config.json").rename(folder / "model.gguf")
    with pytest.raises(UserError, match="no config.json: pass .*model.gguf itself"):
        load_checkpoint(path=folder)
    with pytest.raises(UserError, match="unknown model"):
        load_checkpoint("smollm3-3b")
