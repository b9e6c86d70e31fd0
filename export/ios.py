"""The iOS target: checkpoint -> `.mlpackage` with the cache in states or inputs, or a `.pte` for ExecuTorch on iOS."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adakv_model.budget import PlannedCache, plan_cache
from adakv_model.cache_options import CacheOptions
from adakv_model.checkpoints.load import Checkpoint, load_checkpoint
from adakv_model.config import MODELS
from adakv_model.model import build_model
from adakv_model.plan import CachePlan
from adakv_model.runtime.manifest import CALIBRATION
from adakv_model.tables import CalibrationTables
from export.android import AndroidOptions, Stage, choose_tables, controller_section, export_android
from export.artifact import write_manifest, write_tokenizer
from export.coreml.cache import CoreMLCache, CoreMLProgram, check_plan
from export.coreml.inputs import CACHE, NEW, InputLayout
from export.coreml.layout import RAW_BITS, StateLayout
from export.coreml.plan import coarse_plan
from export.coreml.storage import FP16, STORAGES, Storage
from export.folder import atomic_folder
from export.number_range import check_core_ml
from export.options import DEFAULT_RECIPE, FEATURES_USED
from export.quiet import quiet

STAGES = {"coreml": 7, "executorch": 4, "xnnpack": 6}  # how many stages each reports


@dataclass(frozen=True)
class IosOptions:
    """One export. `cache` is checked against the model; the rest by the command line.

    cache_io: states, or int8 for a cache that the host keeps and passes (coreml/inputs.py).
    backend: coreml writes a package; executorch a .pte with the Core ML delegate, its weights in fp16; xnnpack the .pte
    of --target android, which is the same file on iOS. quantize, embedding, logits and cache.features are the latter's.
    """

    model: str
    out: Path
    checkpoint: Path | None = None
    random_weights: bool = False
    tables: Path | None = None
    deployment_target: str = "iOS18"
    weights: str = "int8"
    backend: str = "coreml"
    quantize: str = DEFAULT_RECIPE
    embedding: str | None = None
    cache: CacheOptions = field(default_factory=CacheOptions)
    cache_io: str = FP16.name
    logits: str | None = None


def build_program(
    checkpoint: Checkpoint, tables: CalibrationTables, planned: PlannedCache, storage: Storage = FP16
) -> CoreMLProgram:
    """The float model over the Core ML cache, with the norm that cannot overflow in fp16."""
    cache = CoreMLCache(checkpoint.config, planned.plan, tables, planned.controller(tables), storage)
    return CoreMLProgram(build_model(checkpoint.config, checkpoint.weights, cache, prescale_norm=True))


def package_name(checkpoint: Checkpoint) -> str:
    """File name of the package, e.g. SmolLM2-135M-Instruct.mlpackage."""
    spec = MODELS.get(checkpoint.name)
    return f"{spec.display_name if spec else checkpoint.name.rpartition('/')[2]}.mlpackage"


def prepare(options: IosOptions) -> tuple[Checkpoint, CalibrationTables, PlannedCache, CoreMLProgram]:
    """All that comes before the conversion. Raises UserError for bad input."""
    storage = STORAGES[options.cache_io]
    checkpoint = load_checkpoint(options.model, path=options.checkpoint, random_weights=options.random_weights)
    tables = choose_tables(checkpoint, options.tables)
    cache = replace(options.cache, departure=1, features=FEATURES_USED)
    planned = coarse_plan(plan_cache(checkpoint.config, tables, cache), tables)
    check_plan(planned.plan, storage)
    program = build_program(checkpoint, tables, planned, storage)
    check_core_ml(checkpoint, program)
    return checkpoint, tables, planned, program


def export_ios(options: IosOptions, command: list[str], stage: Stage) -> dict[str, Any]:
    """Write the artifact folder atomically and return its manifest. Raises UserError for bad input."""
    if options.backend == "xnnpack":
        return export_android(_android_options(options), command, stage)
    with quiet(), atomic_folder(options.out) as folder:
        with stage("load checkpoint"):
            checkpoint, tables, planned, program = prepare(options)
            checkpoint.weights.clear()
        if options.backend == "executorch":
            sections = _delegate(options, checkpoint, planned, program, folder, stage)
        else:
            sections = _package(options, checkpoint, planned, program, folder, stage)
        with stage("write artifact"):
            write_tokenizer(checkpoint, folder)
            tables.only(options.cache.context).save(folder / CALIBRATION)
            common: dict[str, object] = {
                "target": "ios",
                "backend": options.backend,
                "deployment_target": options.deployment_target,
                "weights": options.weights if options.backend == "coreml" else "fp16",
                "calibration": tables.info,
                "controller": controller_section(planned),
                "core_ml_states": program.cache.layout.to_manifest(),
                "cache_forms": {s.name: form for s in STORAGES.values() if (form := _form(planned.plan, s))},
            }
            if program.inputs is not None:
                common["core_ml_inputs"] = program.inputs.to_manifest()
            return write_manifest(
                folder, checkpoint=checkpoint, plan=planned.plan, sections=common | sections, command=command
            )


def _form(plan: CachePlan, storage: Storage) -> dict[str, Any] | None:
    """Bytes of this plan's cache in a storage; None if it cannot hold it."""
    if plan.window_bits == RAW_BITS and storage is not FP16:
        return None
    layout = StateLayout(plan, storage)
    summary = layout.summary()
    if storage is not FP16:
        inputs = InputLayout(layout)
        summary["output_bytes"] = {str(n): inputs.output_bytes(n) for n in sorted({1, plan.chunk})}
    return summary


