"""Generation on the host: prefill in chunks, decode token by token, and what was measured meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact, HostModel
from adakv_model.terminal import make_console

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
    """The next token from logits [V]: the largest at temperature 0, else a sample."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / temperature, dim=-1)
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
    model: HostModel, logits: Tensor, limit: int, eos: tuple[int, ...], temperature: float, seed: int
) -> Iterator[int]:
    """Yield up to `limit` new tokens; stops before an end token or when the context is full."""
    generator = torch.Generator().manual_seed(seed)
    for made in range(limit):
        token = pick(logits, temperature, generator)
        if token in eos:
            return
        yield token
        if made + 1 == limit or model.position >= model.plan.context:
            return
        logits = model.step([token])[-1]


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
    check_prompt(prompt, plan.context)
    model = artifact.load()
    started = time.perf_counter()
    with Progress(console=console, transient=True, disable=len(prompt) < LONG_PROMPT) as progress:
        task = progress.add_task("prefill", total=len(prompt))
        logits = prefill(model, prompt, lambda n: progress.advance(task, n))
    prefilled = time.perf_counter()
    eos = tuple(artifact.manifest["model"]["eos_token_ids"])
    new = []
    for token in decode(model, logits, max_new_tokens, eos, temperature, seed):
        new.append(token)
        emit(token)
    finished = time.perf_counter()
    counts = model.tier_counts()
    reason = "length" if len(new) == max_new_tokens else "context" if model.position >= plan.context else "eos"
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


def check_prompt(prompt: list[int], context: int) -> None:
    """Raise UserError for a prompt that is empty or longer than the artifact's context."""
    if not prompt:
        raise UserError("the prompt is empty: pass some text with --prompt")
    if len(prompt) > context:
        raise UserError(
            f"the prompt has {len(prompt)} tokens and the artifact holds {context}: shorten it, or export"
            " with a larger --context"
        )


def encode_prompt(artifact: Artifact, prompt: str, system: str | None, chat: bool | None) -> list[int]:
    """Token ids, through the chat template unless there is none or `chat` is False."""
    codec = artifact.codec
    use_chat = artifact.has_chat_template if chat is None else chat
    if not use_chat:
        return codec.encode(prompt)
    messages = [{"role": "system", "content": system}] if system else []
    return codec.encode(codec.render_chat([*messages, {"role": "user", "content": prompt}]))


def summary(s: Statistics) -> str:
    tiers = ", ".join(f"{n} at {bits}" for bits, n in s.tokens_by_tier.items() if n) or "none yet"
    return (
        f"prefill {s.prompt_tokens} tokens, {s.prefill_speed:.1f} tokens/s | decode {s.new_tokens} tokens,"
        f" {s.decode_speed:.1f} tokens/s | stopped by {s.finish_reason}\n"
        f"tokens that left the window: {tiers} | {s.bits_per_stored_value:.2f} bits per stored value |"
        f" {s.bytes_allocated / 2**20:.2f} MiB allocated ({100 * s.bytes_allocated / s.fp16_bytes:.1f} % of fp16)"
    )
