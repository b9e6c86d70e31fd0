"""The options of an export as data: one table for the command line, TOML files, presets and optimum, with its checks.

Light on purpose: help and wrong options are answered before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from adakv_model.cache_options import DEFAULT_BITS_SHOWN, DEFAULT_CONTEXT, DEFAULT_WINDOW, POLICIES, CacheOptions
from adakv_model.checkpoints.place import check_place
from adakv_model.config import DEFAULT_MODEL, MODELS, LlamaConfig, get_model
from adakv_model.errors import UserError
from adakv_model.features import DEFAULT_FEATURES, FEATURE_SETS
from adakv_model.numbers import check_number
from export.coreml.storage import FP16, STORAGES
from export.folder import check_target

TARGETS = ("android", "ios")
BACKENDS = ("coreml", "executorch", "xnnpack")  # of --target ios
DEFAULT_RECIPE = "8da4w-asym"
# da: int8 activations per token; w: weight bits. asym: 4 bits with an offset per group of 32, exact for Q4_1
# checkpoints; plain 8da4w is symmetric in groups of 32, g64 of 64; 8da8w is int8 per output row.
RECIPES = (DEFAULT_RECIPE, "8da8w", "8da4w", "8da4w-g64", "none")
# table: embedding and output matrix in one 6-bit copy (adakv_model/linear/table.py).
EMBEDDINGS = ("table", "8", "4", "none")
LOGITS = ("last", "all")  # whose logits a step returns: its last token's, or every token's
WEIGHTS = ("fp16", "int8", "int4")  # of a Core ML program
DEPLOYMENT_TARGETS = ("iOS18", "iOS26")
INT8_TARGET = "iOS26"  # the first with int8 inputs and outputs
FEATURES_USED = "all"  # of FEATURE_SETS: what the Core ML graph computes

# Which programs read an option that not all do: that of --target android, or of a --backend of --target ios.
USED_BY = {
    "device_bundle": ("android",),
    "device_runner": ("android",),
    "quantize": ("android", "xnnpack"),
    "embedding": ("android", "xnnpack"),
    "backend": BACKENDS,
    "weights": ("coreml",),
    "deployment_target": ("coreml", "executorch"),
    "cache_io": ("coreml",),
}
INSTEAD = {("quantize", "coreml"): "weights", ("weights", "android"): "quantize", ("weights", "xnnpack"): "quantize"}

WHAT, CACHE, ANDROID, IOS = "What to export", "Cache", "Program", "Core ML"  # panels of the help


def default_embedding(recipe: str) -> str:
    """The value of --embedding that goes with a recipe: the others keep a copy of the table in two places."""
    return "table" if recipe == DEFAULT_RECIPE else "8"


def _option(default: Any, panel: str, text: str, choices: Collection[str] = (), shown: str | None = None) -> Any:
    """A field with its help. choices: all allowed values, if they can be listed; shown: the default in words."""
    if shown is None and default not in (None, False):
        shown = str(default)
    return field(default=default, metadata={"panel": panel, "help": text, "choices": tuple(choices), "shown": shown})


@dataclass(frozen=True)
class ExportOptions:
    """Every option of an export. A field `kv_bits` is the flag `--kv-bits` and the key `kv-bits` of a TOML file."""

    target: str = _option(
        "android", WHAT, "What to export for: android (ExecuTorch .pte on XNNPACK) or ios (Core ML package).", TARGETS
    )
    model: str = _option(DEFAULT_MODEL, WHAT, "Registered model (--list-models) or a model hub id such as owner/name.")
    checkpoint: Path | None = _option(
        None, WHAT, "Weights from a Hugging Face folder (safetensors) or a .gguf file instead of --model."
    )
    random_weights: bool = _option(False, WHAT, "Random weights of --model's shape: latency and memory only.")
    tables: Path | None = _option(
        None, WHAT, "Calibration tables of this checkpoint (adakv calibrate).", shown="the shipped ones"
    )
    out: Path | None = _option(
        None, WHAT, "Artifact folder, replaced as a whole.", shown="artifacts/MODEL-TARGET, with -PRESET"
    )
    device_bundle: Path | None = _option(
        None, WHAT, "Also write this folder for `adb push`: runner, libraries, program, hashes (--target android)."
    )
    device_runner: Path | None = _option(
        None,
        WHAT,
        "Runner of --device-bundle, a folder that the NDK build installed.",
        shown="one with its own loader",
    )
    context: int = _option(DEFAULT_CONTEXT, CACHE, "Tokens the cache can hold, prompt and answer.")
    kv: str = _option("adaptive", CACHE, f"Cache policy: {', '.join(POLICIES)}.", POLICIES)
    kv_bits: float | None = _option(
        None,
        CACHE,
        "Budget of --kv adaptive: allocated bits per value, everything included.",
        shown=DEFAULT_BITS_SHOWN,
    )
    window: int = _option(DEFAULT_WINDOW, CACHE, "Newest tokens kept at --window-bits.")
    window_bits: int | None = _option(None, CACHE, "8 or 16.", shown="8, or 16 with --kv fp16")
    prefill_chunk: int | None = _option(
        None,
        CACHE,
        "Largest number of tokens per step. Android: tokens also leave the window in blocks of it; iOS: at most"
        " --window.",
        shown="32, less in a short context; iOS: the window, half of it if adaptive",
    )
    features: str | None = _option(
        None,
        CACHE,
        f"What --kv adaptive decides by: {', '.join(FEATURE_SETS)}. fast: attention, frequency and repetition; paper,"
        " all: predictions too, which need the output layer for every token of the prompt.",
        FEATURE_SETS,
        shown=f"{DEFAULT_FEATURES}; Core ML: {FEATURES_USED}",
    )
    quantize: str = _option(
        DEFAULT_RECIPE,
        ANDROID,
        f"Weights: {', '.join(RECIPES)} (da: int8 activations, w: weight bits; asym: with an offset for every 32"
        " weights, exact for Q4_1 checkpoints). What each loses: docs/weights.md.",
        RECIPES,
    )
    embedding: str | None = _option(
        None,
        ANDROID,
        f"Token embedding: {', '.join(EMBEDDINGS)}. table: one 6-bit copy for embedding and output layer; 8, 4: bits,"
        " and the output layer follows --quantize.",
        EMBEDDINGS,
        shown=f"table with {DEFAULT_RECIPE}, else 8",
    )
    logits: str | None = _option(
        None,
        ANDROID,
        "Whose logits a step returns: last (its last token's, all that generation needs) or all (to evaluate and"
        " compare programs).",
        LOGITS,
        shown="last; all with --features paper or all, and in Core ML",
    )
    backend: str = _option(
        "coreml",
        IOS,
        "With --target ios: coreml (.mlpackage), executorch (.pte with the Core ML delegate) or xnnpack (the .pte of"
        " --target android).",
        BACKENDS,
    )
    weights: str = _option(
        "int8", IOS, f"Weights of a Core ML program: {', '.join(WEIGHTS)} (int4: groups of 32).", WEIGHTS
    )
    deployment_target: str = _option(
        "iOS18", IOS, f"Oldest system of a Core ML program: {', '.join(DEPLOYMENT_TARGETS)}.", DEPLOYMENT_TARGETS
    )
    cache_io: str = _option(
        FP16.name,
        IOS,
        "Where a Core ML package keeps its cache: states (fp16, inside), or int8 (inputs; the app keeps them and adds"
        f" each step's rows; smaller, needs --deployment-target {INT8_TARGET}).",
        STORAGES,
    )

    @property
    def folder(self) -> Path:
        """The artifact folder."""
        if self.out is not None:
            return self.out
        return default_out(self.model, self.checkpoint, self.target)

    @property
    def core_ml(self) -> bool:
        """Whether Core ML runs the program."""
        return self.target == "ios" and self.backend != "xnnpack"

    @property
    def cache(self) -> CacheOptions:
        """What is asked of the cache, as the target's exporter will have it."""
        options = CacheOptions(self.context, self.window, self.kv, self.kv_bits, self.window_bits, self.prefill_chunk)
        if self.core_ml:
            return replace(options, departure=1, features=FEATURES_USED)
        return replace(options, features=self.features or options.features)

    @property
    def config(self) -> LlamaConfig | None:
        """The shape of the model where its name alone says it: a registered model."""
        return MODELS[self.model.lower()].config if self._registered else None

    @property
    def _registered(self) -> bool:
        return self.checkpoint is None and self.model.lower() in MODELS

    @property
    def program(self) -> str:
        """The kind of program, as `USED_BY` names it."""
        return self.backend if self.target == "ios" else "android"

    def check_used(self, given: Collection[str]) -> None:
        """Raise UserError where one of these fields is nothing that this target's program reads."""
        if self.target not in TARGETS or self.backend not in BACKENDS:
            return  # which `check` says
        for name in given:
            users = USED_BY.get(name, (self.program,))
            if self.program in users:
                continue
            where = "--target android" if self.target == "android" else f"--target ios --backend {self.backend}"
            other = INSTEAD.get((name, self.program))
            remedy = f"use {flag(other)}" if other else "drop it"
            raise UserError(f"{flag(name)} is for {_programs(users)}, and {where} does not read it: {remedy}")

    def check(self) -> None:
        """Raise UserError for options that are unknown or exclude each other; needs no weights and loads nothing."""
        for each in fields(self):
            value, allowed = getattr(self, each.name), each.metadata["choices"]
            if allowed and value is not None and value not in allowed:
                raise UserError(f"unknown {flag(each.name)} {value!r}: one of {', '.join(allowed)}")
            if isinstance(value, int | float):
                check_number(flag(each.name), value)
        if self.features is not None and self.kv != "adaptive":
            raise UserError(f"--features is what --kv adaptive decides by; --kv {self.kv} decides nothing: drop it")
        if self.core_ml and (self.logits == "last" or self.features not in (None, FEATURES_USED)):
            raise UserError(
                f"a Core ML program has all logits and --features {FEATURES_USED}: drop --logits and --features"
            )
        self.check_used([each.name for each in fields(self) if getattr(self, each.name) != each.default])
        self._check_cache_io()
        self._check_source()
        check_target(self.folder)
        self.cache.check(self.config)

    def _check_cache_io(self) -> None:
        if self.target != "ios" or self.cache_io == FP16.name:
            return
        if self.deployment_target != INT8_TARGET:
            raise UserError(
                f"--cache-io {self.cache_io} needs --deployment-target {INT8_TARGET}: older systems take none"
            )

    def _check_source(self) -> None:
        if self.random_weights and self.checkpoint is not None:
            raise UserError("--random-weights needs only a model's name: drop it or drop --checkpoint")
        if self.checkpoint is not None:
            check_place(self.checkpoint)
        elif "/" not in self.model or self.random_weights:
            get_model(self.model)
        if self.tables is not None and not self.tables.is_file():
            raise UserError(f"no calibration tables at {self.tables}: make them with adakv calibrate")


def _programs(users: Collection[str]) -> str:
    """What a user writes for these programs."""
    found = ["--target android"] if "android" in users else []
    backends = [f"--backend {user}" for user in users if user in BACKENDS]
    if backends:
        found.append("--target ios" + (f" ({' or '.join(backends)})" if len(backends) < len(BACKENDS) else ""))
    return " and ".join(found)


def default_out(model: str, checkpoint: Path | None, target: str) -> Path:
    """artifacts/NAME-TARGET: the name of the model, hub repository, folder or file, whole, version dots included."""
    name = model
    if checkpoint is not None:
        name = checkpoint.resolve().name if checkpoint.exists() else str(checkpoint)
        if checkpoint.suffix.lower() == ".gguf":
            name = name[: -len(checkpoint.suffix)]
    return Path("artifacts") / f"{name.strip('/').replace('/', '--') or 'checkpoint'}-{target}"


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")
