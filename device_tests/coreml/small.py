"""A few layers of a real checkpoint as a Hugging Face folder with its tables: real weights, in seconds.

    python -m device_tests.coreml.small --layers 2 --out /tmp/small
    python export.py --target ios --checkpoint /tmp/small --tables /tmp/small/tables.safetensors --kv-bits 16

The text such a model writes means nothing, but its activations are real. (With few layers the bookkeeping is most of
the cache, so the bit budget is a large number.)
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors.torch import save_file

from adakv_model.checkpoints.load import Checkpoint, load_checkpoint
from adakv_model.command_line import HELP_NAMES, command
from adakv_model.tables import CalibrationTables, find_tables, neutral_tables

TABLES = "tables.safetensors"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def few_layers(checkpoint: Checkpoint, layers: int, folder: Path) -> Path:
    """Write the first `layers` layers, the tokenizer and the tables to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(checkpoint.config, n_layers=layers)
    kept = {
        name: value.contiguous()
        for name, value in checkpoint.weights.items()
        if not name.startswith("layers.") or int(name.split(".")[1]) < layers
    }
    names = {name if name.startswith("lm_head") else f"model.{name}": value for name, value in kept.items()}
    save_file(names, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config.to_hf(), "model_type": "llama"}), encoding="utf-8")
    if checkpoint.tokenizer is not None:
        (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer)
    tables = find_tables(checkpoint.name, checkpoint.source) or neutral_tables(checkpoint.config)
    few_tables(tables, layers).save(folder / TABLES)
    return folder


def few_tables(tables: CalibrationTables, layers: int) -> CalibrationTables:
    """The tables of the first layers."""

    def kept(source: Any, *names: str) -> Any:
        return replace(source, **{name: getattr(source, name)[:layers] for name in names})

    rows = tuple(kept(rows, "k_mean", "k_transform", "sensitivity") for rows in tables.rows)
    return replace(kept(tables, "v_mean", "scale_modes"), rows=rows)


@app.command(context_settings=HELP_NAMES)
@command
def main(
    layers: Annotated[int, typer.Option(min=1, help="How many of the default checkpoint's layers to keep.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Write the first layers of the default checkpoint."""
    few_layers(load_checkpoint(), layers, out)


if __name__ == "__main__":
    app()
