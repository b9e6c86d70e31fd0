"""Odd but legal folders: the codec and the configuration are what transformers reads from the same files.

Where ours refuses what transformers reads, test_config.py and test_gguf.py say so by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings

from adakv_model.checkpoints.load import load_checkpoint
from adakv_model.checkpoints.testing_checkpoints import SPECIAL, small_tokenizer, write_folder, write_tokenizer
from adakv_model.checkpoints.testing_odd_folders import MESSAGES, TEMPLATES, TEXTS, WEIGHTS, OddFolder, odd_folders
from adakv_model.checkpoints.weights import Checkpoint
from adakv_model.runtime.text import codec_for


def read_both(folder: Path) -> tuple[Checkpoint, Any]:
    return load_checkpoint(path=folder), transformers.AutoTokenizer.from_pretrained(folder)


def compare(folder: Path) -> None:
    """Everything of a folder that a text goes through."""
    loaded, theirs = read_both(folder)
    codec = codec_for(loaded)
    for text in TEXTS:
        for special in (False, True):
            expected = theirs(text, add_special_tokens=special)["input_ids"]
            assert codec.encode(text, add_special_tokens=special) == expected, text
        ids = codec.encode(text)
        for skip in (False, True):
            shown = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert codec.decode(ids, skip_special_tokens=skip) == shown
    assert loaded.special_tokens == theirs.special_tokens_map
    if theirs.chat_template is not None:
        rendered = codec.render_chat(MESSAGES)
        assert rendered == theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        chat = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
        assert codec.encode(rendered) == chat
    compare_configuration(folder, loaded)


def compare_configuration(folder: Path, loaded: Checkpoint) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    generation = folder / "generation_config.json"
    source = "generation_config.json" if generation.is_file() else "config.json"
    stops = transformers.GenerationConfig.from_pretrained(folder, config_file_name=source).eos_token_id
    if stops is None:  # a generation_config.json that names none: transformers would go on for ever, ours does not
        stops = config.eos_token_id
    assert set(loaded.config.eos_token_ids) == set(stops if isinstance(stops, list) else [stops]) - {None}
    assert loaded.config.bos_token_id == config.bos_token_id
    assert loaded.config.rope_theta == config.rope_parameters["rope_theta"]
    assert config.rope_parameters["rope_type"] == "default"
    assert loaded.config.rms_norm_eps == config.rms_norm_eps
    assert loaded.config.head_dim == config.head_dim
    assert loaded.config.n_kv_heads == config.num_key_value_heads


@settings(max_examples=40, deadline=None)
@given(folder=odd_folders())
def test_odd_folders_read_as_transformers_reads_them(folder: OddFolder) -> None:
    with folder.written() as path:
        compare(path)


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_render_as_in_transformers(tmp_path: Path, template: str) -> None:
    folder = write_folder(tmp_path / "small", WEIGHTS)
    write_tokenizer(folder, tokenizer_class="PreTrainedTokenizerFast", bos_token=SPECIAL[1], eos_token=SPECIAL[2])
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    compare(folder)


def test_older_files_are_merged_as_in_transformers(tmp_path: Path) -> None:
    """special_tokens_map.json counts where tokenizer_config.json has no added_tokens_decoder."""
    folder = write_folder(tmp_path / "small", WEIGHTS)
    write_tokenizer(folder, tokenizer_class="PreTrainedTokenizerFast", eos_token=SPECIAL[0])
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}', encoding="utf-8")
    compare(folder)
    assert load_checkpoint(path=folder).special_tokens == {"eos_token": "<|im_end|>"}
    decoder = {"2": {"content": "<|im_end|>", "special": True}}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[0],
        "added_tokens_decoder": decoder,
    }
    write_tokenizer(folder, **config)
    compare(folder)
    assert load_checkpoint(path=folder).special_tokens == {"eos_token": "<|endoftext|>"}


def test_a_vocabulary_with_merges_is_read_without_a_tokenizer_json(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "small", WEIGHTS)
    vocabulary = json.loads(small_tokenizer().to_str())["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "eos_token": SPECIAL[2],
        "bos_token": SPECIAL[1],
        "unk_token": SPECIAL[0],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded, theirs = read_both(folder)
    codec = codec_for(loaded)
    for text in TEXTS:
        assert codec.encode(text, add_special_tokens=True) == theirs(text)["input_ids"]
    assert codec.encode("Hi<|im_end|>")[-1] == 2


@torch.no_grad()
def test_a_folder_ends_its_text_where_transformers_ends_it(tmp_path: Path) -> None:
    """config.json says 0, generation_config.json [2, 0]; the exporters write what the checkpoint says."""
    folder = write_folder(tmp_path / "small", WEIGHTS, eos_token_id=0)
    assert load_checkpoint(path=folder).config.eos_token_ids == (0,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}', encoding="utf-8")
    assert load_checkpoint(path=folder).config.eos_token_ids == (2, 0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == [2, 0]
