"""Reads a Hugging Face checkpoint folder: config.json, safetensors (also sharded), tokenizer, template."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from adakv_model.checkpoints.tokenizer import read_config, read_object, read_tokenizer
from adakv_model.checkpoints.weights import Checkpoint, StoredTensor, read_weights
from adakv_model.config import LlamaConfig
from adakv_model.digest import sha256_of
from adakv_model.errors import UserError
from adakv_model.utf8_path import utf8_path

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = {"F64", "F32", "F16", "BF16"}


def read_hf_folder(
    folder: Path, *, name: str, source: dict[str, Any], dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Reads `folder`; `source` gets the `sha256` of its weight files (see `weights_digest`).

    Raises UserError for a missing or unreadable file, an unsupported configuration, pickled weights, or
    weights that do not fit the configuration.
    """
    try:
        return _read(folder, name, source, dtype)
    except OSError as error:
        detail = f"{error.filename or folder} ({error.strerror or error})"
        raise UserError(f"cannot read {detail}: check the path and its permissions") from error


def weights_digest(files: list[Path]) -> str:
    """SHA-256 of one weight file; for several, of the `sha256sum` listing of their names in order."""
    digests = [sha256_of(file) for file in files]
    if len(digests) == 1:
        return digests[0]
    listing = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256(listing.encode()).hexdigest()


def _read(folder: Path, name: str, source: dict[str, Any], dtype: torch.dtype) -> Checkpoint:
    if not (folder / "config.json").is_file():
        gguf = sorted(folder.glob("*.gguf"))
        hint = f"pass {gguf[0]} itself" if gguf else "pass a folder with config.json and model.safetensors"
        raise UserError(f"{folder} has no config.json: {hint}")
    config = LlamaConfig.from_hf(_with_stop_ids(read_object(folder / "config.json"), folder))
    notes: list[str] = []
    files = _weight_files(folder, notes)
    stored: dict[str, StoredTensor] = {}
    for file in files:
        stored |= _open_safetensors(file)
    config = _untied_if_different(config, stored, notes)
    weights = read_weights(config, stored, folder.name, dtype)
    tokenizer_config = read_config(folder)
    tokenizer, special = read_tokenizer(folder, tokenizer_config)
    return Checkpoint(
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        chat_template=_chat_template(folder, tokenizer_config),
        name=name,
        source={**source, "sha256": weights_digest(files)},
        special_tokens=special,
        notes=notes,
    )


def _with_stop_ids(hf: dict[str, Any], folder: Path) -> dict[str, Any]:
    """config.json with the stop ids of generation_config.json, which are those that transformers' generate uses."""
    stops = read_object(folder / "generation_config.json").get("eos_token_id")
    return hf if stops is None else {**hf, "eos_token_id": stops}


def _untied_if_different(config: LlamaConfig, stored: dict[str, StoredTensor], notes: list[str]) -> LlamaConfig:
    """Keeps an output layer that the file holds although the configuration ties it, as transformers does."""
    embedding, head = stored.get("embed_tokens.weight"), stored.get("lm_head.weight")
    if not config.tie_word_embeddings or embedding is None or head is None or embedding.shape != head.shape:
        return config
    if torch.equal(embedding.read(), head.read()):
        return config
    notes.append("tie_word_embeddings is true, but the file holds another lm_head.weight: both are used, untied")
    return replace(config, tie_word_embeddings=False)


def _weight_files(folder: Path, notes: list[str]) -> list[Path]:
    # A single file comes before an index beside it, as in transformers.
    if (folder / _SINGLE).is_file():
        if (folder / _INDEX).is_file():
            notes.append(f"read {_SINGLE}; {_INDEX} and its shards are left unread")
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        return _shards(folder)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise UserError(
            f"{folder} holds pickled PyTorch weights, which may run code when read: "
            f"convert them to {_SINGLE} with transformers' save_pretrained"
        )
    raise UserError(f"{folder} has no {_SINGLE} or {_INDEX}: download the checkpoint again")


def _shards(folder: Path) -> list[Path]:
    weight_map = read_object(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / _INDEX} has no weight_map: download it again")
    names = sorted(set(map(str, weight_map.values())))
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        count = f"{len(missing)} of {len(names)} shards"
        raise UserError(f"{folder} lacks {missing[0]} ({count}): download it again")
    return [folder / name for name in names]


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        with utf8_path(path) as named:
            file = safe_open(named, framework="pt")
        stored = {}
        for key in file.keys():  # noqa: SIM118 - safe_open has keys() but is not iterable
            view = file.get_slice(key)
            if view.get_dtype() in _FLOATS:
                stored[key.removeprefix("model.")] = _stored(file, key, tuple(view.get_shape()))
            elif key.endswith(".weight"):
                raise UserError(
                    f"unsupported dtype {view.get_dtype()} of {key} in {path.name}: pass the float checkpoint"
                )
        return stored
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or not a safetensors file: download it again") from error


def _stored(file: Any, key: str, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor(shape, lambda: file.get_tensor(key))


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """transformers 5 writes chat_template.jinja; 4 wrote a string or named templates into the config."""
    jinja = folder / "chat_template.jinja"
    if os.path.lexists(jinja):
        try:
            return jinja.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{jinja} is not UTF-8 text: download it again") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
