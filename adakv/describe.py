"""`adakv describe DIR`: what an artifact is, from its manifest; nothing is loaded."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from adakv_model.command_line import HELP_NAMES, Exit, command
from adakv_model.digest import sha256_of
from adakv_model.runtime.manifest import PROGRAM, is_calibrated, read_manifest
from adakv_model.terminal import make_console, print_facts, print_table, print_wrapped
from export import plan_drawing

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

MATTERS = ("executorch", "coremltools")  # packages whose version decides whether a program loads


@app.command(context_settings=HELP_NAMES)
@command
def main(
    folder: Annotated[Path, typer.Argument(help="Folder written by adakv export.", metavar="DIR")],
    verify: Annotated[bool, typer.Option(help="Compare every file with its SHA-256. Exit code 3: one differs.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show what an artifact is: model, plan to scale, weights, files and hashes, versions, command.

    For example: adakv describe artifacts/mine
    """
    manifest = read_manifest(folder)
    files = check_files(folder, manifest["files"]) if verify else dict.fromkeys(manifest["files"], "not checked")
    versions = compare_versions(manifest["versions"])
    cache = plan_drawing.as_core_ml(manifest["kv_cache"], manifest.get("core_ml_states"))
    if as_json:
        print(json.dumps({"folder": str(folder), **summary(manifest, cache), "files": files, "versions": versions}))
    else:
        show(folder, manifest, cache, files, versions)
    if any(state not in ("intact", "not checked") for state in files.values()):
        raise typer.Exit(Exit.CHECK)


def check_files(folder: Path, files: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name -> intact, or what is wrong with it."""
    found = {}
    for name, recorded in files.items():
        path = folder / name
        size = path.stat().st_size
        if size != recorded["bytes"]:
            found[name] = f"{size:,} bytes instead of {recorded['bytes']:,}: export again"
        elif sha256_of(path) != recorded["sha256"]:
            found[name] = "another content than was exported: export again"
        else:
            found[name] = "intact"
    return found


def compare_versions(recorded: dict[str, str]) -> dict[str, dict[str, str | None]]:
    """Package -> version of the export, and the one installed here."""
    found: dict[str, dict[str, str | None]] = {}
    for name, then in recorded.items():
        try:
            now = None if name == "python" else version(name)
        except PackageNotFoundError:
            now = None
        found[name] = {"exported with": then, "installed": now}
    return found


def summary(manifest: dict[str, Any], cache: dict[str, Any]) -> dict[str, Any]:
    """The parts of a manifest that a reader wants first."""
    model = manifest["model"]
    return {
        "model": model["name"],
        "random_weights": model["random_weights"],
        "source": model["source"],
        "target": manifest.get("target"),
        "program": manifest.get("program", PROGRAM),
        "created": manifest["created"],
        "command": manifest["command"],
        "weights": manifest.get("weights"),
        "quantize": manifest.get("quantize"),
        "logits": manifest.get("logits", "all"),
        "calibrated": is_calibrated(manifest),
        "policy": cache["policy"],
        "context": cache["context"],
        "bytes_allocated": cache["bytes_allocated"],
        "bits": {"all": cache["bits_per_value"], **plan_drawing.account(cache)},
        "parts": plan_drawing.parts(cache),
    }


def show(
    folder: Path,
    manifest: dict[str, Any],
    cache: dict[str, Any],
    files: dict[str, str],
    versions: dict[str, dict[str, str | None]],
) -> None:
    """Tables on standard output."""
    console = make_console(stderr=False)
    console.print(folder, soft_wrap=True)
    print_facts(console, _facts(manifest, cache))
    console.print()
    plan_drawing.show(cache, console)
    console.print()
    listed = Table("file", "bytes", "SHA-256", "state", box=None, pad_edge=False)
    for name, state in files.items():
        recorded = manifest["files"][name]
        listed.add_row(name, f"{recorded['bytes']:,}", recorded["sha256"][:12], state)
    print_table(console, listed)
    changed = [f"{name} {v['exported with']} (here {v['installed']})" for name, v in versions.items() if _differs(v)]
    console.print()
    made = ", ".join(f"{name} {v['exported with']}" for name, v in versions.items())
    print_wrapped(console, f"made with {made}")
    if changed:
        serious = any(_differs(versions[name]) for name in MATTERS if name in versions)
        print_wrapped(console, f"other versions here: {', '.join(changed)}", style="yellow" if serious else "")


def _differs(versions: dict[str, str | None]) -> bool:
    return versions["installed"] is not None and versions["installed"] != versions["exported with"]


def _facts(manifest: dict[str, Any], cache: dict[str, Any]) -> list[tuple[str, str]]:
    model, weights = manifest["model"], manifest.get("weights")
    shape = (
        f"{model['n_layers']} layers of {model['hidden_size']}, {model['n_heads']} / {model['n_kv_heads']} heads of"
        f" {model['head_dim']}, {model['vocab_size']:,} tokens"
    )
    recipe = manifest.get("quantize", weights)
    if isinstance(weights, dict):
        size = weights["weight_bytes"] / 1e6
        recipe = f"{recipe}, {weights['bits_per_weight']:.2f} bits a weight, {size:.1f} MB"
    source = {key: value for key, value in model["source"].items() if key != "sha256"}
    digest = model["source"].get("sha256")
    where = ", ".join(f"{key} {value}" for key, value in source.items()) + (f", {digest[:12]}" if digest else "")
    policy = cache["policy"]
    if features := manifest.get("controller", {}).get("feature_set"):
        policy += f", decides by features {features}"
    return [
        ("model", model["name"] + (" (random weights)" if model["random_weights"] else "")),
        ("shape", shape),
        ("source", where),
        ("target", f"{manifest.get('target')}: {manifest.get('program', PROGRAM)}"),
        ("weights", str(recipe)),
        ("policy", policy + ("" if is_calibrated(manifest) else ", not calibrated")),
        ("steps", f"{cache['prefill_chunk']} tokens at most, logits of {manifest.get('logits', 'all')}"),
        ("created", manifest["created"]),
        ("command", shlex.join(manifest["command"])),
    ]
