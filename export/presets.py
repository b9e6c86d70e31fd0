"""Named options, options from a TOML file, and how both and the flags come together."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from adakv_model.errors import UserError
from export.options import INT8_TARGET, ExportOptions, flag

DEFAULT_PRESET = "default"
PRESET_KEY = "preset"  # a TOML file may start from one


@dataclass(frozen=True)
class Preset:
    """Options under a name. values: fields of ExportOptions."""

    purpose: str
    values: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {"purpose": self.purpose, "options": {flag(name)[2:]: value for name, value in self.values.items()}}


# What each budget loses is measured in docs/evaluation.md.
PRESETS = {
    DEFAULT_PRESET: Preset("2,048 tokens at 3.5 bits a value"),
    "phone-4k": Preset("a chat of 4,096 tokens on a phone", {"context": 4096, "kv_bits": 3.25}),
    "phone-8k": Preset("the longest context of SmolLM2", {"context": 8192, "kv_bits": 3.25}),
    "smallest": Preset("the smallest budget that was evaluated", {"kv_bits": 2.75}),
    "lossless": Preset(
        "float weights and an fp16 cache, to compare with", {"kv": "fp16", "quantize": "none", "embedding": "none"}
    ),
    "evaluate": Preset("logits of every token, for parity and evaluation", {"logits": "all"}),
    "iphone": Preset("Core ML package, 4-bit weights", {"target": "ios", "weights": "int4"}),
    "iphone-ios26": Preset(
        "the same with an int8 cache that the app holds",
        {"target": "ios", "weights": "int4", "deployment_target": INT8_TARGET, "cache_io": "int8"},
    ),
}


def gather(preset: str | None, config: Path | None, flags: Mapping[str, Any]) -> ExportOptions:
    """The defaults, then the preset's values, the file's, and the flags given. Raises UserError for unknown names."""
    from_file = read_toml(config) if config is not None else {}
    named = from_file.pop(PRESET_KEY, None)
    name = preset or named or DEFAULT_PRESET
    values = {**find_preset(name).values, **from_file, **flags}
    options = ExportOptions(**values)
    options.check_used([*from_file, *flags])
    if options.out is None and name != DEFAULT_PRESET:  # another preset's artifact is no replacement for this one
        return replace(options, out=options.folder.with_name(f"{options.folder.name}-{name}"))
    return options


def find_preset(name: str) -> Preset:
    """Raises UserError with the nearest name."""
    if name not in PRESETS:
        raise UserError(f"unknown --preset {name!r}: {nearest(name, PRESETS)}")
    return PRESETS[name]


def read_toml(path: Path) -> dict[str, Any]:
    """Fields of ExportOptions, and perhaps PRESET_KEY, from a file whose keys are the flags without dashes in front.

    Raises UserError for a file that cannot be read, an unknown key or a value of another type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read --config {path} ({error.strerror}): check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not TOML ({error}): correct it") from error
    kinds = {flag(each.name)[2:]: get_type_hints(ExportOptions)[each.name] for each in fields(ExportOptions)}
    kinds[PRESET_KEY] = str
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in kinds:
            raise UserError(f"unknown key {key!r} in {path}: {nearest(name, kinds)}")
        values[name.replace("-", "_")] = _typed(value, kinds[name], f"{key} in {path}")
    return values


def _typed(value: Any, kind: Any, where: str) -> Any:
    wanted = next(k for k in (get_args(kind) if isinstance(kind, UnionType) else (kind,)) if k is not type(None))
    if wanted is Path and isinstance(value, str) and value:
        return Path(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted or not str(value):
        words = {Path: "a path", int: "a whole number", float: "a number", bool: "true or false"}.get(
            wanted, "a text in quotes"
        )
        raise UserError(f"{where} must be {words}, not {value!r}: correct it")
    return value


def nearest(name: str, known: Collection[str]) -> str:
    """The remedy of an unknown name."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"one of {', '.join(known)}"
