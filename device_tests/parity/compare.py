"""What parity means, in functions: run both sides over the same tokens and measure how far apart they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adakv_model.kv_cache import MixedPrecisionCache
from adakv_model.model import Llama
from adakv_model.reference import nearest_tier_with_room
from adakv_model.runtime.artifact import HostModel
from adakv_model.runtime.generate import prefill


@dataclass
class Agreement:
    """Between two sets of logits [T, V] over the same tokens."""

    max_difference: float
    mean_kl: float  # KL(first || second), nats a token
    top1: float  # share of tokens with the same likeliest next token
    tie_gap: float  # largest gap, in the first's logits, between its choice and the second's

    @classmethod
    def between(cls, first: Tensor, second: Tensor) -> Agreement:
        log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
        chosen = first.gather(1, second.argmax(-1, keepdim=True))[:, 0]
        return cls(
            max_difference=float((first - second).abs().max()),
            mean_kl=float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
            top1=float((first.argmax(-1) == second.argmax(-1)).float().mean()),
            tie_gap=float((first.amax(-1) - chosen).max()),
        )


class TieSync(nn.Module):
    """A controller that agrees with the artifact wherever its own decision is a tie.

    Two float implementations of one model differ by rounding, and a decision that hangs on that is no error; but
    one different slot shifts all later ones. So where the eager controller's logits for its own choice and for
    the artifact's are closer than `tolerance`, the artifact's is taken and counted; anything else is a failure.
    """

    def __init__(self, controller: nn.Module, cache: MixedPrecisionCache, expected: Tensor, tolerance: float) -> None:
        """expected: uint8 [N], the artifact's tier of every position."""
        super().__init__()
        self.controller, self.plan, self.progress = controller, cache.plan, cache.progress
        self.expected, self.tolerance = expected, tolerance
        self.ties: list[float] = []
        self.failures: list[tuple[int, int, int, float]] = []
        self.decisions = self.spills = 0

    def forward(self, features: Tensor) -> Tensor:
        logits = self.controller(features)
        progress, room = self.progress.tolist(), list(self.plan.capacities)
        position, fill = progress[0], progress[1:]
        first = self.plan.left(position - 1)
        end = self.plan.left(position + logits.shape[0] - self.plan.departure)
        for token in range(first, end):
            self._decide(logits[token - first], token, fill, room)
        return logits

    def _decide(self, logits: Tensor, token: int, fill: list[int], room: list[int]) -> None:
        self.decisions += 1
        target = int(self.expected[token])
        wanted = int(logits.argmax())
        own = nearest_tier_with_room(wanted, fill, room)
        self.spills += own != wanted
        if own != target:
            leads_there = [k for k in range(len(room)) if nearest_tier_with_room(k, fill, room) == target]
            margin = float(logits.max() - logits[leads_there].max()) if leads_there else float("inf")
            if margin > self.tolerance:
                self.failures.append((token, own, target, margin))
            else:
                self.ties.append(margin)
            if leads_there:
                logits[max(leads_there, key=lambda k: float(logits[k]))] = logits.max() + 1
        fill[target] += 1


@torch.no_grad()
def run_eager(model: Llama, tokens: list[int], chunk: int) -> Tensor:
    """Logits [len(tokens), V] of an eager model, fed from position 0 in chunks of at most `chunk`."""
    sizes: Iterable[int] = (min(chunk, len(tokens) - i) for i in range(0, len(tokens), chunk))
    if isinstance(model.cache, MixedPrecisionCache):
        sizes = model.cache.plan.chunks(0, len(tokens), chunk)
    rows, at = [], 0
    for count in sizes:
        rows.append(model(torch.tensor([tokens[at : at + count]]), torch.tensor([at]))[0])
        at += count
    return torch.cat(rows)


def run_program(model: HostModel, tokens: list[int], forced: int) -> Tensor:
    """Logits [forced + 1, V] of a program: after all but the last `forced` tokens, fed in its chunks, and after each
    of those."""
    prompt = len(tokens) - forced
    return torch.stack([prefill(model, tokens[:prompt]), *(model.step([token])[-1] for token in tokens[prompt:])])


def synchronise(model: Llama, artifact_tiers: Tensor, tolerance: float) -> TieSync | None:
    """Put a TieSync in the eager model's cache; None for a plan without a controller."""
    cache = model.cache
    assert isinstance(cache, MixedPrecisionCache)
    if cache.controller is None:
        return None
    sync = TieSync(cache.controller, cache, artifact_tiers, tolerance)
    cache.controller = sync  # type: ignore[assignment]
    return sync


def state_names(model: HostModel) -> list[str]:
    """Every buffer that the program keeps between steps."""
    names = ["progress", "tiers", "attention", *(f"cache_{layer}" for layer in range(model.plan.n_layers))]
    names += ["history", "observed"] if model.plan.adaptive else []
    return names + (["last_logits"] if model.plan.observes else [])


def snapshot(model: HostModel) -> dict[str, Tensor]:
    return {name: model.state(name) for name in state_names(model)}
