"""What a finished export prints for people; the machine-readable form is manifest.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from adakv_model import terminal
from adakv_model.runtime.manifest import is_calibrated
from adakv_model.terminal import make_console, print_note
from export import plan_drawing
from export.coreml.report import core_ml_cache, print_report
from export.options import LOGITS, ExportOptions


def show(manifest: dict[str, Any], options: ExportOptions) -> None:
    """A table and notes on standard error."""
    console = make_console()
    if "report" in manifest:
        print_report(manifest, console)
    else:
        print_table(manifest, options.folder, console)
    for note in notes(manifest, options):
        print_note(console, note)


def print_table(manifest: dict[str, Any], out: Path, console: Console) -> None:
    """Of a program, its size and the cache's."""
    table = Table(show_header=False)
    table.add_row("program", f"{manifest['files']['model.pte']['bytes'] / 1e6:.1f} MB, weights {weights_of(manifest)}")
    # Core ML's states take more than the rows of the plan.
    cache = manifest["kv_cache"]
    for row in core_ml_cache(manifest) if "core_ml_states" in manifest else android_cache(cache):
        table.add_row(*row)
    terminal.print_wrapped(console, f"{manifest['model']['name']} -> {out}")
    terminal.print_table(console, table)


def weights_of(manifest: dict[str, Any]) -> str:
    """The weight recipe of a program, in words."""
    if "quantize" not in manifest:  # a Core ML program
        return str(manifest["weights"])
    return f"{manifest['quantize']} ({manifest['weights']['bits_per_weight']:.2f} bits a weight)"


def android_cache(cache: dict[str, Any]) -> list[tuple[str, str]]:
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
        ("", plan_drawing.account_line(cache)),
    ]


def notes(manifest: dict[str, Any], options: ExportOptions) -> list[str]:
    """What a user should know about this export."""
    found = list(manifest["model"].get("notes", ()))
    if not options.core_ml:
        found += plan_drawing.notes(manifest["kv_cache"], options.kv_bits)
    if not options.random_weights and not is_calibrated(manifest):
        found.append("no calibration tables for this checkpoint: run adakv calibrate")
    if options.logits == LOGITS[0] and manifest.get("logits") == "all":
        used = manifest["controller"]["feature_set"]
        found.append(f"--features {used} needs the prediction of every token: exported with --logits all")
    return found
