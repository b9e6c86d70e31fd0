"""Long contexts under a cache policy: perplexity by position, and retrieval of facts far back, against fp16.

in:  a checkpoint, a policy, the evaluation text
out: OUT.png and OUT.json

    python scripts/long_context.py --policy adaptive --kv-bits 3.25 --data-dir DATA --out docs/long-context

Retrieval prompts hide one fact ("The secret number of cedar is 48213.") at several depths of a text, or among facts
of the same form, and ask for it at the end (evaluation/needles.py). Retention is the share of what fp16 finds that the
policy finds too. Resumable like scripts/evaluate.py.
"""

from __future__ import annotations

import needs_packages  # noqa: F401

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from adakv_model.cache_options import DEFAULT_WINDOW
from adakv_model.command_line import HELP_NAMES, command, if_interrupted
from adakv_model.config import DEFAULT_MODEL
from adakv_model.errors import UserError
from adakv_model.numbers import number_list
from adakv_model.runtime.text import codec_for
from adakv_model.simulation.names import BUDGETED, NAMES
from adakv_model.whole_file import check_file
from evaluation import needles, perplexity, position_plot, positions, results
from evaluation.bench import Bench, console, open_bench
from evaluation.choices import score_items
from evaluation.data import load_text
from evaluation.policies import REFERENCE, PolicySpec
from evaluation.results import with_error
from evaluation.store import ItemStore
from training import cli

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

CONTEXT = 8192
LENGTHS = "512,1024,2048,4096,8000"
DEPTHS = "0.1,0.3,0.5,0.7,0.9"


