"""What --list-presets and --list-models print."""

from __future__ import annotations

import json
from collections.abc import Mapping

from rich.table import Table

from adakv_model.config import DEFAULT_MODEL, MODELS
from adakv_model.terminal import make_console, print_table
from export.presets import Preset

LEFT_OUT = ("hidden size", "heads")  # of the table, not of --json: names and hub ids stay whole in 80 columns


def models() -> dict[str, dict[str, object]]:
    """The registered models by name: shape, and where their weights come from."""
    found: dict[str, dict[str, object]] = {}
    for name, spec in MODELS.items():
        c = spec.config
        weights = f"package {spec.bundled.package}, checked by SHA-256" if spec.bundled else f"hub {spec.hub_id}"
        found[name] = {
            "layers": c.n_layers,
            "hidden size": c.hidden_size,
            "heads": f"{c.n_heads} / {c.n_kv_heads} kv",
            "context": c.max_position_embeddings,
            "weights": weights + (" (default)" if name == DEFAULT_MODEL else ""),
        }
    return found


def show(items: Mapping[str, Preset] | Mapping[str, dict[str, object]], as_json: bool) -> None:
    """A table on the terminal, or one JSON object on standard output."""
    rows = {name: item.to_json() if isinstance(item, Preset) else item for name, item in items.items()}
    if as_json:
        print(json.dumps(rows))
        return
    columns = [key for key in next(iter(rows.values())) if key not in LEFT_OUT]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("name", *columns):
        table.add_column(heading, overflow="fold")
    for name, row in rows.items():
        table.add_row(name, *(_text(row[key]) for key in columns))
    print_table(make_console(stderr=False), table)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"--{key} {item}" for key, item in value.items()) or "the defaults"
    return str(value)
