"""Whether a larger capacity costs time while it is not used: decode steps at equal fill, two artifacts in turn.

in:  two artifacts of one model and policy with different --context
out: a table on the terminal and --json with every sample; exit code 3 if the ratio is above --limit

    python export.py --kv-bits 3.25 --context 1024 --out small
    python export.py --kv-bits 3.25 --context 8192 --out large
    python scripts/capacity_speed.py --small small --large large
"""

from __future__ import annotations

import needs_packages  # noqa: F401

import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from adakv_model.command_line import HELP_NAMES, Exit, command
from adakv_model.errors import UserError
from adakv_model.whole_file import check_file, write_json
from pages import wide_console
from peers.children import run_child
from peers.measure import cpu_name

if TYPE_CHECKING:
    from adakv_model.runtime.artifact import Artifact

LIMIT = 1.05
TIMEOUT = 600.0
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def same_model(small: Artifact, large: Artifact) -> None:
    """Raise UserError unless both differ in capacity alone, the first being smaller."""
    if small.manifest["model"] != large.manifest["model"] or small.manifest["quantize"] != large.manifest["quantize"]:
        raise UserError(f"{small.folder} and {large.folder} are of different models or weights: export one model twice")
    if small.plan.policy != large.plan.policy:
        raise UserError(f"{small.folder} has a {small.plan.policy} cache and {large.folder} a {large.plan.policy} one")
    if not small.plan.context < large.plan.context:
        raise UserError(f"--small holds {small.plan.context} tokens and --large {large.plan.context}: not fewer")


def measure(artifacts: list[Artifact], fill: int, steps: int, threads: int, rounds: int) -> list[list[float]]:
    """Milliseconds of all decode steps of each artifact; the rounds go through them in turn."""
    samples: list[list[float]] = [[] for _ in artifacts]
    vocab = artifacts[0].plan.vocab_size
    tokens = [1 + 7919 * i % (vocab - 1) for i in range(fill + 1)]  # any text takes the same time
    for turn in range(rounds):
        order = list(enumerate(artifacts))
        for i, artifact in order if turn % 2 == 0 else reversed(order):
            job = {"engine": "adakv", "model": str(artifact.folder.resolve()), "tokens": tokens, "steps": steps}
            result = run_child(job | {"threads": threads, "random": True}, Path(), TIMEOUT)
            if "error" in result:
                raise UserError(f"{artifact.folder} did not run: {result['error']}")
            samples[i] += result["decode_ms"]
    return samples


@app.command(context_settings=HELP_NAMES)
@command
def main(
    small: Annotated[Path, typer.Option(help="Artifact of the smaller context.")],
    large: Annotated[Path, typer.Option(help="Artifact of the larger context.")],
    fill: Annotated[int, typer.Option(min=1, help="Tokens in the cache at the last step.")] = 512,
    steps: Annotated[int, typer.Option(help="Decode steps of a process.", min=4)] = 64,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.", min=1)] = 2,
    rounds: Annotated[int, typer.Option(help="Processes for each artifact.", min=1)] = 5,
    limit: Annotated[float, typer.Option(min=0.0, help="Largest ratio of the minima, large over small.")] = LIMIT,
    json_path: Annotated[Path | None, typer.Option("--json", help="Results, with every sample.")] = None,
) -> None:
    """Measure both in turn, then compare their fastest steps."""
    check_file(json_path, "--json")
    from adakv_model.runtime.artifact import Artifact

    artifacts = [Artifact(small), Artifact(large)]
    same_model(*artifacts)
    if not 2 * steps <= fill <= artifacts[0].plan.context:
        raise UserError(f"--fill must lie between twice --steps, {2 * steps}, and {artifacts[0].plan.context}")
    samples = measure(artifacts, fill, steps, threads, rounds)
    ratio = min(samples[1]) / min(samples[0])
    table = Table(title=f"decode steps at {fill} tokens, {threads} threads, {rounds} rounds", title_justify="left")
    for name in ("capacity", "fastest ms", "median ms"):
        table.add_column(name, justify="right")
    for artifact, ms in zip(artifacts, samples, strict=True):
        table.add_row(str(artifact.plan.context), f"{min(ms):.3f}", f"{statistics.median(ms):.3f}")
    console = wide_console()
    console.print(table)
    console.print(f"fastest steps: {ratio:.3f} times as long with the larger capacity (limit {limit})")
    if json_path is not None:
        facts = {"cpu": cpu_name(), "created": datetime.now(UTC).isoformat(timespec="seconds"), "threads": threads}
        cells = [{"capacity": a.plan.context, "ms": ms} for a, ms in zip(artifacts, samples, strict=True)]
        write_json(json_path, facts | {"fill": fill, "ratio": ratio, "cells": cells})
    if ratio > limit:
        raise typer.Exit(Exit.CHECK)


if __name__ == "__main__":
    app()
