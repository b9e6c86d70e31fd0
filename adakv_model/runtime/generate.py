"""Generation on the host: prefill in chunks, decode token by token, and what was measured meanwhile."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact, HostModel
from adakv_model.runtime.inputs import argument_text, check_prompt, check_sampling
from adakv_model.terminal import Bars, make_console

console = make_console()

LONG_PROMPT = 512  # tokens; from here a progress bar is worth showing


@dataclass
class Statistics:
    """Of one generation. Speeds in tokens per second; times in seconds."""

    prompt_tokens: int
    new_tokens: int
    finish_reason: str  # eos, length or context
    prefill_seconds: float
    decode_seconds: float
    tokens_by_tier: dict[str, int]
    bits_per_stored_value: float
    bytes_allocated: int
    fp16_bytes: int

    @property
    def prefill_speed(self) -> float:
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_speed(self) -> float:
        """The first new token comes out of the prefill."""
        steps = self.new_tokens - 1
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "prefill_tokens_per_second": round(self.prefill_speed, 2),
            "decode_tokens_per_second": round(self.decode_speed, 2),
        }


def pick(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """The next token from logits [V]: the largest at temperature 0, else a sample. Raises UserError for NaN."""
    likeliest = int(logits.argmax())
    best = float(logits[likeliest])
    if not math.isfinite(best):
        raise UserError(f"the program computed {best} for token {likeliest}: its weights or this build are damaged")
    if temperature < sys.float_info.min:  # 0, or a number that the runtime's libraries let the CPU take for 0
        return likeliest
    # In float64 and from the largest, so that no temperature overflows: a tiny one is greedy.
    probabilities = torch.softmax((logits.double() - best) / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def prefill(model: HostModel, prompt: list[int], advance: Callable[[int], None] = lambda n: None) -> Tensor:
    """Feed the prompt in the artifact's chunks; logits [V] after its last token."""
    start = 0
    for count in model.plan.chunks(model.position, len(prompt)):
        logits = model.step(prompt[start : start + count])
        start += count
        advance(count)
    return logits[-1]


def decode(
    model: HostModel, logits: Tensor, limit: int, eos: Sequence[int], temperature: float, seed: int
) -> Generator[int, None, str]:
    """Yield up to `limit` new tokens; returns why they end: eos, length, or context when it is full."""
    generator = torch.Generator().manual_seed(seed)
    for made in range(limit):
        token = pick(logits, temperature, generator)
        if token in eos:
            return "eos"
        yield token
        if made + 1 == limit:
            break
        if model.position >= model.plan.context:
            return "context"
        logits = model.step([token])[-1]
    return "length"


def generate(
    artifact: Artifact,
    prompt: list[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    emit: Callable[[int], None] = lambda token: None,
) -> tuple[list[int], Statistics]:
    """New token ids and statistics. Raises UserError if the prompt does not fit the context."""
    plan = artifact.plan
    check_sampling(temperature, seed)
    check_prompt(prompt, plan.context, artifact.vocabulary)
    model = artifact.load()
    started = time.perf_counter()
    with Bars(console=console, disable=len(prompt) < LONG_PROMPT) as progress:
        task = progress.add_task("prefill", total=len(prompt))
        logits = prefill(model, prompt, lambda n: progress.advance(task, n))
    prefilled = time.perf_counter()
    new: list[int] = []
    reason = ""

    def collect() -> Generator[int, None, None]:
        nonlocal reason
        reason = yield from decode(model, logits, max_new_tokens, artifact.eos_ids, temperature, seed)

    for token in collect():
        new.append(token)
        emit(token)
    finished = time.perf_counter()
    counts = model.tier_counts()
    return new, Statistics(
        prompt_tokens=len(prompt),
        new_tokens=len(new),
        finish_reason=reason,
        prefill_seconds=prefilled - started,
        decode_seconds=finished - prefilled,
        tokens_by_tier={f"{bits} bits": n for bits, n in zip(plan.tier_bits, counts, strict=True)},
        bits_per_stored_value=round(plan.stored_bits(counts, model.position), 4),
        bytes_allocated=plan.bytes_allocated,
        fp16_bytes=plan.fp16_bytes,
    )


def encode_prompt(artifact: Artifact, prompt: str, system: str | None, chat: bool | None) -> list[int]:
    """Token ids, through the chat template unless there is none or `chat` is False; then with the tokenizer's BOS.

    system: the system message; None leaves it to the template, which may have one of its own.
    """
    codec = artifact.codec
    use_chat = artifact.has_chat_template if chat is None else chat
    if not use_chat:
        return codec.encode(prompt, add_special_tokens=True)
    messages = [] if system is None else [{"role": "system", "content": argument_text("--system", system)}]
    return codec.encode(codec.render_chat([*messages, {"role": "user", "content": prompt}]))


def counted(tokens: int) -> str:
    """A number of tokens, in words."""
    return f"{tokens} token" + ("s" if tokens != 1 else "")


def summary(s: Statistics) -> str:
    """Two lines for people. Without a decode step there is no speed of one."""
    tiers = ", ".join(f"{n} at {bits}" for bits, n in s.tokens_by_tier.items() if n) or "none yet"
    speed = f", {s.decode_speed:.1f} tokens/s" if s.decode_speed else ""
    return (
        f"prefill {counted(s.prompt_tokens)}, {s.prefill_speed:.1f} tokens/s | decode {counted(s.new_tokens)}{speed}"
        f" | stopped by {s.finish_reason}\n"
        f"tokens that left the window: {tiers} | {s.bits_per_stored_value:.2f} bits per stored value |"
        f" {s.bytes_allocated / 2**20:.2f} MiB allocated ({100 * s.bytes_allocated / s.fp16_bytes:.1f} % of fp16)"
    )
