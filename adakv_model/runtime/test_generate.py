"""What a user passes, and why a text ends; with a model whose answer is known."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from adakv_model.errors import UserError
from adakv_model.runtime.generate import Statistics, decode, pick, summary
from adakv_model.runtime.inputs import argument_text, check_prompt, check_sampling, check_threads, read_prompt

CONTEXT = 8


class Counting:
    """Every token is followed by the next id."""

    def __init__(self, position: int) -> None:
        self.position, self.plan = position, SimpleNamespace(context=CONTEXT)

    def step(self, tokens: list[int]) -> torch.Tensor:
        assert self.position + len(tokens) <= CONTEXT
        self.position += len(tokens)
        return torch.nn.functional.one_hot(torch.tensor(tokens) + 1, 20).float()


def collect(model: Any, first: int, limit: int, eos: tuple[int, ...]) -> tuple[list[int], str]:
    steps, new = decode(model, torch.nn.functional.one_hot(torch.tensor(first), 20).float(), limit, eos, 0.0, 0), []
    while True:
        try:
            new.append(next(steps))
        except StopIteration as end:
            return new, end.value


@pytest.mark.parametrize(
    ("limit", "eos", "expected"),
    [
        (2, (), ([5, 6], "length")),
        (2, (6,), ([5], "eos")),
        (99, (5, 6), ([], "eos")),
        (99, (), ([5, 6, 7, 8], "context")),
        (99, (8,), ([5, 6, 7], "eos")),  # the text fills the context exactly and then ends
        (99, (9,), ([5, 6, 7, 8], "context")),
        (4, (), ([5, 6, 7, 8], "length")),
    ],
)
def test_why_a_text_ends(limit: int, eos: tuple[int, ...], expected: tuple[list[int], str]) -> None:
    assert collect(Counting(position=5), 5, limit, eos) == expected


@example(temperature=5e-324, logits=[1.0, 2.0])
@example(temperature=1e-38, logits=[1.0, 2.0])
@given(
    temperature=st.floats(min_value=0, max_value=1e300),
    logits=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=5),
)
def test_any_temperature_picks_a_token(temperature: float, logits: list[float]) -> None:
    picked = pick(torch.tensor(logits), temperature, torch.Generator().manual_seed(0))
    assert 0 <= picked < len(logits)
    first, second = sorted(logits, reverse=True)[:2]
    if temperature == 0 or first - second > 1000 * temperature:  # nothing else can be sampled
        assert logits[picked] == first


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(temperature: float) -> None:
    with pytest.raises(UserError, match="computed nan"):
        pick(torch.tensor([0.0, float("nan")]), temperature, torch.Generator())


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf"), -float("inf")])
def test_temperatures_that_are_none(temperature: float) -> None:
    with pytest.raises(UserError, match="--temperature .* must be 0 or a positive number"):
        check_sampling(temperature, 0)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seeds_that_are_too_long(seed: int) -> None:
    with pytest.raises(UserError, match="does not fit 64 bits"):
        check_sampling(0.0, seed)
    torch.Generator().manual_seed(2**64 - 1)
    torch.Generator().manual_seed(-(2**63))


@pytest.mark.parametrize("count", [-1, 0, 100_000])
def test_threads_are_at_most_the_cores(count: int) -> None:
    with pytest.raises(UserError, match=f"--threads {count} must lie between 1 and "):
        check_threads(count)


@pytest.mark.parametrize("tokens", [[20], [1, -1]])
def test_ids_the_embedding_lacks(tokens: list[int]) -> None:
    with pytest.raises(UserError, match=rf"token id {tokens[-1]} is outside the model's vocabulary of 20"):
        check_prompt(tokens, CONTEXT, 20)


def test_a_prompt_on_standard_input_is_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in ("höflich\n".encode(), b"caf\xe9"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="latin-1"))
        if data.endswith(b"\n"):
            assert read_prompt("-") == "höflich\n"
        else:
            with pytest.raises(UserError, match="standard input is not UTF-8 text"):
                read_prompt("-")


def test_an_empty_prompt_is_refused_with_and_without_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is loaded: the template would make a prompt of nothing."""
    with pytest.raises(UserError, match="the prompt is empty: pass some text with --prompt"):
        read_prompt("")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), encoding="utf-8"))
    with pytest.raises(UserError, match="standard input is empty"):
        read_prompt("-")


def test_one_token_has_no_speed_and_no_plural() -> None:
    found = Statistics(7, 1, "length", 1.0, 0.0, {}, 8.0, 2**20, 2**22)
    assert "decode 1 token | stopped by length" in summary(found)
    found.new_tokens, found.decode_seconds = 3, 0.5
    assert "prefill 7 tokens, 7.0 tokens/s | decode 3 tokens, 4.0 tokens/s |" in summary(found)


def test_arguments_that_are_not_text() -> None:
    assert argument_text("--prompt", "höflich 日本") == "höflich 日本"
    with pytest.raises(UserError, match="--prompt is not UTF-8 text"):
        read_prompt("caf\udce9")
