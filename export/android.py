"""The Android target: checkpoint -> quantized weights -> `.pte` with operator library, tokenizer, manifest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adakv_model.budget import PlannedCache, plan_cache
from adakv_model.cache_options import CacheOptions
from adakv_model.checkpoints.load import Checkpoint, load_checkpoint
from adakv_model.features import FEATURES
from adakv_model.kv_cache import MixedPrecisionCache
from adakv_model.model import Llama, build_model
from adakv_model.plan import CachePlan
from adakv_model.runtime import native
from adakv_model.runtime.manifest import CALIBRATION, PROGRAM
from adakv_model.tables import CalibrationTables, find_tables, neutral_tables
from export.artifact import write_manifest, write_tokenizer
from export.folder import atomic_folder
from export.number_range import check_android
from export.options import DEFAULT_RECIPE, LOGITS, default_embedding
from export.quiet import quiet
from export.weights import quantize_weights, stored_bits

Stage = Callable[[str], AbstractContextManager[None]]
STAGES = 6  # how many stages export_android reports


@dataclass(frozen=True)
class AndroidOptions:
    """One export. `cache` is checked against the model; the rest by the command line."""

    model: str
    out: Path
    checkpoint: Path | None = None
    random_weights: bool = False
    tables: Path | None = None
    quantize: str = DEFAULT_RECIPE
    embedding: str | None = None  # default_embedding(quantize)
    cache: CacheOptions = field(default_factory=CacheOptions)
    target: str = "android"
    logits: str | None = None  # `logits_of` says what becomes of it


def choose_tables(checkpoint: Checkpoint, explicit: Path | None) -> CalibrationTables:
    """The user's tables, the shipped ones of this checkpoint, or neutral ones."""
    if explicit is not None:
        return CalibrationTables.load(explicit)
    return find_tables(checkpoint.name, checkpoint.source) or neutral_tables(checkpoint.config)


def logits_of(wanted: str | None, plan: CachePlan) -> str:
    """Whose logits a step of the program returns: `last`, the default, or `all`, which a controller that needs the
    model's predictions forces."""
    return "all" if plan.observes else wanted or LOGITS[0]


def build_exportable(
    checkpoint: Checkpoint, tables: CalibrationTables, planned: PlannedCache, logits: str = "all"
) -> Llama:
    """The float model over a mixed-precision cache, as Android runs it (fp32 activations)."""
    cache = MixedPrecisionCache(checkpoint.config, planned.plan, tables, planned.controller(tables))
    last = logits == "last"
    return build_model(checkpoint.config, checkpoint.weights, cache, prescale_norm=False, last_only=last)


def controller_section(planned: PlannedCache) -> dict[str, object]:
    """`controller` of the manifest: the columns of its input, and the set of those that it uses."""
    section: dict[str, object] = {"thresholds": list(planned.thresholds), "features": list(FEATURES)}
    return section | ({"feature_set": planned.features} if planned.plan.adaptive else {})


def export_android(options: AndroidOptions, command: list[str], stage: Stage) -> dict[str, Any]:
    """Write the artifact folder atomically and return its manifest. Raises UserError for bad input."""
    library = native.operator_library()  # fail before the long work, not after it
    with quiet(), atomic_folder(options.out) as folder:
        with stage("load checkpoint"):
            checkpoint = load_checkpoint(options.model, path=options.checkpoint, random_weights=options.random_weights)
            embedding = options.embedding or default_embedding(options.quantize)
            check_android(checkpoint, options.quantize, embedding)
            tables = choose_tables(checkpoint, options.tables)
            planned = plan_cache(checkpoint.config, tables, options.cache)
            plan, logits = planned.plan, logits_of(options.logits, planned.plan)
            model = build_exportable(checkpoint, tables, planned, logits)
            checkpoint.weights.clear()  # the model holds what it needs; large models do not fit twice
        with stage("quantize weights"):
            quantize_weights(model, options.quantize, embedding)
            bits = stored_bits(model, checkpoint.config)
        from export import lowering

        with stage("trace"):
            program = lowering.trace(model, plan)
        with stage("lower to XNNPACK"):
            edge = lowering.lower(program, lowering.constant_methods(checkpoint.config, plan))
            calls = lowering.operator_calls(edge)  # before memory planning rewrites the graph
        with stage("plan memory"):
            executorch = lowering.finish(edge)
        with stage("write artifact"):
            lowering.save(executorch, folder / PROGRAM)
            shutil.copy2(library, folder / native.LIBRARY_NAME)
            write_tokenizer(checkpoint, folder)
            tables.only(plan.context).save(folder / CALIBRATION)
            sections: dict[str, object] = {
                "target": options.target,
                "quantize": options.quantize,
                "embedding": embedding,
                "weights": bits,
                "calibration": tables.info,
                "logits": logits,
                "controller": controller_section(planned),
                "delegates": calls.pop(lowering.DELEGATE, 0),
                "undelegated_operators": calls,
            }
            manifest = write_manifest(folder, checkpoint=checkpoint, plan=plan, sections=sections, command=command)
    return manifest
