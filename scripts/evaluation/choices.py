"""Log-likelihoods of the choices of multiple-choice items, one record an item."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from adakv_model.errors import UserError
from adakv_model.runtime.text import TextCodec
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

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is scored."""
        return len(self.query) + max(map(len, self.choices))


def encode_pair(codec: TextCodec, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a context and of what follows it, cut from the ids of both together, as lm-eval does.

    The context begins with BOS where the tokenizer puts one. Spaces at its end move to the continuation, because
    tokens start with their space.
    """
    kept = context.rstrip(" ")
    whole, start = codec.encode_start(context + continuation), codec.encode_start(kept)
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
    batch: int,
    advance: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Make the missing records: per choice `log_likelihood` (nats), `greedy` (it is what greedy decoding writes),
    `bits` and `tiers` at its end.

    batch: sequences at once. Items with equally long queries and equally many choices are scored together; the
    query's part is computed once an item.
    """
    missing = [item for item in items if item.key not in store]
    if not missing:
        return
    model = scorer()
    for group in grouped(missing, batch):
        queries = torch.tensor([item.query for item in group])
        for item, scored in zip(
            group, model.score_continuations(queries, [item.choices for item in group]), strict=True
        ):
            record = {
                "log_likelihood": [round(float(one.log_probs.double().sum()), 6) for one in scored],
                "greedy": [bool(one.greedy.all()) for one in scored],
                "bits": [round(float(one.stored_bits), 6) for one in scored],
                "tiers": [one.tier_counts[0].tolist() for one in scored],
            }
            store.add(item.key, record)
            advance(item.tokens)


def grouped(items: Sequence[EncodedItem], batch: int) -> list[list[EncodedItem]]:
    """Items of one shape together, at most `batch` choices a group, the longest queries first."""
    shapes: dict[tuple[int, int], list[EncodedItem]] = defaultdict(list)
    for item in items:
        shapes[len(item.query), len(item.choices)].append(item)
    groups = []
    for (_, choices), alike in sorted(shapes.items(), reverse=True):
        alike.sort(key=lambda item: item.longest)  # continuations are padded to the longest of a group
        size = max(1, batch // choices)
        groups += [alike[begin : begin + size] for begin in range(0, len(alike), size)]
    return groups
