"""python -m device_tests.coreml_generate: text from a Core ML artifact in the evaluator, on any machine.

Slow by nature: it interprets the saved program operation by operation, with fp16 rounding, on the CPU.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adakv_model.artifact import Artifact
from adakv_model.errors import UserError
from adakv_model.generate import encode_prompt
from device_tests.coreml_eval import Precision
from device_tests.coreml_run import CoreMLModel

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True, highlight=False)


@dataclass
class Statistics:
    """Of one generation; seconds a token are the evaluator's and say nothing about a phone."""

    prompt_tokens: int
    new_tokens: int
    finish_reason: str  # eos, length or context
    prefill_seconds_per_token: float
    decode_seconds_per_token: float
    tokens_by_tier: dict[str, int]
    state_bytes: int
    fp16_bytes: int


def generate(model: CoreMLModel, prompt: list[int], limit: int, eos: tuple[int, ...]) -> tuple[list[int], Statistics]:
    """Greedy tokens (the end token left out) with a progress bar. Raises UserError if the prompt does not fit."""
    if not prompt:
        raise UserError("the prompt is empty: pass some text with --prompt")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    model.reset()
    new: list[int] = []
    reason = "length"
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("prefill", total=len(prompt))
        started = time.perf_counter()
        logits = model.prefill(prompt, progress=lambda n: progress.advance(task, n))[-1]
        prefilled = time.perf_counter()
        task = progress.add_task("decode", total=limit)
        while True:
            token = int(logits.argmax())
            if token in eos:
                reason = "eos"
                break
            new.append(token)
            progress.advance(task)
            if len(new) == limit:
                break
            if model.position == model.plan.context:
                reason = "context"
                break
            logits = model.step([token])[-1]
        finished = time.perf_counter()
    plan = model.plan
    return new, Statistics(
        prompt_tokens=len(prompt),
        new_tokens=len(new),
        finish_reason=reason,
        prefill_seconds_per_token=round((prefilled - started) / len(prompt), 3),
        decode_seconds_per_token=round((finished - prefilled) / max(len(new), 1), 3),
        tokens_by_tier={f"{bits} bits": n for bits, n in zip(plan.tier_bits, model.tier_counts(), strict=True)},
        state_bytes=model.layout.bytes_allocated,
        fp16_bytes=plan.fp16_bytes,
    )


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def main(
    artifact: Annotated[Path, typer.Option(help="Folder written by export.py --target ios.")],
    prompt: Annotated[str, typer.Option(help="Text of the question.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")] = 64,
    system: Annotated[str | None, typer.Option(help="System message of the chat template.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Use the chat template. [default: if there is one]", show_default=False),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp16 rounds every result, fp32 none.")] = "fp16",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Answer a prompt with a saved Core ML package, evaluated on this machine."""
    try:
        if precision not in ("fp16", "fp32"):
            raise UserError(f"unknown --precision {precision!r}: fp16 or fp32")
        opened = Artifact(artifact)
        model = CoreMLModel(opened, cast(Precision, precision))
        ids = encode_prompt(opened, prompt, system, chat)
        new, statistics = generate(model, ids, max_new_tokens, tuple(opened.manifest["model"]["eos_token_ids"]))
    except UserError as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    text = opened.codec.decode(new, skip_special_tokens=True)
    if as_json:
        print(json.dumps({"text": text, "token_ids": new, **asdict(statistics)}))
        return
    print(text)
    s = statistics
    tiers = ", ".join(f"{n} at {bits}" for bits, n in s.tokens_by_tier.items() if n) or "none yet"
    console.print(
        f"evaluated on this machine: prefill {s.prompt_tokens} tokens, {s.prefill_seconds_per_token} s each | decode"
        f" {s.new_tokens} tokens, {s.decode_seconds_per_token} s each | stopped by {s.finish_reason}\n"
        f"tokens that left the window: {tiers} | states {s.state_bytes / 2**20:.2f} MiB"
        f" ({100 * s.state_bytes / s.fp16_bytes:.1f} % of fp16)",
        style="dim",
        soft_wrap=True,
    )


if __name__ == "__main__":
    app()