@app.command(context_settings=HELP_NAMES)
@command
@if_interrupted(lambda: cli.KEPT_ITEMS)
def main(
    out: Annotated[Path, typer.Option(help="Path without suffix; .png and .json are written.")],
    policy: Annotated[str, typer.Option(help=f"{', '.join(NAMES)}.")] = "adaptive",
    kv_bits: Annotated[
        float | None, typer.Option(min=0.0, help=f"Budget in total bits per value: {', '.join(BUDGETED)}.")
    ] = None,
    context: Annotated[int, typer.Option(min=3, help="Window of text, and capacity of the cache.")] = CONTEXT,
    tokens: Annotated[int, typer.Option(min=0, help="Tokens of text for perplexity; 0: none.")] = 8 * CONTEXT,
    kinds: Annotated[str, typer.Option(help="Retrieval prompts; empty: none.")] = ",".join(needles.KINDS),
    lengths: Annotated[
        str, typer.Option(help="Tokens of a retrieval prompt, each planned for its own cache.")
    ] = LENGTHS,
    depths: Annotated[str, typer.Option(help="Places of the fact, 0 start to 1 end.")] = DEPTHS,
    trials: Annotated[int, typer.Option(min=1, help="Prompts of each kind, length and depth.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    window: Annotated[int, typer.Option(min=1, help="Newest tokens kept at --window-bits.")] = DEFAULT_WINDOW,
    window_bits: Annotated[int | None, typer.Option(min=8, help="8 or 16. [default: the policy's]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data files.")] = None,
    model: Annotated[str, typer.Option(help="Registered model name or hub id.")] = DEFAULT_MODEL,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder or .gguf instead of --model.")] = None,
    tables: Annotated[Path | None, typer.Option(help="Calibration tables. [default: the shipped ones]")] = None,
    work_dir: Annotated[Path | None, typer.Option(help="Results of single items.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Score again what is already stored.")] = False,
    memory: Annotated[float, typer.Option(min=0.1, help="GiB for K and V of the sequences scored at once.")] = 2.0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: the library decides.")] = 0,
) -> None:
    """Compare a policy with fp16 on long texts."""
    cli.set_threads(threads)
    check_file(out.with_suffix(".json"), "--out")
    wanted = [kind for kind in kinds.split(",") if kind]
    sizes = number_list("--lengths", lengths, int, 1) if wanted else []
    places = number_list("--depths", depths, float)
    if any(not 0 <= place <= 1 for place in places):
        raise UserError(f"--depths {depths}: each lies between 0 and 1")
    bench = open_bench(model, checkpoint, tables, work_dir, memory=memory, fresh=fresh)
    spec = PolicySpec(policy, kv_bits, context, window, window_bits)
    specs = {size: replace(spec, context=size) for size in sizes} | ({context: spec} if tokens else {})
    for one in specs.values():
        one.make(bench.checkpoint.config, bench.tables)  # complain before the long work
    text = load_text(data_dir)
    ids = codec_for(bench.checkpoint).encode_start(text.text)
    by_position = text_losses(bench, spec, torch.tensor(ids), text.sha256, tokens) if tokens else []
    found = [
        row
        for kind in wanted
        for size in sizes
        for row in retrieve(
            bench,
            specs[size],
            needles.build(codec_for(bench.checkpoint), ids, kind, size, places, trials, seed),
            {"needles": kind, "length": size, "answer": needles.ANSWER, "seed": seed, "text": text.sha256},
        )
    ]
    report(by_position, found)
    position_plot.plot(by_position, found, out.with_suffix(".png"), spec.title)
    content: dict[str, Any] = {
        "model": bench.checkpoint.name,
        "policy": policy,
        "kv_bits": kv_bits,
        "window": window,
        "window_bits": window_bits,
        "context": context,
        "positions": by_position,
        "retrieval": found,
        "command": cli.command_line("scripts/long_context.py"),
    }
    results.write_json(out.with_suffix(".json"), content)
    console.print(f"wrote {out}.png, {out}.json")


def text_losses(bench: Bench, spec: PolicySpec, ids: torch.Tensor, sha256: str, tokens: int) -> list[dict[str, Any]]:
    """Loss by position over windows of the text. The stores are those of scripts/evaluate.py."""
    windows = perplexity.cut(ids, spec.context, tokens)

    def scored(one: PolicySpec) -> ItemStore:
        title = f"wikitext2 {one.title}"
        data = {"task": "wikitext2", "text": sha256, "context": spec.context}
        store = bench.store(title, data, one.identity(bench.tables))
        missing = sum(len(w.tokens) for w in windows if w.key not in store)
        with bench.progress(title, missing) as advance:
            perplexity.score_windows(
                lambda: one.simulator(bench.checkpoint, bench.tables),
                windows,
                store,
                bench.batch(spec.context),
                advance,
            )
        return store

    fp16 = scored(spec.named(REFERENCE))
    return positions.by_position(windows, scored(spec), fp16)


def retrieve(
    bench: Bench, spec: PolicySpec, prompts: list[needles.Needle], data: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of `positions.retrieval` for prompts of one kind and length."""

    def scored(one: PolicySpec) -> ItemStore:
        title = f"{data['needles']} {data['length']} {one.title}"
        store = bench.store(title, data, one.identity(bench.tables))
        items = [needle.item for needle in prompts]
        missing = sum(item.tokens for item in items if item.key not in store)
        with bench.progress(title, missing) as advance:
            score_items(
                lambda: one.simulator(bench.checkpoint, bench.tables),
                items,
                store,
                bench.batch(data["length"]),
                advance,
            )
        return store

    fp16 = scored(spec.named(REFERENCE))
    return positions.retrieval(prompts, scored(spec), fp16)


def report(by_position: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    """Both results as tables on stderr."""
    if by_position:
        table = Table("positions", "perplexity", "fp16", "loss - fp16")
        for row in by_position:
            error = with_error(row["loss_diff"], row["loss_diff_se"], 4, sign="+")
            table.add_row(f"{row['begin']}-{row['end']}", f"{row['ppl']:.2f}", f"{row['ppl_fp16']:.2f}", error)
        console.print(table)
    overall = [row for row in found if row["depth"] is None]
    if overall:
        table = Table("retrieval", "length", "prompts", "fp16", "policy", "retention", "by rank")
        for row in overall:
            kept = [retention(row[measure]) for measure in ("greedy", "rank")]
            greedy = row["greedy"]
            counts = (str(row["prompts"]), str(greedy["fp16"]), str(greedy["policy"]))
            table.add_row(row["kind"], f"{row['length']:,}", *counts, *kept)
        console.print(table)


def retention(measure: dict[str, Any]) -> str:
    if measure["retention"] is None:
        return "fp16 finds none"
    share = f"{100 * measure['retention']:.0f} %"
    return f"{measure['both']} of {measure['fp16']}, {share} ({100 * measure['low']:.0f}-{100 * measure['high']:.0f})"


if __name__ == "__main__":
    app()
