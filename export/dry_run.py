"""`--dry-run`: the plan and the sizes of an export, from configurations and tables; weights are not read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adakv_model.budget import plan_cache
from adakv_model.checkpoints.place import check_place, is_hub_id
from adakv_model.config import LlamaConfig, get_model
from adakv_model.digest import sha256_of
from adakv_model.errors import UserError, first_line
from adakv_model.tables import choose_tables
from adakv_model.terminal import make_console, print_note, print_wrapped
from export import plan_drawing
from export.options import ExportOptions, default_embedding
from export.sizes import package_bits, program_bits

HASHED = 2 << 30  # bytes; larger weight files are not hashed to find their tables


@dataclass(frozen=True)
class Shape:
    """A model without its weights. source: as `Checkpoint.source`, as far as it is known."""

    name: str
    config: LlamaConfig
    source: dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """What an export would make."""

    options: ExportOptions
    name: str
    cache: dict[str, Any]  # the manifest's kv_cache
    weights: dict[str, float]
    recipe: str
    calibrated: bool
    states: dict[str, Any] | None = None  # of Core ML: bytes in its own storage
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "target": self.options.target,
            "out": str(self.options.folder),
            "weights": {"recipe": self.recipe, **self.weights},
            "calibrated": self.calibrated,
            "kv_cache": self.cache,
            "bits": plan_drawing.account(plan_drawing.as_core_ml(self.cache, self.states)),
            "core_ml_states": self.states,
            "notes": self.notes,
        }


def plan(options: ExportOptions) -> Planned:
    """Raises UserError for whatever the export itself would refuse before it reads weights."""
    shape = shape_of(options)
    tables = choose_tables(shape.name, shape.source, shape.config, options.tables)
    planned = plan_cache(shape.config, tables, options.cache)
    states = None
    if options.core_ml:
        from export.coreml.layout import StateLayout
        from export.coreml.plan import coarse_plan
        from export.coreml.storage import STORAGES

        planned = coarse_plan(planned, tables)
        states = StateLayout(planned.plan, STORAGES[options.cache_io]).summary()
        weights, recipe = package_bits(shape.config, options.weights), options.weights
    else:
        embedding = options.embedding or default_embedding(options.quantize)
        weights, recipe = program_bits(shape.config, options.quantize, embedding), options.quantize
    cache = planned.plan.to_manifest()
    calibrated = tables.info.get("calibrated") is not False
    notes = [] if options.core_ml else plan_drawing.notes(cache, options.kv_bits)
    if not calibrated and not options.random_weights:
        notes.append("no calibration tables known for this checkpoint: adakv calibrate makes them")
    return Planned(options, shape.name, cache, weights, recipe, calibrated, states, notes)


def show(planned: Planned) -> None:
    """For people, on standard output."""
    console = make_console(stderr=False)
    size, bits = planned.weights["weight_bytes"] / 1e6, planned.weights["bits_per_weight"]
    print_wrapped(console, f"{planned.name} -> {planned.options.folder} (not written)")
    print_wrapped(
        console, f"weights {planned.recipe}: {size:.1f} MB, {bits:.2f} bits a weight; the file is a few MB more"
    )
    cache = plan_drawing.as_core_ml(planned.cache, planned.states)
    plan_drawing.show(cache, console)
    for note in planned.notes:
        print_note(make_console(), note)


def shape_of(options: ExportOptions) -> Shape:
    """The model's configuration: from the registry, a config.json, a GGUF header, or config.json of the model hub."""
    path = options.checkpoint
    hub_id = options.model if path is None else str(path)
    if (path is None and "/" in hub_id) or (path is not None and is_hub_id(path)):
        return Shape(hub_id.split("/")[-1], _hub_config(hub_id), {"kind": "hub"})
    if path is None:
        spec = get_model(options.model)
        if options.random_weights:
            return Shape(spec.name, spec.config, {"kind": "random"})
        kind = {"kind": "package", "sha256": spec.bundled.member_sha256} if spec.bundled else {"kind": "hub"}
        return Shape(spec.name, spec.config, kind)
    check_place(path)
    if path.is_dir():
        weights = path / "model.safetensors"
        return Shape(path.resolve().name, _folder_config(path / "config.json"), {"kind": "folder"} | _digest(weights))
    from adakv_model.checkpoints.gguf import Metadata, gguf_config, open_gguf

    reader = open_gguf(path)
    has_output = "output.weight" in {tensor.name for tensor in reader.tensors}
    config = gguf_config(Metadata(reader), has_output=has_output)
    return Shape(path.stem, config, {"kind": "gguf"} | _digest(path))


def _digest(path: Path) -> dict[str, str]:
    """What shipped tables are found by; nothing of a large file, whose tables the export itself will find."""
    return {"sha256": sha256_of(path)} if path.is_file() and path.stat().st_size <= HASHED else {}


def _folder_config(path: Path) -> LlamaConfig:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): pass a folder with config.json") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: download it again")
    return LlamaConfig.from_hf(content)


def _hub_config(hub_id: str) -> LlamaConfig:
    import huggingface_hub

    try:
        return _folder_config(Path(huggingface_hub.hf_hub_download(hub_id, "config.json")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the configuration of '{hub_id}' ({first_line(error)}): pass --checkpoint FOLDER"
        ) from error
