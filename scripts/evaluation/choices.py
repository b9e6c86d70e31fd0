"""Log-likelihoods of the choices of multiple-choice items, one record an item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adakv_model.errors import UserError
from adakv_model.text import TextCodec
from evaluation.data import Item
from evaluation.scorers import Scorer
from evaluation.store import ItemStore


@dataclass(frozen=True)
class EncodedItem:
    """Token ids of the query and of each choice with its leading space; `lengths`: characters of each choice."""

    key: str
    query: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    gold: int

    @property
    def tokens(self) -> int:
        """Tokens that scoring it takes: the query once, and every choice."""
        return len(self.query) + sum(map(len, self.choices))


def encode_pair(codec: TextCodec, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a context and of what follows it, cut from the ids of both together, as lm-eval does.

    Spaces at the context's end move to the continuation, because tokens start with their space.
    """
    kept = context.rstrip(" ")
    whole, start = codec.encode(context + continuation), codec.encode(kept)
    return start, whole[len(start) :]


def encode_items(items: Sequence[Item], codec: TextCodec, context: int) -> list[EncodedItem]:
    """Items as token ids, keyed by their place. Raises UserError for one that does not fit the context."""
    encoded = []
    for index, item in enumerate(items):
        pairs = [encode_pair(codec, item.query, " " + choice) for choice in item.choices]
        query, choices = tuple(pairs[0][0]), tuple(tuple(choice) for _, choice in pairs)
        if not query or not all(choices):
            raise UserError(f"item {item.id} has an empty query or choice after tokenization: remove it")
        longest = len(query) + max(map(len, choices))
        if longest > context:
            raise UserError(f"item {item.id} has {longest} tokens, more than --context {context}")
        lengths = tuple(max(len(choice), 1) for choice in item.choices)
        encoded.append(EncodedItem(str(index), query, choices, lengths, item.gold))
    return encoded


def score_items(
    scorer: Callable[[], Scorer],
    items: Sequence[EncodedItem],
    store: ItemStore,
    advance: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Make the missing records: per choice `log_likelihood` (nats), `bits` and `tiers` at its end."""
    missing = [item for item in items if item.key not in store]
    if not missing:
        return
    model = scorer()
    for item in missing:
        scored = model.prefix_score(item.query, item.choices)
        sums = [float(row[: len(c)].double().sum()) for row, c in zip(scored.log_probs, item.choices, strict=True)]
        record = {
            "log_likelihood": [round(value, 6) for value in sums],
            "bits": [round(value, 6) for value in scored.stored_bits.tolist()],
            "tiers": scored.tier_counts.tolist(),
        }
        store.add(item.key, record)
        advance(item.tokens)
