"""Text from a Core ML artifact in the evaluator: prefill in chunks, then the likeliest token, one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn

from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.generate import counted
from adakv_model.runtime.inputs import check_prompt
from adakv_model.terminal import Bars, text_column
from device_tests.coreml.evaluator.precision import Precision
from device_tests.coreml.run import CoreMLModel


@dataclass(frozen=True)
class Statistics:
    """Of one generation; times in seconds, on this machine."""

    prompt_tokens: int
    new_tokens: int
    finish_reason: str  # eos, length or context
    load_seconds: float
    prefill_seconds: float
    decode_seconds: float
    tokens_by_tier: dict[str, int]
    state_bytes: int  # states, and arrays that the host keeps
    fp16_bytes: int  # of an fp16 cache with the same context

    def to_json(self) -> dict:
        return asdict(self) | {
            "prefill_seconds_per_token": round(self.prefill_seconds / self.prompt_tokens, 4),
            "decode_seconds_per_token": round(self.decode_seconds / max(self.new_tokens - 1, 1), 4),
        }


def generate(
    model: CoreMLModel,
    prompt: list[int],
    limit: int,
    eos: Sequence[int],
    *,
    prefilled: Callable[[int], None] = lambda n: None,
    emit: Callable[[int], None] = lambda token: None,
) -> tuple[list[int], str, float]:
    """Up to `limit` new token ids, why they end (eos, length or context), and when the prefill was done.

    Raises UserError if the prompt is empty or does not fit the context.
    """
    context = model.plan.context
    check_prompt(prompt, context, model.vocabulary)
    model.reset()
    logits = model.prefill(prompt, progress=prefilled)[-1]
    prefill_done = time.perf_counter()
    new: list[int] = []
    while True:
        token = int(logits.argmax())
        if token in eos:
            return new, "eos", prefill_done
        new.append(token)
        emit(token)
        if len(new) == limit:
            return new, "length", prefill_done
        if model.position == context:
            return new, "context", prefill_done
        logits = model.step([token])[-1]


def answer(
    artifact: Artifact, prompt: list[int], limit: int, precision: Precision, console: Console
) -> tuple[list[int], Statistics]:
    """Load, generate and measure, with a progress bar whose text is the end of the answer so far."""
    columns = text_column("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    stream, text = artifact.codec.stream(), ""
    with Bars(*columns, text_column("{task.fields[speed]}"), console=console) as progress:
        started = time.perf_counter()
        loading = progress.add_task("load", total=None, speed="")
        model = CoreMLModel(artifact, precision)
        for name in model.package.functions:
            model.package.function(name, precision)
        loaded = time.perf_counter()
        progress.update(loading, total=1, completed=1)
        reading = progress.add_task("prefill", total=len(prompt), speed="")
        writing = progress.add_task("decode", total=limit, speed="", start=False)

        def prefilled(count: int) -> None:
            progress.advance(reading, count)
            done = progress.tasks[reading].completed
            progress.update(reading, speed=f"{(time.perf_counter() - loaded) / done:.2f} s/token")

        def emit(token: int) -> None:
            nonlocal text
            text += stream.push(token)
            progress.start_task(writing)
            made, since = progress.tasks[writing].completed, progress.tasks[writing].elapsed
            speed = f"{since / made:.2f} s/token" if made and since else ""
            progress.update(writing, advance=1, speed=speed, description=f"decode …{text[-40:]!r}")

        new, reason, prefill_done = generate(model, prompt, limit, artifact.eos_ids, prefilled=prefilled, emit=emit)
        finished = time.perf_counter()
    counts = zip(model.plan.tier_bits, model.tier_counts(), strict=True)
    return new, Statistics(
        prompt_tokens=len(prompt),
        new_tokens=len(new),
        finish_reason=reason,
        load_seconds=round(loaded - started, 3),
        prefill_seconds=round(prefill_done - loaded, 3),
        decode_seconds=round(finished - prefill_done, 3),
        tokens_by_tier={f"{bits} bits": count for bits, count in counts},
        state_bytes=model.cache_bytes,
        fp16_bytes=model.plan.fp16_bytes,
    )


def summary(s: Statistics) -> str:
    tiers = ", ".join(f"{n} at {bits}" for bits, n in s.tokens_by_tier.items() if n) or "none yet"
    per_token = s.to_json()
    speed = f", {per_token['decode_seconds_per_token']:.2f} s/token" if s.new_tokens > 1 else ""
    return (
        f"load {s.load_seconds:.1f} s | prefill {counted(s.prompt_tokens)},"
        f" {per_token['prefill_seconds_per_token']:.2f} s/token | decode {counted(s.new_tokens)}{speed} | stopped by"
        f" {s.finish_reason}\ntokens that left the window: {tiers} | {s.state_bytes / 2**20:.2f} MiB of cache"
        f" ({100 * s.state_bytes / s.fp16_bytes:.1f} % of an fp16 cache)"
    )
