"""The cache of an artifact drawn to scale: what the sink, the window, the tiers and the bookkeeping take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from adakv_model.cache_options import BUDGETED, DEFAULT_BITS
from adakv_model.terminal import print_table, print_wrapped

SHORTFALL = 0.5  # bits below the budget from which a user is told
WIDTH = 32  # columns of the whole cache, fewer in a narrow terminal
NARROWEST = 8  # columns below which there is nothing to see
GAP = 2  # columns between two of the table
COLOURS = {"sink": "red", "window": "yellow", "bookkeeping": "magenta", "alignment": "magenta"}


def as_core_ml(cache: Mapping[str, Any], states: Mapping[str, Any] | None) -> dict[str, Any]:
    """`kv_cache` with the bytes and row bits of Core ML's own storage (`core_ml_states`), where there is one."""
    if states is None:
        return dict(cache)
    rows = states["row_bits_per_value"]
    tiers = [t | {"mean_stored_bits": rows.get(str(t["bits"]), t["mean_stored_bits"])} for t in cache["tiers"]]
    kept = {key: states[key] for key in ("bytes", "bytes_allocated", "bits_per_value")}
    return {**cache, **kept, "tiers": tiers}


def parts(cache: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Label, tokens, bits of a value and bytes of each part of a manifest's `kv_cache`, in the order of storage."""
    sizes = dict(cache["bytes"])
    found: list[dict[str, Any]] = [{"part": "sink", "tokens": 1, "bits": 16, "bytes": sizes.pop("sink")}]
    longest = cache["window"] + cache["departure"] - 1
    window = sizes.pop("window")
    found.append({"part": "window", "tokens": longest, "bits": cache["window_bits"], "bytes": window})
    for i, tier in enumerate(cache["tiers"]):
        size = sizes.pop(f"tier_{tier['bits']}", 0)
        found.append({"part": f"tier {i}", "tokens": tier["capacity"], "bits": tier["bits"], "bytes": size})
    rows = sum(part["bytes"] for part in found)
    found.append({"part": "bookkeeping", "tokens": None, "bits": None, "bytes": sum(sizes.values())})
    padding = cache["bytes_allocated"] - rows - sum(sizes.values())
    found.append({"part": "alignment", "tokens": None, "bits": None, "bytes": padding})
    return found


def show(cache: Mapping[str, Any], console: Console) -> None:
    """The whole cache in a line, its parts with one bar each, from where the one before ended, and the bits' account.

    A terminal that is too narrow gets shorter bars, or none: numbers stay whole.
    """
    total = cache["bytes_allocated"]
    title = (
        f"KV cache: {total / 2**20:.2f} MiB for {cache['context']} tokens, {cache['bits_per_value']:.2f} bits a value,"
        f" {100 * total / cache['fp16_bytes']:.1f} % of fp16"
    )
    shown = [part for part in parts(cache) if part["bytes"]]
    rows = [
        (
            part["part"],
            *("" if part[key] is None else f"{part[key]:g}" for key in ("tokens", "bits")),
            f"{part['bytes']:,}",
            f"{100 * part['bytes'] / total:.1f} %",
        )
        for part in shown
    ]
    headings = ("part", "tokens", "bits", "bytes", "share")
    taken = sum(max(map(len, column)) + GAP for column in zip(headings, *rows, strict=True))
    width = min(WIDTH, console.width - taken)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "part" else "right", no_wrap=True)
    if width >= NARROWEST:
        table.add_column("to scale", min_width=width, max_width=width)
    start = 0
    for part, row in zip(shown, rows, strict=True):
        end = start + part["bytes"]
        bar = Bar(total, start, end, width=width, color=COLOURS.get(part["part"], "green"))
        table.add_row(*row, *([bar] if width >= NARROWEST else []))
        start = end
    print_wrapped(console, title)
    print_table(console, table)
    print_wrapped(console, account_line(cache))


def account(cache: Mapping[str, Any]) -> dict[str, float]:
    """Bits a value of the whole cache, by what takes them; of the tokens in the tiers, their own rows' bits."""
    values = cache["fp16_bytes"] / 2
    bookkeeping = next(part["bytes"] for part in parts(cache) if part["part"] == "bookkeeping")
    tokens = sum(tier["capacity"] for tier in cache["tiers"])
    stored = sum(tier["capacity"] * tier["mean_stored_bits"] for tier in cache["tiers"])
    return {
        "rows": round(8 * (cache["bytes_allocated"] - bookkeeping) / values, 4),
        "bookkeeping": round(8 * bookkeeping / values, 4),
        "older_tokens": round(stored / tokens, 4) if tokens else 0.0,
    }


def account_line(cache: Mapping[str, Any]) -> str:
    """The same in words."""
    bits = account(cache)
    return (
        f"bits a value: rows {bits['rows']:.2f} (older tokens {bits['older_tokens']:.2f} each),"
        f" bookkeeping {bits['bookkeeping']:.2f}"
    )


def notes(cache: Mapping[str, Any], asked: float | None) -> list[str]:
    """What a user should know of how the budget was spent. asked: --kv-bits, None for the default."""
    if cache["policy"] not in BUDGETED:
        return []
    bits, found = account(cache), []
    budget = DEFAULT_BITS if asked is None else asked
    if asked is None and cache["bits_per_value"] > DEFAULT_BITS:
        found.append(
            f"the default of {DEFAULT_BITS} bits is out of reach at context {cache['context']}: planned with"
            f" {cache['bits_per_value']:.2f}, of which bookkeeping takes {bits['bookkeeping']:.2f}"
        )
    if bits["older_tokens"] < budget - SHORTFALL:
        window = next(part["bytes"] for part in parts(cache) if part["part"] == "window")
        found.append(
            f"older tokens keep {bits['older_tokens']:.2f} bits a value of the budget of {budget:g}: at context"
            f" {cache['context']} the window takes {100 * window / cache['bytes_allocated']:.0f} % of the cache and"
            f" bookkeeping {bits['bookkeeping']:.2f} bits; a larger --kv-bits or --context gives them more"
        )
    return found
