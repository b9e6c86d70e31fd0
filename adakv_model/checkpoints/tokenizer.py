"""A checkpoint's tokenizer as transformers reads it: special tokens, added tokens, older files.

What a tokenizer.json leaves to tokenizer_config.json is written into it, so that every runtime that reads the
artifact's tokenizer.json alone gives the same ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from adakv_model.errors import UserError, first_line

# Names of PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES; chat templates get them as variables.
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What transformers' class says where the configuration says nothing. Its GPT2Tokenizer also builds the pre-tokenizer
# anew and so drops the Digits step of SmolLM's tokenizer.json; that file, which llama.cpp follows too, counts here.
_CLASS_DEFAULTS = {"GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")}
_LEGACY = ({"vocab.json", "merges.txt"}, {"tokenizer.model"}, {"spiece.model"})
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def special_tokens(config: Mapping[str, Any], tokenizer_json: bytes | None = None) -> dict[str, str]:
    """Name -> text of the special tokens of a tokenizer_config.json; null and absent ones are left out, or have the
    defaults of their class. A tokenizer.json with padding names `pad_token` if the configuration does not.

    Raises UserError for one that is neither a text nor an added token, which transformers refuses too.
    """
    defaults = _CLASS_DEFAULTS.get(str(config.get("tokenizer_class")).removesuffix("Fast"), {})
    values = {name: config.get(name, defaults.get(name)) for name in SPECIAL}
    found = {name: _content(name, value) for name, value in values.items() if value is not None}
    padding = json.loads(tokenizer_json).get("padding") if tokenizer_json is not None else None
    if isinstance(padding, Mapping) and "pad_token" not in config:
        found["pad_token"] = _content("pad_token", padding.get("pad_token"))
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, and special_tokens_map.json over it where transformers still reads that; {} without."""
    config = read_object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_object(folder / "special_tokens_map.json")
    return config


def read_tokenizer(folder: Path, config: Mapping[str, Any]) -> tuple[bytes | None, dict[str, str]]:
    """The content of a complete tokenizer.json, or None where the folder has no tokenizer, and the special tokens.

    Older files (vocab.json with merges.txt, tokenizer.model) are converted by transformers. Raises UserError where a
    file is malformed.
    """
    path = folder / "tokenizer.json"
    if os.path.lexists(path):  # a link that leads nowhere, or a folder, is a fault of the checkpoint
        read_object(path)
        content = path.read_bytes()
        return complete(content, config), special_tokens(config, content)
    if any(all((folder / name).is_file() for name in names) for names in _LEGACY):
        return _converted(folder)
    return None, special_tokens(config)


def complete(tokenizer_json: bytes, config: Mapping[str, Any]) -> bytes:
    """tokenizer.json with the added tokens that tokenizer_config.json names or lists, as in transformers, and without
    the truncation and padding that some training run stored. The same bytes where nothing changes.

    `add_bos_token` of the configuration does not count: transformers reads the post-processor of tokenizer.json.
    """
    tokenizer = open_tokenizer(tokenizer_json)
    changed = tokenizer.truncation is not None or tokenizer.padding is not None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    extra = [token for token in _listed(config, special_tokens(config, tokenizer_json)) if token.content not in known]
    tokenizer.add_tokens(extra)
    return tokenizer.to_str().encode() if changed or extra else tokenizer_json


def with_edges(tokenizer_json: bytes, bos: str | None, eos: str | None) -> bytes:
    """tokenizer.json whose post-processor puts `bos` before and `eos` after every text; None: nothing there."""
    tokenizer = open_tokenizer(tokenizer_json)
    before, after = [bos] if bos else [], [eos] if eos else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A:0", *after],
        pair=[*before, "$A:0", *after, *(f"{text}:1" for text in before), "$B:1", *(f"{text}:1" for text in after)],
        special_tokens=[(text, tokenizer.token_to_id(text)) for text in {*before, *after}],
    )
    return tokenizer.to_str().encode()


def open_tokenizer(tokenizer_json: bytes) -> Tokenizer:
    """Raises UserError for what is not the content of a tokenizer.json."""
    try:
        return Tokenizer.from_str(tokenizer_json.decode())
    except Exception as error:  # tokenizers raises plain Exception for every malformed input
        raise UserError("the tokenizer.json of this checkpoint is malformed: download it again") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} if it does not exist. Raises UserError for anything else."""
    if not os.path.lexists(path):
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object: download it again")
    return value


def _content(name: str, value: Any) -> str:
    text = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise UserError(f"{name} in tokenizer_config.json must be a text, not {value!r}: correct it")
    return text


def _listed(config: Mapping[str, Any], named: Mapping[str, str]) -> list[AddedToken]:
    """Added tokens of the configuration in transformers' order: by id, then the named ones, then the extra ones."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise UserError("added_tokens_decoder in tokenizer_config.json must be an object: correct it")
    listed: dict[str, AddedToken] = {}
    for _, token in sorted(decoder.items(), key=lambda item: int(item[0])):
        text = _content("added_tokens_decoder", token)
        flags = {flag: bool(token[flag]) for flag in _FLAGS if flag in token}
        if text in named.values():
            flags["special"] = True
        listed.setdefault(text, AddedToken(text, **flags))
    more = config.get("extra_special_tokens", config.get("additional_special_tokens")) or []
    for value in [*named.values(), *(more.values() if isinstance(more, Mapping) else more)]:
        text = _content("extra_special_tokens", value)
        listed.setdefault(text, AddedToken(text, special=True, normalized=False))
    return list(listed.values())


def _converted(folder: Path) -> tuple[bytes, dict[str, str]]:
    """What transformers makes of a folder without tokenizer.json."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        content = tokenizer.backend_tokenizer.to_str().encode()
    except Exception as error:  # whatever a tokenizer class raises for files it cannot use
        raise UserError(
            f"{folder} has no tokenizer.json, and its other tokenizer files cannot be read ({first_line(error)}): "
            "save them again with transformers' save_pretrained"
        ) from error
    return complete(content, {}), dict(tokenizer.special_tokens_map)