def _package(
    options: IosOptions,
    checkpoint: Checkpoint,
    planned: PlannedCache,
    program: CoreMLProgram,
    folder: Path,
    stage: Stage,
) -> dict[str, object]:
    """Convert both functions and merge them into one package; the manifest's sections about it."""
    from export.coreml import convert as core_ml
    from export.coreml.report import package_report

    sizes = {core_ml.DECODE: 1, core_ml.PREFILL: planned.plan.chunk}
    name = package_name(checkpoint)
    with core_ml.scratch(folder) as scratch:
        parts: dict[str, Path] = {}
        for function, tokens in sizes.items():
            with stage(f"trace {function}"):
                traced = core_ml.trace(program, tokens)
            with stage(f"convert {function}"):
                parts[function] = scratch / f"{function}.mlpackage"
                core_ml.convert(
                    traced,
                    core_ml.output_types(program.inputs),
                    options.deployment_target,
                    options.weights,
                    checkpoint.config.vocab_size,
                    parts[function],
                )
                del traced
        with stage("merge functions"):
            core_ml.save_functions(parts, folder / name)
            report = package_report(folder / name)
    methods = {function: _signature(program, checkpoint.config.vocab_size, n) for function, n in sizes.items()}
    return {"program": name, "methods": methods, "report": report}


def _signature(program: CoreMLProgram, vocabulary: int, tokens: int) -> dict[str, dict[str, Any]]:
    """Inputs and outputs of a function: name to type and shape."""
    inputs: dict[str, list[Any]] = {"tokens": ["int32", [1, tokens]], "input_pos": ["int32", [1]]}
    new: dict[str, list[Any]] = {}
    if program.inputs is not None:
        inputs |= {f"{CACHE}_{n}": [a.dtype, list(a.shape)] for n, a in program.inputs.arrays.items()}
        new = {f"{NEW}_{n}": [a.dtype, list(a.shape)] for n, a in program.inputs.outputs(tokens).items()}
    columns = 2 + program.cache.plan.n_tiers
    outputs = {"logits": ["float16", [1, tokens, vocabulary]], "plan": ["int32", [tokens, columns]]}
    return {"inputs": inputs, "outputs": {**outputs, **new, "status": ["int32", [1]]}}


def _delegate(
    options: IosOptions,
    checkpoint: Checkpoint,
    planned: PlannedCache,
    program: CoreMLProgram,
    folder: Path,
    stage: Stage,
) -> dict[str, object]:
    from adakv_model.runtime.manifest import PROGRAM
    from export.coreml.delegate import lower_to_delegate

    with stage("lower to Core ML delegate"):
        calls = lower_to_delegate(program, checkpoint.config, planned.plan, options.deployment_target, folder / PROGRAM)
    vocabulary = checkpoint.config.vocab_size
    forward = {
        "inputs": {"tokens": ["int64", [1, 1]], "input_pos": ["int64", [1]]},
        "outputs": {"logits": ["float32", [1, 1, vocabulary]]},
    }
    return {"program": PROGRAM, "methods": {"forward": forward}, "operators": calls}


def _android_options(options: IosOptions) -> AndroidOptions:
    return AndroidOptions(
        options.model,
        options.out,
        options.checkpoint,
        options.random_weights,
        options.tables,
        options.quantize,
        options.embedding,
        options.cache,
        target="ios",
        logits=options.logits,
    )
