"""Command line of `python export.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

from adakv_model.budget import DEFAULT_BITS, DEFAULT_CONTEXT, DEFAULT_WINDOW, POLICIES, CacheOptions
from adakv_model.config import DEFAULT_MODEL, MODELS
from adakv_model.controller import DEFAULT_FEATURES, FEATURE_SETS
from adakv_model.errors import UserError
from adakv_model.terminal import make_console, print_error, print_note, text_column
from export import android, ios
from export.artifact import default_out
from export.coreml.convert import TARGETS as DEPLOYMENT_TARGETS
from export.coreml.report import core_ml_cache, print_report
from export.coreml.storage import FP16, STORAGES
from export.coreml.weights import WEIGHTS
from export.weights import DEFAULT_RECIPE, EMBEDDINGS, RECIPES

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = make_console()


@contextmanager
def stages(total: int) -> Iterator:
    """A progress display; yields stage(name), a context manager that times one step."""
    columns = (
        SpinnerColumn(),
        text_column("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            progress.update(task, description=f"{name} ...")
            started = progress.get_time()
            yield
            progress.advance(task)
            console.print(f"  {name:<22}{progress.get_time() - started:6.1f} s", highlight=False)

        yield stage


def weights_of(manifest: dict) -> str:
    """The weight recipe of a program, in words."""
    if "quantize" not in manifest:  # a Core ML delegate
        return manifest["weights"]
    return f"{manifest['quantize']} ({manifest['weights']['bits_per_weight']:.2f} bits a weight)"


def report(manifest: dict, out: Path) -> None:
    """A summary people read; the machine-readable one is manifest.json."""
    cache, files = manifest["kv_cache"], manifest["files"]
    if "report" in manifest:
        print_report(manifest, console)
        return
    table = Table(title=f"{manifest['model']['name']} -> {out}", title_justify="left", show_header=False)
    table.add_row("program", f"{files['model.pte']['bytes'] / 1e6:.1f} MB, weights {weights_of(manifest)}")
    # Core ML's states take more than the rows of the plan.
    for row in core_ml_cache(manifest) if "core_ml_states" in manifest else android_cache(cache):
        table.add_row(*row)
    console.print(table)


def android_cache(cache: dict) -> list[tuple[str, str]]:
    """What the cache of the operator library takes, and how many tokens have how many bits; label and text."""
    size = (
        f"{cache['bytes_allocated'] / 2**20:.2f} MiB for {cache['context']} tokens, {cache['bits_per_value']:.2f} bits"
        f" a value, {100 * cache['bytes_allocated'] / cache['fp16_bytes']:.1f} % of fp16"
    )
    tiers = ", ".join(f"{t['capacity']} at {t['bits']}" for t in cache["tiers"] if t["capacity"])
    window, longest = cache["window"], cache["window"] + cache["departure"] - 1
    window = f"{window} to {longest}" if longest > window else str(window)
    return [
        ("KV cache", size),
        ("tokens by bits", f"1 at 16, {window} at {cache['window_bits']} (window), {tiers}"),
    ]


def notes(manifest: dict, random_weights: bool, logits: str | None) -> list[str]:
    """What a user should know about this export. logits: what was asked for."""
    found = list(manifest["model"]["notes"])
    if not random_weights and manifest["calibration"].get("calibrated") is False:
        found.append("no calibration tables for this checkpoint: run scripts/calibrate.py")
    if logits == "last" and manifest.get("logits") == "all":
        used = manifest["controller"]["feature_set"]
        found.append(f"--features {used} needs the prediction of every token: exported with --logits all")
    return found


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def main(
    target: Annotated[
        str, typer.Option(help="What to export for: android (ExecuTorch .pte on XNNPACK) or ios (Core ML package).")
    ] = "android",
    model: Annotated[
        str, typer.Option(help=f"Registered model ({', '.join(MODELS)}) or a hub id such as owner/name.")
    ] = DEFAULT_MODEL,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights from a Hugging Face folder (safetensors) or a .gguf file instead of --model."),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Random weights of --model's shape: latency and memory only.")
    ] = False,
    context: Annotated[int, typer.Option(help="Tokens the cache can hold, prompt and answer.")] = DEFAULT_CONTEXT,
    kv: Annotated[str, typer.Option(help=f"Cache policy: {', '.join(POLICIES)}.")] = "adaptive",
    kv_bits: Annotated[
        float | None,
        typer.Option(
            help=f"Budget of --kv adaptive: allocated bits per value, everything included. [default: {DEFAULT_BITS}]",
            show_default=False,
        ),
    ] = None,
    window: Annotated[int, typer.Option(help="Newest tokens kept at --window-bits.")] = DEFAULT_WINDOW,
    window_bits: Annotated[
        int | None, typer.Option(help="8 or 16. [default: 8, or 16 with --kv fp16]", show_default=False)
    ] = None,
    prefill_chunk: Annotated[
        int | None,
        typer.Option(
            help="Largest number of tokens per step. Android: tokens also leave the window in blocks of it; iOS: at"
            " most --window. [default: 32, less in a short context; iOS: the window, half of it if adaptive]",
            show_default=False,
        ),
    ] = None,
    quantize: Annotated[
        str,
        typer.Option(
            help=f"Weights: {', '.join(RECIPES)} (da: int8 activations, w: weight bits; asym: with an offset for every"
            " 32 weights, exact for Q4_1 checkpoints). What each loses: docs/weights.md."
        ),
    ] = DEFAULT_RECIPE,
    embedding: Annotated[
        str | None,
        typer.Option(
            help=f"Token embedding: {', '.join(EMBEDDINGS)}. table: one 6-bit copy for embedding and output layer;"
            f" 8, 4: bits, and the output layer follows --quantize. [default: table with {DEFAULT_RECIPE}, else 8]",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help=f"What --kv adaptive decides by: {', '.join(FEATURE_SETS)}. fast: attention, frequency and repetition;"
            " paper, all: predictions too, which need the output layer for every token of the prompt."
            f" [default: {DEFAULT_FEATURES}; Core ML: {ios.FEATURES_USED}]",
            show_default=False,
        ),
    ] = None,
    logits: Annotated[
        str | None,
        typer.Option(
            help="Whose logits a step returns: last (its last token's, all that generation needs) or all (to evaluate"
            " and compare programs). [default: last; all with --features paper or all, and in Core ML]",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option(help=f"Weights of a Core ML program: {', '.join(WEIGHTS)} (int4: groups of 32).")
    ] = "int8",
    deployment_target: Annotated[
        str, typer.Option(help=f"Oldest system of a Core ML program: {', '.join(DEPLOYMENT_TARGETS)}.")
    ] = "iOS18",
    cache_io: Annotated[
        str,
        typer.Option(
            help="Where a Core ML package keeps its cache: states (fp16, inside), or int8 (inputs; the app keeps them"
            " and adds each step's rows; smaller, needs --deployment-target iOS26)."
        ),
    ] = FP16.name,
    backend: Annotated[
        str,
        typer.Option(
            help="With --target ios: coreml (.mlpackage), executorch (.pte with the Core ML delegate) or xnnpack (the"
            " .pte of --target android)."
        ),
    ] = "coreml",
    tables: Annotated[
        Path | None,
        typer.Option(help="Calibration tables of this checkpoint (scripts/calibrate.py). [default: the shipped ones]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Artifact folder, replaced as a whole. [default: artifacts/MODEL-TARGET]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest to standard output.")] = False,
) -> None:
    """Export SmolLM with an adaptive-precision KV cache for a phone.

    Writes a folder with the program, the tokenizer and manifest.json, e.g.

      python export.py --target android --kv-bits 3.5 --context 2048

      python export.py --target ios --weights int4 --context 2048

      python export.py --target ios --weights int4 --deployment-target iOS26 --cache-io int8
    """
    try:
        for name, value, allowed in (
            ("--target", target, ("android", "ios")),
            ("--weights", weights, WEIGHTS),
            ("--deployment-target", deployment_target, DEPLOYMENT_TARGETS),
            ("--cache-io", cache_io, STORAGES),
            ("--backend", backend, ios.BACKENDS),
            ("--quantize", quantize, RECIPES),
            ("--embedding", embedding, EMBEDDINGS),
            ("--features", features, FEATURE_SETS),
            ("--logits", logits, android.LOGITS),
        ):
            if value is not None and value not in allowed:
                raise UserError(f"unknown {name} {value!r}: one of {', '.join(allowed)}")
        out = out or default_out(model, checkpoint, target)
        if features is not None and kv != "adaptive":
            raise UserError(f"--features is what --kv adaptive decides by; --kv {kv} decides nothing: drop it")
        cache = CacheOptions(context, window, kv, kv_bits, window_bits, prefill_chunk)
        cache = replace(cache, features=features or cache.features)
        source = (model, out, checkpoint, random_weights, tables)
        if target == "ios":
            if backend != "xnnpack" and (logits == "last" or features not in (None, ios.FEATURES_USED)):
                raise UserError(
                    f"a Core ML program has all logits and --features {ios.FEATURES_USED}: drop --logits and --features"
                )
            apple = ios.IosOptions(
                *source, deployment_target, weights, backend, quantize, embedding, cache, cache_io, logits
            )
            with stages(ios.STAGES[backend]) as stage:
                manifest = ios.export_ios(apple, sys.argv, stage)
        else:
            options = android.AndroidOptions(*source, quantize, embedding, cache, logits=logits)
            with stages(android.STAGES) as stage:
                manifest = android.export_android(options, sys.argv, stage)
    except UserError as error:
        print_error(console, error)
        raise typer.Exit(2) from None
    report(manifest, out)
    for note in notes(manifest, random_weights, logits):
        print_note(console, note)
    if as_json:
        print(json.dumps(manifest))
