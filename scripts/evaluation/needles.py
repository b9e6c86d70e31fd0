"""Retrieval prompts: a fact early in a long text, asked for at its end.

Two kinds, both answered by continuing the question, which suits a small model. `passkey`: one fact between paragraphs
of the evaluation text. `key-value`: nothing but facts of the same form, one of which is asked for. The right answer
competes with others of the same form; in key-value prompts these are answers to other facts of the same prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from adakv_model.errors import UserError
from adakv_model.runtime.text import TextCodec
from evaluation.choices import EncodedItem, encode_pair

KINDS = ("passkey", "key-value")
CANDIDATES = 5
ANSWER = 16  # tokens of a prompt's length kept free for the answer
NAMES = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "ivory", "jetty", "koala", "lemon",
         "maple", "north", "olive", "pearl", "quartz", "river", "storm", "tulip")  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """One prompt as token ids; candidates[0] is the right answer. depth: the fact's place, 0 start to 1 end."""

    kind: str
    length: int
    depth: float
    trial: int
    prompt: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]

    @property
    def key(self) -> str:
        return f"{self.kind}-{self.length}-{self.depth:g}-{self.trial}"

    @property
    def item(self) -> EncodedItem:
        """The prompt as a multiple-choice item."""
        return EncodedItem(self.key, self.prompt, self.candidates, tuple(map(len, self.candidates)), gold=0)


def build(
    codec: TextCodec, text: Sequence[int], kind: str, length: int, depths: Sequence[float], trials: int, seed: int = 0
) -> list[Needle]:
    """Prompts of `length` - ANSWER tokens: every depth `trials` times. Raises UserError if they do not fit."""
    if kind not in KINDS:
        raise UserError(f"unknown kind of retrieval {kind!r}: one of {', '.join(KINDS)}")
    made = []
    for depth in depths:
        for trial in range(trials):
            draw = random.Random(f"{seed} {kind} {length} {depth:g} {trial}")
            compose = _passkey if kind == "passkey" else _key_value
            made.append(compose(codec, text, draw, length, depth, trial))
    return made


def _fact(name: str, number: str) -> str:
    return f"The secret number of {name} is {number}."


def _question(codec: TextCodec, name: str, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    question = f"\n\nQuestion: What is the secret number of {name}?\nAnswer: The secret number of {name} is"
    pairs = [encode_pair(codec, question, f" {answer}") for answer in answers]
    return pairs[0][0], [candidate for _, candidate in pairs]


def _numbers(draw: random.Random, count: int) -> list[str]:
    """Different five-digit numbers."""
    return [str(n) for n in draw.sample(range(10_000, 100_000), count)]


def _passkey(
    codec: TextCodec, text: Sequence[int], draw: random.Random, length: int, depth: float, trial: int
) -> Needle:
    name, answers = draw.choice(NAMES), _numbers(draw, CANDIDATES)
    question, candidates = _question(codec, name, answers)
    fact = codec.encode(f"\n\n{_fact(name, answers[0])}\n\n")
    room = length - ANSWER - len(fact) - len(question)
    if room < 1 or room >= len(text):
        raise UserError(f"a passkey prompt of {length} tokens does not fit the text: choose other --lengths")
    start = draw.randrange(len(text) - room)
    hay, place = list(text[start : start + room]), round(depth * room)
    prompt = hay[:place] + fact + hay[place:] + question
    return Needle("passkey", length, depth, trial, tuple(prompt), tuple(map(tuple, candidates)))


def _key_value(
    codec: TextCodec, text: Sequence[int], draw: random.Random, length: int, depth: float, trial: int
) -> Needle:
    names = [f"{a} {b}" for a in NAMES for b in NAMES if a != b]
    draw.shuffle(names)
    numbers = _numbers(draw, len(names))
    question, candidates = _question(codec, names[0], numbers[:CANDIDATES])
    facts = [codec.encode(f"\n{_fact(*pair)}") for pair in zip(names, numbers, strict=True)]
    room, others = length - ANSWER - len(question) - len(facts[0]), []
    for fact in facts[1:]:
        if len(fact) > room:
            break
        others.append(fact)
        room -= len(fact)
    if len(others) < CANDIDATES - 1 or room > len(text):
        raise UserError(f"a key-value prompt needs more than {length} tokens: choose other --lengths")
    place = round(depth * len(others))
    # The distractors come first in `others`; shuffled, they lie anywhere.
    draw.shuffle(others)
    ordered = [*others[:place], facts[0], *others[place:]]
    prompt = [*text[:room], *(token for fact in ordered for token in fact), *question]  # a few words fill what is left
    return Needle("key-value", length, depth, trial, tuple(prompt), tuple(map(tuple, candidates)))
